"""The simulated cluster: what the controllers, the scheduler and a node autoscaler owe, in cases and at random."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulate.rig import (
    LOAD_SECONDS,
    NODE_IDLE_SECONDS,
    NODE_START_SECONDS,
    cluster,
    engines,
    key_of,
    live,
    manifest,
    pods,
    ready,
    scaled,
)
from tokenservice.core.model import Apply, Delete, ObjectKey, Place, Pod, Reason, SetDeletionCost, SetServing
from tokenservice.simulate.cluster import Cluster

WHY: Any = {"id": "a", "reason": Reason.UPDATED, "message": ""}


def pod_key(pod: Pod) -> ObjectKey:
    return ObjectKey("Pod", pod.namespace, pod.name)


def placed(pod: Pod, node: str | None) -> Place:
    return Place(**WHY, pod=pod_key(pod), uid=pod.uid, node=node)


def shifted(pod: Pod, serving: bool) -> SetServing:
    return SetServing(**WHY, pod=pod_key(pod), uid=pod.uid, serving=serving)


def marked(pod: Pod, cost: int) -> SetDeletionCost:
    return SetDeletionCost(**WHY, pod=pod_key(pod), uid=pod.uid, cost=cost)


def deleted(key: ObjectKey) -> Delete:
    return Delete(**WHY, key=key, uid="", resource_version="")


# --- nodes


def test_pods_without_room_get_a_node_after_its_start_and_serve_after_their_load() -> None:
    made = cluster()
    scaled(made, "chat", 3)
    assert [pod.unschedulable for pod in pods(made)] == [True] * 3
    live(made, NODE_START_SECONDS - 0.1)
    assert (made.nodes, made.ledger.accelerators) == ((), 8)
    live(made, 0.1)
    assert [pod.node for pod in pods(made)] == ["h100-0001"] * 3
    live(made, LOAD_SECONDS - 0.1)
    assert ready(made) == 0
    live(made, 0.1)
    assert ready(made) == 3 == len(engines(made).open)


def test_no_more_nodes_are_ordered_than_the_waiting_pods_fill_however_often_one_looks() -> None:
    made = cluster(most_nodes=10)
    scaled(made, "chat", 9)
    scaled(made, "large", 1, gpus=4)
    for _ in range(20):
        live(made, 1.0)
    assert made.ledger.nodes_started == 2


def test_there_are_never_more_nodes_than_may_be_and_who_waits_gets_the_room_that_others_leave() -> None:
    made = cluster(most_nodes=1)
    scaled(made, "chat", 8)
    live(made, 200)
    scaled(made, "other", 1)
    live(made, 200)
    assert (len(made.nodes), ready(made, "other")) == (1, 0)
    scaled(made, "chat", 7)
    live(made, LOAD_SECONDS)
    assert ready(made, "other") == 1


def test_a_replica_larger_than_any_node_is_bought_none() -> None:
    made = cluster()
    scaled(made, "huge", 1, gpus=16)
    live(made, 1000)
    assert made.ledger.nodes_started == 0


def test_nodes_made_to_measure_are_as_large_as_their_replicas_and_may_hold_as_much_in_all() -> None:
    made = cluster(most_nodes=1, whole_nodes=False)
    scaled(made, "pair", 3, gpus=2)
    scaled(made, "chat", 4)
    live(made, 200)
    assert sorted(sum(node.allocatable.values()) for node in made.nodes) == [1, 1, 2, 2, 2]
    assert made.ledger.held.free_on_used_nodes == 0


def test_a_node_is_released_when_it_has_been_empty_for_long_enough() -> None:
    made = cluster()
    scaled(made, "chat", 1)
    live(made, 500)
    made.settle(made.now + 100)  # however long ago one looked last
    scaled(made, "chat", 0)
    live(made, NODE_IDLE_SECONDS - 0.1)
    assert len(made.nodes) == 1
    live(made, 500)  # and nobody needs to look
    assert (len(made.nodes), made.ledger.accelerators) == (0, 0)
    assert made.ledger.accelerator_hours(inf) * 3600 == pytest.approx(8 * (600 + NODE_IDLE_SECONDS))


def test_a_node_that_is_used_again_is_empty_anew_afterwards() -> None:
    made = cluster()
    scaled(made, "chat", 1)
    live(made, 500)
    scaled(made, "chat", 0)
    live(made, 20)
    scaled(made, "chat", 1)
    live(made, 5)
    scaled(made, "chat", 0)
    live(made, NODE_IDLE_SECONDS - 0.1)
    assert len(made.nodes) == 1
    live(made, 0.1)
    assert len(made.nodes) == 0


def test_a_cluster_begins_with_everything_served() -> None:
    made = cluster(most_nodes=4)
    for service, replicas, gpus in (("a", 3, 1), ("b", 1, 8), ("c", 2, 4), ("d", 2, 2)):
        made.scale(manifest(service, gpus=gpus), replicas)
    made.begin()
    assert (made.now, made.next_due()) == (0.0, inf)
    assert all(pod.ready for pod in made.pods.values())
    assert len(engines(made).open) == 8
    assert made.ledger.nodes_started == len(made.nodes)


def test_a_cluster_begins_with_one_node_more_where_the_scheduler_packs_worse_than_was_reckoned() -> None:
    made = cluster()
    for service, gpus in (("three", 3), ("five", 5)):
        made.scale(manifest(service, gpus=gpus), 2)
    made.begin()
    assert all(pod.ready for pod in made.pods.values())
    assert made.ledger.nodes_started == len(made.nodes) == 3


# --- replicas


def test_a_replica_that_drains_holds_its_accelerators_until_it_is_idle_and_gets_nothing_new() -> None:
    made = cluster()
    scaled(made, "chat", 1, gpus=4)
    live(made, 200)
    name = pods(made)[0].name
    engines(made).busy.add(name)
    scaled(made, "chat", 0, gpus=4)
    scaled(made, "large", 1, gpus=8)
    live(made, 50)
    assert (pods(made)[0].deleting, pods(made)[0].ready, engines(made).open) == (True, False, set())
    assert pods(made, "large")[0].node is None
    assert made.ledger.held.draining == pytest.approx(4 * 50)
    engines(made).busy.clear()
    live(made, 5)
    assert (pods(made), pods(made, "large")[0].node) == ([], "h100-0001")


def test_a_drain_ends_when_its_time_is_over() -> None:
    made = cluster(drain_seconds=10)
    scaled(made, "chat", 1)
    live(made, 200)
    engines(made).busy.add(pods(made)[0].name)
    scaled(made, "chat", 0)
    live(made, 9.9)
    assert len(pods(made)) == 1
    live(made, 0.1)
    assert pods(made) == []


def test_replicas_without_a_node_go_first_then_the_cheapest_to_delete() -> None:
    made = cluster(most_nodes=1)
    scaled(made, "chat", 9)
    live(made, NODE_START_SECONDS)
    victim = pods(made)[2]
    made.carry_out(marked(victim, -1))
    scaled(made, "chat", 8)
    assert (victim.name in made.pods, len(pods(made))) == (True, 8)
    live(made, LOAD_SECONDS)
    scaled(made, "chat", 7)
    assert victim.name not in {pod.name for pod in pods(made) if not pod.deleting}


def test_losing_a_node_loses_what_ran_there_and_the_counts_are_restored() -> None:
    made = cluster()
    scaled(made, "chat", 10)
    live(made, 200)
    before = {pod.name for pod in pods(made)}
    made.kill_busiest_node("h100")
    made.reconcile()
    assert len([told for told in engines(made).told if told[0] == "stopped"]) == 8
    assert len(made.nodes) == 1
    live(made, NODE_START_SECONDS + LOAD_SECONDS)
    assert ready(made) == 10
    assert len(before & {pod.name for pod in pods(made)}) == 2


def test_a_crashed_replica_loads_again_where_it_was() -> None:
    made = cluster()
    scaled(made, "chat", 2)
    live(made, 200)
    oldest = pods(made)[0]
    made.crash_oldest("chat")
    made.reconcile()
    crashed = made.pods[oldest.name]
    assert (crashed.node, crashed.restarts, crashed.ready, len(pods(made))) == (oldest.node, 1, False, 2)
    live(made, LOAD_SECONDS)
    assert (ready(made), made.ledger.held.starting) == (2, pytest.approx((2 + 1) * LOAD_SECONDS))


def test_replicas_tell_how_long_their_start_took_and_no_other_start() -> None:
    made = cluster()
    scaled(made, "chat", 2)
    made.begin()
    assert [pod.took_seconds for pod in pods(made)] == [None, None], "they were there before the beginning"
    scaled(made, "chat", 3)
    live(made, LOAD_SECONDS + 1)
    assert sorted(pod.took_seconds or 0.0 for pod in pods(made)) == [0.0, 0.0, LOAD_SECONDS]
    for _ in pods(made):
        made.crash_oldest("chat")
    live(made, LOAD_SECONDS + 1)
    assert [pod.took_seconds for pod in pods(made)] == [None, None, None]


@pytest.mark.parametrize("service", ["nobody", "chat"])
def test_a_crash_or_a_loss_where_nothing_serves_is_no_event(service: str) -> None:
    made = cluster()
    scaled(made, "chat", 1)
    made.crash_oldest(service)
    made.kill_busiest_node("h100")
    made.kill_busiest_node("none")
    live(made, 200)
    assert ready(made) == 1


# --- actions of plans


def test_an_apply_that_rests_on_an_older_version_changes_nothing() -> None:
    made = cluster()
    first = Apply(**WHY, manifest=manifest(replicas=1), resource_version=None)
    made.carry_out(first)
    version = made.children[key_of(first.manifest)].resource_version
    made.carry_out(replace(first, manifest=manifest(replicas=2), resource_version=version))
    made.carry_out(replace(first, manifest=manifest(replicas=5), resource_version=version))
    gone = manifest("gone")
    made.carry_out(replace(first, manifest=gone, resource_version="1"))
    assert made.children[key_of(first.manifest)].body["spec"]["replicas"] == 2
    assert key_of(gone) not in made.children


def test_gated_pods_wait_and_go_where_they_were_nominated_while_there_is_room() -> None:
    made = cluster(gates=True)
    for _ in range(2):
        made.add_node("h100")
    scaled(made, "chat", 3)
    live(made, 10)
    assert {pod.node for pod in pods(made)} == {None}
    for pod, node in zip(pods(made), ("h100-0002", "h100-0007", None), strict=True):
        made.carry_out(placed(pod, node))
    made.reconcile()
    assert [pod.node for pod in pods(made)] == ["h100-0002"] * 3  # the fullest that fits, where the named one is not


def test_a_replica_that_was_shifted_out_serves_no_more_and_keeps_what_it_holds() -> None:
    made = cluster()
    scaled(made, "chat", 2)
    live(made, 200)
    moved = pods(made)[0]
    made.carry_out(shifted(moved, False))
    draining = made.ledger.held.draining
    live(made, 10)
    assert (engines(made).open, made.moves) == ({pods(made)[1].name}, 1)
    assert made.ledger.held.draining - draining == 10
    made.carry_out(shifted(moved, True))
    assert ready(made) == 2 == len(engines(made).open)


def test_a_replica_on_its_way_out_is_not_called_back() -> None:
    made = cluster()
    scaled(made, "chat", 1)
    live(made, 200)
    engines(made).busy.add(pods(made)[0].name)
    scaled(made, "chat", 0)
    made.carry_out(shifted(pods(made)[0], True))
    assert (ready(made), engines(made).open) == (0, set())


def test_who_loses_its_deployment_goes() -> None:
    made = cluster()
    scaled(made, "chat", 2)
    live(made, 200)
    made.carry_out(deleted(key_of(manifest())))
    live(made, 1)
    assert pods(made) == []


def test_a_plan_for_a_pod_that_is_gone_changes_nothing() -> None:
    made = cluster()
    scaled(made, "chat", 1)
    live(made, 200)
    gone = replace(pods(made)[0], name="gone")
    made.carry_out(shifted(gone, True))
    made.carry_out(marked(gone, 1))
    made.carry_out(placed(gone, "h100-0001"))
    made.carry_out(deleted(ObjectKey("Service", "default", "gone")))
    live(made, 1)
    assert ready(made) == 1


# --- whatever happens


@dataclass(frozen=True, slots=True)
class Scale:
    gpus: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Wait:
    seconds: float


@dataclass(frozen=True, slots=True)
class Toggle:
    """One of the pods gets work or is done; is shifted out or back; is let through its gate."""

    what: str
    index: int


@dataclass(frozen=True, slots=True)
class Fail:
    what: str


Deed = Scale | Wait | Toggle | Fail

deeds = st.lists(
    st.one_of(
        st.builds(Scale, st.sampled_from([1, 2, 4, 8]), st.integers(0, 6)),
        st.builds(Scale, st.sampled_from([1, 2, 4, 8]), st.integers(0, 6)),
        st.builds(Wait, st.sampled_from([0.0, 0.5, 5.0, 31.0, 120.0])),
        st.builds(Wait, st.sampled_from([0.0, 0.5, 5.0, 31.0, 120.0])),
        st.builds(Toggle, st.sampled_from(["work", "serving", "gate", "gate"]), st.integers(0, 30)),
        st.builds(Fail, st.sampled_from(["node", "crash"])),
    ),
    max_size=30,
)


def do(made: Cluster, deed: Deed) -> None:
    match deed:
        case Scale():
            scaled(made, f"s{deed.gpus}", deed.replicas, gpus=deed.gpus)
        case Fail("node"):
            made.kill_busiest_node("h100")
            made.reconcile()
        case Fail():
            made.crash_oldest("s1")
            made.reconcile()
        case Toggle() if made.pods:
            toggle(made, deed.what, list(made.pods.values())[deed.index % len(made.pods)])
            made.reconcile()


def toggle(made: Cluster, what: str, pod: Pod) -> None:
    if what == "work":
        engines(made).busy ^= {pod.name}
    elif what == "gate" and pod.gated:
        made.carry_out(placed(pod, "h100-0001"))
    elif what == "serving" and not pod.gated:
        made.carry_out(shifted(pod, pod.serving is False))


def state(pod: Pod) -> str:
    if pod.deleting or pod.serving is False:
        return "draining"
    return "ready" if pod.ready else "starting"


class Bookkeeper:
    """Counts accelerator-seconds for itself, from what can be seen between two stops."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def live(self, made: Cluster, seconds: float) -> None:
        until = made.now + seconds
        while made.now < until:
            stop = min(until, max(made.now, made.next_due()))
            self._lasts(made, stop - made.now)
            made.settle(stop)

    def _lasts(self, made: Cluster, seconds: float) -> None:
        held: Counter[str] = Counter()
        for pod in made.pods.values():
            if pod.node is not None:
                held[state(pod)] += sum(pod.accelerators.values())
        used = {pod.node for pod in made.pods.values()}
        on_used = sum(sum(node.allocatable.values()) for node in made.nodes if node.name in used)
        held["free_on_used_nodes"] = on_used - held.total()
        held["on_empty_nodes"] = made.ledger.accelerators - on_used
        for part, count in held.items():
            self.seconds[part] += seconds * count  # type: ignore[assignment]


