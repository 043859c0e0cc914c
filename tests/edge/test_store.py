"""A store: what it knows, when it wakes the planner, and when it says that it may be wrong."""

from __future__ import annotations

import asyncio

from tests.edge.fakes import Clock
from tests.edge.objects import deployment, pod, token_service
from tokenservice.core.model import Json, ObjectKey, Service
from tokenservice.edge.kube import SILENCE_SECONDS
from tokenservice.edge.projections import CHILDREN, PODS, SERVICES
from tokenservice.edge.store import DISCONNECTED_LIMIT_SECONDS, SILENT_LIMIT_SECONDS, Projection, Store, Stores, Version


class Woken:
    """Counts wake-ups."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def make_store(woken: Woken | None = None, clock: Clock | None = None, namespace: str = "") -> Store[Service]:
    return Store("TokenService", SERVICES, namespace=namespace, wake=woken or Woken(), clock=clock or Clock())


def names(store: Store[Service]) -> list[str]:
    return [service.key.name for service in store.values()]


def test_values_are_sorted_whatever_the_order_of_events() -> None:
    store = make_store()
    for name in ("c", "a", "b"):
        store.put(token_service(name))
    assert names(store) == ["a", "b", "c"]


def test_a_list_replaces_what_vanished_meanwhile() -> None:
    store = make_store()
    store.put(token_service("old"))
    store.replace(store.project([token_service("new")]), "9")
    assert names(store) == ["new"]
    assert store.synced


def test_only_what_matters_wakes() -> None:
    woken = Woken()
    store = make_store(woken)
    store.replace(store.project([token_service()]), "5")
    assert woken.times == 1
    store.put(token_service(revision=6, status={"replicas": 2}))
    store.bookmark("7")
    store.replace(store.project([token_service(revision=8)]), "8")
    store.remove(token_service("never-seen", revision=9))
    assert woken.times == 1
    store.put(token_service(revision=10, tier="Spot"))
    store.remove(token_service(revision=11))
    assert woken.times == 3


def test_the_first_list_wakes_even_when_there_is_nothing() -> None:
    woken = Woken()
    make_store(woken).replace({}, "1")
    assert woken.times == 1


def test_the_newest_state_is_kept_even_when_it_did_not_matter() -> None:
    store = make_store()
    store.put(token_service())
    store.put(token_service(revision=6, status={"replicas": 2}))
    assert store.values()[0].status == {"replicas": 2}
    assert store.version("team", "chat") == Version("uid-chat", "6")


def test_what_turns_uninteresting_is_dropped() -> None:
    store = Store("Deployment", CHILDREN)
    store.put(deployment())
    store.put(deployment(owner=None))
    assert len(store) == 0


def test_an_object_that_defies_the_projection_is_left_out_and_the_others_stay() -> None:
    store = Store("Pod", PODS)
    broken = pod("broken", metadata={"creationTimestamp": "yesterday"})
    store.replace(store.project([pod("a"), broken, pod("b")]), "1")
    assert [seen.name for seen in store.values()] == ["a", "b"]


def test_an_object_that_cannot_be_read_hides_no_other() -> None:
    def read(obj: Json) -> Service | None:
        if obj["metadata"]["name"] == "odd":
            raise RecursionError("nested too deep")
        return SERVICES.of(obj)

    store = Store("TokenService", Projection(read))
    store.replace(store.project([token_service("odd"), token_service("a")]), "5")
    store.put(token_service("odd"))
    store.put(token_service("b"))
    assert [service.key.name for service in store.values()] == ["a", "b"]


# --- freshness -----------------------------------------------------------------------------------------------------


def test_a_store_is_stale_until_it_was_listed() -> None:
    store = make_store()
    assert store.stale
    store.replace({}, "1")
    assert not store.stale


def test_a_store_whose_watch_is_down_is_stale_soon() -> None:
    clock = Clock()
    store = make_store(clock=clock)
    store.replace({}, "1")
    store.touch(connected=True)
    store.touch(connected=False)
    clock.now += DISCONNECTED_LIMIT_SECONDS - 1
    assert not store.stale
    clock.now += 2
    assert store.stale
    store.touch(connected=True)
    assert not store.stale


def test_a_watch_that_opens_again_and_again_and_says_nothing_is_not_trusted() -> None:
    """As through a proxy that answers for a server which hangs: once the view was fresh for ever."""
    clock = Clock()
    store = make_store(clock=clock)
    store.replace({}, "1")
    for _ in range(3):
        store.touch(connected=True)
        clock.now += SILENCE_SECONDS
        store.touch(connected=False)
    store.touch(connected=True)
    assert (store.stale, store.age()) == (True, 3 * SILENCE_SECONDS)
    store.bookmark("2")
    assert not store.stale


def test_a_healthy_watch_is_never_stale_though_it_breaks_just_before_a_bookmark() -> None:
    minute, reconnect = 60, 2
    assert minute < SILENCE_SECONDS
    assert 2 * minute + reconnect < SILENT_LIMIT_SECONDS


def test_a_kind_that_the_cluster_lacks_holds_nothing_up() -> None:
    """It is asked for every half minute: were that stale, no other service could be scaled in."""
    clock = Clock()
    store = make_store(clock=clock)
    store.put(token_service())
    store.none()
    clock.now += SILENT_LIMIT_SECONDS + 1
    assert (store.synced, store.stale, store.values()) == (True, False, [])


def test_a_quiet_watch_is_trusted_until_a_bookmark_is_overdue() -> None:
    clock = Clock()
    store = make_store(clock=clock)
    store.replace({}, "1")
    store.touch(connected=True)
    clock.now += SILENT_LIMIT_SECONDS - 1
    assert not store.stale
    store.bookmark("2")
    clock.now += SILENT_LIMIT_SECONDS + 1
    assert store.stale


def test_a_write_is_seen_once_the_store_is_at_its_revision() -> None:
    store = make_store()
    store.put(token_service(revision=99))
    assert not store.has_seen("100")
    store.bookmark("100")
    assert store.has_seen("100")
    assert store.has_seen("99")


# --- all of them ---------------------------------------------------------------------------------------------------


def test_stores_of_several_namespaces_are_one_view() -> None:
    first, second = make_store(namespace="b"), make_store(namespace="a")
    stores = Stores([first, second])
    first.put(token_service("x"))
    assert [service.key.name for service in stores.values("TokenService")] == ["x"]
    assert stores.version(ObjectKey("TokenService", "team", "x")) == Version("uid-x", "5")
    assert stores.version(ObjectKey("TokenService", "team", "y")) is None
    assert stores.missing_kinds() == ("TokenService",)
    first.replace({}, "1")
    assert not stores.synced
    second.replace({}, "1")
    assert stores.synced
    assert stores.stale_kinds() == ()


def test_only_the_store_of_its_namespace_must_have_seen_a_write() -> None:
    ours, other = make_store(namespace="a"), make_store(namespace="b")
    stores = Stores([ours, other])
    ours.bookmark("7")
    assert stores.has_seen("TokenService", "a", "7")
    assert not stores.has_seen("TokenService", "b", "7")
    assert stores.has_seen("Secret", "a", "7")


async def test_waiting_for_a_kind_ends_with_its_next_word() -> None:
    store, other = make_store(), Store("Pod", Projection(lambda obj: obj))
    waiting = asyncio.create_task(Stores([store, other]).moved(["TokenService"]))
    await asyncio.sleep(0)
    other.bookmark("1")
    await asyncio.sleep(0)
    assert not waiting.done()
    store.bookmark("2")
    await asyncio.wait_for(waiting, 1)
