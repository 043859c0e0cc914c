"""A reflector against scripted lists and watches: whatever goes wrong, its store ends up right or says it is stale."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.edge.fakes import Clock
from tests.edge.objects import token_service
from tokenservice.core.model import Json, Service
from tokenservice.edge.kube import Page, WatchEvent
from tokenservice.edge.projections import SERVICES
from tokenservice.edge.reflector import Reflector
from tokenservice.edge.store import Store, Stores
from tokenservice.errors import ApiError, Forbidden, Gone, NotFound, Retryable

Watch = list[WatchEvent | Exception]


class Script:
    """Plays lists and watches in turn; afterwards a watch hangs, as a quiet one does."""

    def __init__(self, lists: list[list[Page] | ApiError], watches: list[Watch | ApiError]) -> None:
        self.lists, self.watches = lists, watches
        self.watched_from: list[str] = []
        self.drained = asyncio.Event()

    async def list_pages(self, kind: str, namespace: str = "", *, selector: str = "") -> AsyncIterator[Page]:
        pages = self.lists.pop(0)
        if isinstance(pages, ApiError):
            raise pages
        for page in pages:
            yield page

    @asynccontextmanager
    async def watch(
        self, kind: str, namespace: str = "", *, revision: str, selector: str = ""
    ) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        self.watched_from.append(revision)
        if not self.watches:
            self.drained.set()
            await asyncio.Event().wait()
        events = self.watches.pop(0)
        if isinstance(events, ApiError):
            raise events
        yield _played(events)


async def _played(events: Watch) -> AsyncIterator[WatchEvent]:
    for event in events:
        if isinstance(event, Exception):
            raise event
        yield event


def page(*objects: Json, revision: str = "5") -> Page:
    return Page(objects, revision)


def added(name: str, revision: int) -> WatchEvent:
    return WatchEvent("ADDED", token_service(name, revision=revision))


async def play(script: Script, *, optional: bool = False) -> tuple[Store[Service], Clock]:
    clock = Clock()
    store = Store("TokenService", SERVICES, clock=clock)
    reflector = Reflector(script, store, optional=optional, sleep=clock.sleep, jitter=lambda: 1.0, clock=clock)
    task = asyncio.create_task(reflector.run())
    await asyncio.wait_for(script.drained.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return store, clock


def names(store: Store[Service]) -> list[str]:
    return [service.key.name for service in store.values()]


async def test_lists_in_chunks_then_follows_the_watch() -> None:
    watch: Watch = [
        added("c", 6),
        WatchEvent("DELETED", token_service("a", revision=7)),
        WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "40"}}),
    ]
    script = Script([[page(token_service("a")), page(token_service("b"))]], [watch])
    store, clock = await play(script)
    assert names(store) == ["b", "c"]
    assert script.watched_from == ["5", "40"]
    assert store.has_seen("40")
    assert clock.slept == []


async def test_a_watch_that_breaks_goes_on_from_the_last_revision() -> None:
    script = Script([[page()]], [[added("a", 6), Retryable("reset")], [added("b", 7)]])
    store, clock = await play(script)
    assert names(store) == ["a", "b"]
    assert script.watched_from == ["5", "6", "7"]
    assert clock.slept == [0.5]


async def test_a_compacted_revision_starts_from_a_new_list_and_forgets_what_vanished() -> None:
    script = Script(
        [[page(token_service("a"), token_service("b"))], [page(token_service("b"), revision="50")]],
        [[Gone("too old")]],
    )
    store, _ = await play(script)
    assert names(store) == ["b"]
    assert script.watched_from == ["5", "50"]


async def test_a_revision_that_is_compacted_within_the_list_starts_again() -> None:
    script = Script([Gone("took too long"), [page(token_service("a"))]], [])
    store, _ = await play(script)
    assert names(store) == ["a"]


async def test_a_fault_of_ours_is_got_over_by_a_new_list() -> None:
    """Whatever one object shows: without this the process ended, and each after it, until the object was gone."""
    odd = WatchEvent("ADDED", {"metadata": {}})
    script = Script(
        [[page()], [page(token_service("a"), revision="8")], [page(token_service("b"), revision="9")]],
        [[added("a", 6), odd], [RecursionError("too deep")]],
    )
    store, clock = await play(script)
    assert names(store) == ["b"]
    assert script.watched_from == ["5", "8", "9"]
    assert clock.slept == [0.5, 1.0]


async def test_pauses_double_up_to_half_a_minute_and_end_with_the_first_event() -> None:
    failures: list[Watch | ApiError] = [Retryable("down")] * 9
    script = Script([[page()]], [*failures, [added("a", 6), Retryable("reset")]])
    _, clock = await play(script)
    assert clock.slept == [0.5, 1, 2, 4, 8, 16, 30, 30, 30, 0.5]


async def test_watches_that_end_at_once_and_say_nothing_are_no_sign_of_life_and_are_not_opened_in_a_rush() -> None:
    script = Script([[page()]], [[], [], [], [added("a", 6)], []])
    store, clock = await play(script)
    assert clock.slept == [0.5, 1, 2, 0.5]
    assert store.age() == 0.5, "since the event"


async def test_a_quiet_watch_that_the_server_ends_in_its_time_is_followed_by_the_next_at_once() -> None:
    clock = Clock()

    class Quiet(Script):
        @asynccontextmanager
        async def watch(self, *args: str, **how: str) -> AsyncIterator[AsyncIterator[WatchEvent]]:
            async with super().watch(*args, **how) as events:
                clock.now += 60
                yield events

    script = Quiet([[page()]], [[], []])
    store = Store("Event", SERVICES, clock=clock)
    task = asyncio.create_task(Reflector(script, store, sleep=clock.sleep, clock=clock).run())
    await asyncio.wait_for(script.drained.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock.slept == []


async def test_a_kind_that_may_not_be_read_is_tried_until_it_may() -> None:
    script = Script([Forbidden("no right"), Forbidden("no right"), [page()]], [])
    store, clock = await play(script)
    assert clock.slept == [0.5, 1.0]
    assert store.synced


async def test_an_optional_kind_that_does_not_exist_is_an_empty_one() -> None:
    script = Script([NotFound("no such kind"), [page(token_service("a"))]], [])
    clock = Clock()
    store = Store("TokenService", SERVICES, clock=clock)
    seen: list[tuple[bool, list[str]]] = []

    async def look(seconds: float) -> None:
        seen.append((store.synced, names(store)))

    task = asyncio.create_task(Reflector(script, store, optional=True, sleep=look).run())
    await asyncio.wait_for(script.drained.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert seen == [(True, [])]
    assert names(store) == ["a"]


async def test_an_optional_kind_that_is_installed_later_is_there_then_and_wakes_the_planner() -> None:
    script = Script([NotFound("no such kind"), NotFound("still not"), [page()]], [])
    woken: list[bool] = []
    store = Store("LeaderWorkerSet", SERVICES, wake=lambda: woken.append(store.absent))
    stores, seen = Stores([store]), list[bool]()

    async def look(seconds: float) -> None:
        seen.append(stores.has_kind("LeaderWorkerSet"))

    task = asyncio.create_task(Reflector(script, store, optional=True, sleep=look).run())
    await asyncio.wait_for(script.drained.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert seen == [False, False]
    assert stores.has_kind("LeaderWorkerSet")
    assert woken == [True, False], "once for each change"


async def test_a_kind_that_must_exist_is_waited_for() -> None:
    script = Script([NotFound("no such kind"), [page(token_service("a"))]], [])
    clock = Clock()
    store = Store("TokenService", SERVICES, clock=clock)
    seen: list[bool] = []

    async def look(seconds: float) -> None:
        seen.append(store.synced)

    task = asyncio.create_task(Reflector(script, store, sleep=look).run())
    await asyncio.wait_for(script.drained.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert seen == [False]


async def test_the_store_knows_whether_someone_listens() -> None:
    script = Script([[page()]], [Retryable("down")])
    clock = Clock()
    store = Store("TokenService", SERVICES, clock=clock)
    connected: list[bool] = []

    async def look(seconds: float) -> None:
        connected.append(store.connected)

    task = asyncio.create_task(Reflector(script, store, sleep=look).run())
    await asyncio.wait_for(script.drained.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert connected == [False]