@settings(max_examples=150)
@given(deeds, st.booleans(), st.booleans())
def test_whatever_happens_accelerators_are_held_once_and_billed_to_the_second(
    then: list[Deed], gates: bool, whole_nodes: bool
) -> None:
    made, books = cluster(most_nodes=3, gates=gates, whole_nodes=whole_nodes), Bookkeeper()
    for deed in then:
        if isinstance(deed, Wait):
            books.live(made, deed.seconds)
        do(made, deed)
        check(made, books)


def check(made: Cluster, books: Bookkeeper) -> None:
    nodes = {node.name: sum(node.allocatable.values()) for node in made.nodes}
    held: Counter[str] = Counter()
    for pod in made.pods.values():
        if pod.node is not None:
            held[pod.node] += sum(pod.accelerators.values())
    assert all(count <= nodes[name] for name, count in held.items())
    assert made.ledger.accelerators <= 3 * 8
    coming = {name: span for name, span in made.ledger.spans.items() if name not in nodes}
    assert nodes.keys() <= made.ledger.spans.keys()
    assert all(made.now <= span.start + NODE_START_SECONDS for span in coming.values())
    assert engines(made).alive == {pod.name for pod in made.pods.values() if pod.containers_ready}
    assert engines(made).open == {pod.name for pod in made.pods.values() if pod.ready}
    assert not any(pod.ready for pod in made.pods.values() if pod.deleting or pod.gated or pod.serving is False)
    assert made.ledger.held.existing == pytest.approx(made.ledger.accelerator_hours(made.now) * 3600)
    for part in ("ready", "starting", "draining", "free_on_used_nodes", "on_empty_nodes"):
        assert getattr(made.ledger.held, part) == pytest.approx(books.seconds[part]), part


@settings(max_examples=60)
@given(deeds)
def test_once_left_alone_every_replica_that_fits_serves_and_no_node_is_empty(then: list[Deed]) -> None:
    made = cluster(most_nodes=3)
    for deed in then:
        live(made, deed.seconds) if isinstance(deed, Wait) else do(made, deed)
    engines(made).busy.clear()
    live(made, 1000)
    waiting = [pod for pod in made.pods.values() if pod.node is None]
    assert all(pod.containers_ready for pod in made.pods.values() if pod.node is not None)
    assert {node.name for node in made.nodes} == {pod.node for pod in made.pods.values()} - {None}
    assert not waiting or made.ledger.accelerators == 3 * 8
