"""Statuses go to the object that they were made for, on the revision that was seen, by who leads."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.edge.fakes import Server
from tests.edge.objects import token_service
from tokenservice.core.model import Event, Json, ObjectKey, Plan, Reason, StatusWrite
from tokenservice.core.names import FIELD_MANAGER, STATUS_MANAGER
from tokenservice.edge import report as module
from tokenservice.edge.report import Reporter
from tokenservice.edge.store import Version
from tokenservice.errors import Conflict, Forbidden, NotFound, Retryable

KEY = ObjectKey("TokenService", "team", "chat")
STATUS = StatusWrite(key=KEY, uid="uid-chat", status={"replicas": 2})
EVENT = Event(regarding=KEY, uid="uid-chat", type="Normal", reason=Reason.SCALED_UP, message="1 -> 2")
LATER = Event(regarding=KEY, uid="uid-chat", type="Normal", reason=Reason.SCALED_DOWN, message="2 -> 1")


class Fence:
    def __init__(self, *, held: bool = True) -> None:
        self._held = held

    def held(self) -> bool:
        return self._held


class Sink:
    """Keeps events; raises for those told to."""

    def __init__(self, *errors: Exception) -> None:
        self.events: list[Event] = []
        self.errors = list(errors)

    async def emit(self, event: Event) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.events.append(event)


def make_server() -> Server:
    server = Server()
    server.put(token_service())
    return server


def make_reporter(server: Server, sink: Sink | None = None, *, leads: bool = True) -> Reporter:
    return Reporter(server, sink or Sink(), Fence(held=leads), server, wall_clock=lambda: 1_800_000_000.0)


async def test_a_status_that_nobody_answers_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATE_SECONDS", 0.05)
    server, answer, asked = make_server(), asyncio.Event(), list[str]()
    server.put(token_service("other"))
    apply = server.apply

    async def hanging(manifest: Json, **more: Any) -> Json:
        asked.append(manifest["metadata"]["name"])
        if manifest["metadata"]["name"] == "chat":
            await answer.wait()
        return await apply(manifest, **more)

    server.apply = hanging  # type: ignore[method-assign]
    reporter = make_reporter(server)
    other = StatusWrite(key=KEY._replace(name="other"), uid="uid-other", status={"replicas": 1})
    plan = Plan(statuses=(STATUS, other))
    async with asyncio.timeout(5):
        for _ in range(2):
            assert [key.name for key, _ in await reporter.report(plan)] == ["other"]
    assert asked == ["chat", "other", "other"], "what has no answer is not asked again"
    answer.set()
    await asyncio.sleep(0.01)
    assert {key.name for key, _ in await reporter.report(plan)} == {"chat", "other"}


async def test_who_was_tried_last_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else those whose statuses are refused would come first each time, and with enough of them nobody else."""
    monkeypatch.setattr(module, "PARALLEL_WRITES", 1)
    server = make_server()
    server.put(token_service("other"))
    server.failures = [Forbidden("no")]
    reporter = make_reporter(server)
    other = StatusWrite(key=KEY._replace(name="other"), uid="uid-other", status={"replicas": 1})
    await reporter.report(Plan(statuses=(STATUS,)))
    await reporter.report(Plan(statuses=(STATUS, other)))
    assert [key.name for _, key, _ in server.calls] == ["chat", "other", "chat"]


async def test_a_status_is_applied_under_its_own_manager_on_the_revision_that_was_seen() -> None:
    server = make_server()
    reporter = make_reporter(server)
    written = await reporter.report(Plan(statuses=(STATUS,)))
    (_, _, sent), *_ = server.calls
    assert (sent["manager"], sent["subresource"]) == (STATUS_MANAGER, "status")
    assert sent["manifest"] == {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "TokenService",
        "metadata": {"namespace": "team", "name": "chat", "resourceVersion": "2"},
        "status": {"replicas": 2},
    }
    assert written == ((KEY, "3"),)
    assert reporter.status_written_at() == {KEY: 1_800_000_000.0}


