"""How counts change without dropping a request."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.support.build import VARIANT, make_deployment, make_node, make_pod, make_service, make_snapshot
from tests.support.world import World
from tokenservice.core.facts import Facts, surge
from tokenservice.core.model import Json, Pod, Reason, SetDeletionCost, SetServing
from tokenservice.core.names import SURGE_ANNOTATION
from tokenservice.core.repack import LEAVING, VICTIM
from tokenservice.core.rollout import Step, step

CHAT = make_service("chat")


def next_step(
    pods: list[Pod],
    current: int,
    wanted: int,
    *,
    status: dict[str, Any] | None = None,
    annotations: dict[str, str] | None = None,
    strategy: Json | None = None,
    **facts: Any,
) -> Step:
    deployment = make_deployment(CHAT, current, annotations=annotations, **(status or {}))
    if strategy is not None:
        spec = {**deployment.body["spec"], "strategy": strategy}
        deployment = replace(deployment, body={**deployment.body, "spec": spec})
    snapshot = make_snapshot(CHAT, pods=tuple(pods), deployments=[deployment], **facts)
    return step(Facts(snapshot), CHAT.key, VARIANT, wanted, deployment)


def test_more_replicas_come_at_once() -> None:
    assert next_step([make_pod("a")], 1, 4).replicas == 4


def test_the_first_replicas_need_no_deployment() -> None:
    got = step(Facts(make_snapshot(CHAT)), CHAT.key, VARIANT, 2, None)
    assert (got.replicas, got.reason) == (2, Reason.CREATED)


def test_scale_in_marks_the_victim_before_it_lowers_the_count() -> None:
    got = next_step([make_pod("a", node="n1"), make_pod("b", node="n1"), make_pod("c", node="n2")], 3, 2)
    assert got.replicas == 2
    assert [(a.pod.name, a.cost) for a in got.before if isinstance(a, SetDeletionCost)] == [("c", VICTIM)]


def test_old_marks_are_taken_off_those_that_stay() -> None:
    pods = [make_pod("a", node="n1", deletion_cost=VICTIM), make_pod("b", node="n1"), make_pod("c", node="n2")]
    costs = {a.pod.name: a.cost for a in next_step(pods, 3, 2).before if isinstance(a, SetDeletionCost)}
    assert costs.get("a", VICTIM) == VICTIM
    assert "b" not in costs


def test_scale_in_waits_while_a_replica_that_would_stay_is_not_ready() -> None:
    got = next_step([make_pod("a"), make_pod("b"), make_pod("c", ready=False)], 3, 1)
    assert (got.replicas, got.reason) == (3, Reason.HOLDING)


def test_replicas_that_never_served_may_go_though_others_are_not_ready() -> None:
    got = next_step([make_pod("a"), make_pod("b", node=None), make_pod("c", node=None)], 3, 1)
    assert got.replicas == 1


def test_replicas_that_the_cluster_refuses_do_not_hold_up_the_scale_in() -> None:
    """They never came to be, so that there are fewer than asked for however long one waits."""
    refused = {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]}
    pods = [make_pod("a"), make_pod("b")]
    assert next_step(pods, 3, 1).reason is Reason.HOLDING
    assert next_step(pods, 3, 1, status=refused).replicas == 2
    assert next_step(pods, 2, 1, status=refused).replicas == 1


def test_scale_in_waits_for_a_rollout() -> None:
    got = next_step([make_pod("a"), make_pod("b")], 2, 1, status={"updatedReplicas": 1})
    assert (got.replicas, got.reason) == (2, Reason.ROLLING_OUT)


def rolled(serving: int, homeless: int, old: int = 1, **changes: Any) -> Step:
    """Three are wanted of a Deployment that rolls out; some of its new replicas find no room."""
    pods = [make_pod(f"new-{number}", template_hash="b") for number in range(serving)]
    pods += [make_pod(f"old-{number}", template_hash="a") for number in range(old)]
    pods += [
        make_pod(f"waits-{number}", node=None, unschedulable=True, template_hash="b") for number in range(homeless)
    ]
    current = changes.pop("current", len(pods) - 1)  # its surge
    status = {"updatedReplicas": current - 1} | changes.pop("status", {})
    return next_step(pods, current, 3, status=status, **changes)


def test_replicas_that_find_no_room_and_a_rollout_do_not_wait_for_each_other_for_ever() -> None:
    """The rollout waits for all that are asked for, however few are wanted: so they go, one by one."""
    got = rolled(6, 8)
    assert (got.replicas, got.reason, got.before) == (13, Reason.SCALED_DOWN, ())
    assert rolled(6, 1, current=8).replicas == 7
    assert rolled(6, 0).reason is Reason.ROLLING_OUT


def test_of_a_rollout_only_what_has_no_node_is_taken_back() -> None:
    assert rolled(6, 8, status={"observedGeneration": 0}).reason is Reason.ROLLING_OUT, "the last is not seen to go"
    assert rolled(6, 8, current=16).reason is Reason.ROLLING_OUT, "some that are asked for are yet to come"
    assert rolled(6, 2, old=8).reason is Reason.ROLLING_OUT, "as many of both: the older would be taken from"
    assert rolled(6, 2, old=9).reason is Reason.ROLLING_OUT, "the larger ReplicaSet has a node for each"
    assert rolled(6, 8, stale_kinds=("pods",)).reason is Reason.STALE_VIEW


def test_where_one_may_be_missed_a_rollout_waits_for_no_room_that_nobody_wants() -> None:
    """Three of the old version serve, as many as are wanted; of the new one none finds room."""
    rolling = {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 1}}
    assert rolled(0, 2, old=3, current=4).reason is Reason.ROLLING_OUT
    assert rolled(0, 2, old=3, current=4, strategy=rolling).replicas == 3
    assert rolled(0, 3, old=2, current=4, strategy={"rollingUpdate": {"maxUnavailable": 0}}).replicas == 3
    assert rolled(0, 3, old=3, current=4, strategy=rolling).replicas == 3
    short = rolled(0, 2, old=2, current=4, strategy=rolling)
    assert short.reason is Reason.ROLLING_OUT, "one is missed already"


def test_nothing_is_removed_on_a_stale_view() -> None:
    got = next_step([make_pod("a"), make_pod("b")], 2, 1, stale_kinds=("pods",))
    assert (got.replicas, got.reason) == (2, Reason.STALE_VIEW)


def test_a_leaving_pod_is_replaced_before_it_goes() -> None:
    leaving = make_pod("old", node="n1", deletion_cost=LEAVING)
    surge = next_step([leaving], 1, 1)
    assert (surge.replicas, surge.before) == (2, ())

    starting = next_step([leaving, make_pod("new", node="n2", ready=False)], 2, 1)
    assert (starting.replicas, starting.before) == (2, ())

    shift = next_step([leaving, make_pod("new", node="n2")], 2, 1)
    assert shift.replicas == 2
    assert [(a.pod.name, a.serving) for a in shift.before if isinstance(a, SetServing)] == [("old", False)]

    shifted = make_pod("old", node="n1", deletion_cost=LEAVING, serving=False, ready=False)
    assert next_step([shifted, make_pod("new", node="n2")], 2, 1).replicas == 1


def test_who_need_not_go_any_more_serves_again() -> None:
    """Taken out of the endpoints before the node was uncordoned, or the move given up, while demand rose."""
    back = make_pod("old", node="n1", serving=False, ready=False)
    pods = [back, make_pod("a", node="n2"), make_pod("b", node="n2")]
    for current, wanted in ((3, 3), (3, 4)):
        got = [action for action in next_step(pods, current, wanted).before if isinstance(action, SetServing)]
        assert [(action.pod.name, action.serving) for action in got] == [("old", True)]
    leaves, starts = replace(back, deletion_cost=LEAVING), replace(back, node=None, gated=True)
    for pod, wanted in ((back, 2), (leaves, 3), (starts, 3)):  # not missed; still to go; not there yet
        got = next_step([pod, *pods[1:]], 3, wanted)
        assert [action for action in got.before if isinstance(action, SetServing)] == []


def test_a_replica_that_stands_in_for_another_is_not_taken_for_one_that_is_wanted() -> None:
    """Else the count would rise by one at each wait: what is not surge counts as asked for."""
    leaving = make_pod("old", node="n1", deletion_cost=LEAVING, serving=False, ready=False)
    pods = [leaving, make_pod("a", node="n2"), make_pod("b", node="n2")]
    marks = {SURGE_ANNOTATION: "1"}
    for waits in ({"stale_kinds": ("nodes",)}, {"status": {"updatedReplicas": 1}}):
        got = next_step(pods, 3, 2, annotations=marks, **waits)
        assert (got.replicas, got.surge) == (3, 1)
    unready = [make_pod(name, node="n2", ready=name != "d") for name in "abcd"]
    got = next_step(unready, 4, 2, annotations=marks)
    assert (got.replicas, got.surge, got.reason) == (4, 1, Reason.HOLDING)


def test_what_others_write_of_a_surge_is_no_count() -> None:
    for text, count in {"2": 2, "-1": 0, "many": 0, "9" * 5000: 0, "": 0}.items():
        deployment = make_deployment(CHAT, 3, annotations={SURGE_ANNOTATION: text})
        assert surge(deployment) == count


def test_a_pod_without_our_readiness_gate_leaves_without_a_shift() -> None:
    leaving = make_pod("old", node="n1", deletion_cost=LEAVING, serving=None)
    assert next_step([leaving, make_pod("new", node="n2")], 2, 1).replicas == 1


def test_a_cordoned_node_triggers_a_surge() -> None:
    nodes = (make_node("n1", cordoned=True), make_node("n2"))
    assert next_step([make_pod("a", node="n1")], 1, 1, nodes=nodes).replicas == 2


def test_replicas_that_never_found_room_can_be_taken_back() -> None:
    """Not every replica is ready, and never will be: those without a node go first, whatever the ReplicaSet holds."""
    fixed = make_service("chat", replicas=20)
    made = World(services=[fixed], nodes=[make_node("n1")])
    made.run(8)
    assert made.serving(fixed.key) == 8
    made.services = [replace(made.services[0], spec=make_service("chat", replicas=3).spec, generation=2)]
    made.run(6)
    assert made.serving(fixed.key) == 3
    assert len(made.pods) == 3