async def test_an_object_that_was_made_anew_does_not_inherit_a_status() -> None:
    server = make_server()
    server.objects[KEY]["metadata"]["uid"] = "another"
    assert await make_reporter(server).report(Plan(statuses=(STATUS,))) == ()
    assert server.calls == []


async def test_an_object_that_changed_since_it_was_seen_is_left_to_the_next_plan() -> None:
    class Behind(Server):
        def version(self, key: ObjectKey) -> Version:
            return Version("uid-chat", "0")

    server = Behind()
    server.put(token_service())
    reporter = Reporter(server, Sink(), Fence(), server)
    assert await reporter.report(Plan(statuses=(STATUS,))) == ()
    assert reporter.status_written_at() == {}


async def test_who_does_not_lead_says_nothing() -> None:
    server, sink = make_server(), Sink()
    assert await make_reporter(server, sink, leads=False).report(Plan(statuses=(STATUS,), events=(EVENT,))) == ()
    assert server.calls == []
    assert sink.events == []


@pytest.mark.parametrize(
    "error",
    [Conflict("changed"), NotFound("gone"), Forbidden("no right"), Retryable("busy"), TypeError("a defect of ours")],
)
async def test_one_status_that_fails_does_not_stop_the_others(error: Exception) -> None:
    server = make_server()
    other = server.put(token_service("code"))
    server.failures = [error]
    statuses = (STATUS, StatusWrite(key=other, uid="uid-code", status={"replicas": 1}))
    written = await make_reporter(server).report(Plan(statuses=statuses))
    assert [key for key, _ in written] == [other]


@pytest.mark.parametrize("error", [Retryable("busy"), TypeError("a defect of ours")])
async def test_one_event_that_fails_does_not_stop_the_others(error: Exception) -> None:
    sink = Sink(error)
    await make_reporter(make_server(), sink).report(Plan(events=(EVENT, EVENT)))
    assert sink.events == [EVENT]


async def test_nobody_is_told_in_a_namespace_that_is_going(caplog: pytest.LogCaptureFixture) -> None:
    await make_reporter(make_server(), Sink(NotFound("the namespace is being terminated"))).report(
        Plan(events=(EVENT,))
    )
    assert caplog.records == []


class Slow(Server):
    """Every status takes a second and a half of a clock that nobody else moves."""

    now = 0.0

    async def apply(
        self, manifest: Json, *, manager: str = FIELD_MANAGER, force: bool = True, subresource: str = ""
    ) -> Json:
        self.now += 1.5
        return await super().apply(manifest, manager=manager, force=force, subresource=subresource)


async def test_a_pass_does_not_wait_for_all_that_there_is_to_say_and_the_rest_comes_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tokenservice.edge.report.PARALLEL_WRITES", 1)
    server, again = Slow(), list[int]()
    keys = [server.put(token_service(name)) for name in ("a", "b", "c", "d")]
    plan = Plan(statuses=tuple(StatusWrite(key=key, uid=f"uid-{key.name}", status={"replicas": 1}) for key in keys))
    reporter = Reporter(
        server,
        Sink(),
        Fence(),
        server,
        again=lambda: again.append(1),
        clock=lambda: server.now,
        wall_clock=lambda: server.now,
    )
    assert [key.name for key, _ in await reporter.report(plan)] == ["a", "b"]
    assert again == [1]
    assert [key.name for key, _ in await reporter.report(plan)] == ["c", "d"]
    assert again == [1, 1]


async def test_events_that_come_too_late_are_told_next_time() -> None:
    server, sink, moments = make_server(), Sink(), iter([0.0, 1.0, 3.0, 3.0, 3.0, 3.0])
    reporter = Reporter(server, sink, Fence(), server, clock=lambda: next(moments))
    await reporter.report(Plan(events=(EVENT, LATER)))
    assert sink.events == [EVENT]
    await reporter.report(Plan())
    assert sink.events == [EVENT, LATER]


async def test_what_is_gone_is_forgotten() -> None:
    server = make_server()
    reporter = make_reporter(server)
    await reporter.report(Plan(statuses=(STATUS,)))
    server.objects.clear()
    assert reporter.status_written_at() == {}
