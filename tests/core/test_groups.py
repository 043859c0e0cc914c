"""Replicas that no node holds: what is rendered for them, how they are placed, counted and left alone.

The files `leader-worker-set-*.yaml` in `golden` hold them whole, to be read; `python -m tests.core.test_groups` writes
them anew.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.core.rendering import ACROSS_NODES, SETTINGS, SPECS, make_variant, spec_of
from tests.support.build import (
    H100,
    MODEL,
    NOW,
    make_metrics,
    make_node,
    make_pod,
    make_service,
    make_snapshot,
    make_spec,
)
from tests.support.pod_security import violations
from tests.support.world import World
from tokenservice.api.token_fleet import NamespaceLimit, TokenFleetSpec
from tokenservice.api.token_service import Architecture
from tokenservice.core.decide import decide
from tokenservice.core.engines import command
from tokenservice.core.facts import Facts, rolling_out
from tokenservice.core.groups import joined, ordinal
from tokenservice.core.manifests import children
from tokenservice.core.memo import Memo
from tokenservice.core.model import Apply, Child, Delete, Json, ObjectKey, Place, Pod, Reason, ServiceKey, SetServing
from tokenservice.core.moves import departures
from tokenservice.core.names import VARIANT_LABEL, group_set_name
from tokenservice.core.packing import Yard
from tokenservice.core.rollout import step
from tokenservice.core.room import rooms
from tokenservice.core.variants import candidates

GOLDEN = Path(__file__).parent / "golden"
LLAMA = Architecture(parameters=8_030_000_000, layers=32, heads=32, kv_heads=8, head_dim=128)
LARGE = {"name": "vLLM", "tensorParallelSize": 8, "pipelineParallelSize": 2}
CHAT = make_service("chat", engine=LARGE)
VARIANT = "h100-vllm-tp8pp2-bf16"
SET = f"chat-{VARIANT}"


def rendered(which: str, **spec: Any) -> dict[str, Json]:
    service = make_service(**spec) if spec else replace(make_service(), spec=spec_of("the least one can say"))
    found = children(service, [(ACROSS_NODES[which], 2)], SETTINGS, needed=1, fleet=TokenFleetSpec())
    return {manifest["kind"]: manifest for manifest in found}


def golden(which: str) -> Path:
    return GOLDEN / f"leader-worker-set-{ACROSS_NODES[which].engine.lower()}.yaml"


def templates(manifests: dict[str, Json]) -> tuple[Json, Json]:
    groups = manifests["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
    return groups["leaderTemplate"], groups["workerTemplate"]


def container(template: Json) -> Json:
    (found,) = template["spec"]["containers"]
    return dict(found)


def world(*services: Any, nodes: int = 4, there: bool = True, rate: float = 0.1, **changes: Any) -> World:
    made = World(services=list(services or (CHAT,)), nodes=[make_node(f"n{i}") for i in range(1, nodes + 1)], **changes)
    made.extra = {"architectures": {MODEL: LLAMA}, "leader_worker_sets": there}
    made.metrics = {service.key: make_metrics(rate, engines_reporting=1000) for service in made.services}
    return made


def stalled(made: World) -> Json:
    return next(it for it in made.services[0].status["conditions"] if it["type"] == "Stalled")


# --- which ways there are


def ways(engine: Json, *, groups: bool) -> list[str]:
    found, _ = candidates(make_spec(engine=engine), (H100,), (), {MODEL: LLAMA}, groups=groups)
    return [variant.name for variant in found]


def test_a_replica_spans_nodes_where_none_holds_it_and_the_api_is_there() -> None:
    assert ways(LARGE, groups=True) == [VARIANT]
    assert ways(LARGE, groups=False) == []


def test_a_replica_stays_within_a_node_that_holds_it() -> None:
    found = ways({"name": "vLLM", "pipelineParallelSize": 2}, groups=True)
    assert found == ["h100-vllm-tp1-bf16", "h100-vllm-tp2-bf16", "h100-vllm-tp4-bf16"]


def test_tensor_parallelism_never_leaves_its_node() -> None:
    _, (told,) = candidates(
        make_spec(engine=LARGE | {"tensorParallelSize": 16}),
        (H100,),
        (),
        {MODEL: LLAMA},
        groups=True,
    )
    assert told.reason is Reason.TENSOR_PARALLEL_TOO_LARGE


def test_a_replica_costs_what_all_of_its_nodes_cost() -> None:
    variant = make_variant(tp=8, pp=2)
    assert (variant.pods, variant.accelerators_per_pod, variant.accelerators) == (2, 8, 16)
    assert variant.price_per_hour == pytest.approx(16 * H100.spec.price_per_hour)


def test_adapters_at_run_time_reach_the_leader_alone_so_they_are_refused() -> None:
    model = {"uri": f"hf://{MODEL}", "runtimeAdapters": {}}
    made = world(make_service("chat", model=model, engine=LARGE))
    made.round()
    assert "spec.model.runtimeAdapters: replicas that span nodes" in stalled(made)["message"]
    assert not made.children


# --- without the API


def test_without_the_api_the_service_is_stalled_with_the_way_out_and_with_it_serves() -> None:
    made = world(there=False)
    made.run(3)
    assert not made.children
    assert (stalled(made)["status"], stalled(made)["reason"]) == ("True", "NoLeaderWorkerSet")
    assert "install it (https://lws.sigs.k8s.io" in stalled(made)["message"]
    made.extra["leader_worker_sets"] = True
    made.run(8)
    assert stalled(made)["status"] == "False"
    assert made.serving(CHAT.key) == 1


def test_a_decision_that_remembers_the_last_one_notices_the_api_as_well() -> None:
    made, memo = world(there=False), Memo()
    kinds = []
    for there in (False, True, False):
        made.extra["leader_worker_sets"] = there
        actions = decide(made.snapshot(), made.now, memo).actions
        kinds.append(any(isinstance(it, Apply) and it.manifest["kind"] == "LeaderWorkerSet" for it in actions))
    assert kinds == [False, True, False]


def test_other_services_never_notice_that_the_api_is_missing() -> None:
    small = make_service("small")
    made = world(CHAT, small, there=False)
    made.run(8)
    assert made.serving(small.key) == 1


# --- what is rendered


@pytest.mark.parametrize("which", ACROSS_NODES)
def test_the_golden_files_hold_what_is_rendered(which: str) -> None:
    assert yaml.safe_load(golden(which).read_text()) == rendered(which)["LeaderWorkerSet"]


@pytest.mark.parametrize("which", ACROSS_NODES)
def test_each_pod_asks_for_its_stage_and_the_leader_alone_is_reached(which: str) -> None:
    manifests = rendered(which)
    variant = ACROSS_NODES[which]
    spec = manifests["LeaderWorkerSet"]["spec"]
    assert spec["leaderWorkerTemplate"]["size"] == variant.pipeline_parallel_size
    leader, worker = map(container, templates(manifests))
    for one in (leader, worker):
        assert one["resources"]["limits"][variant.accelerator.spec.resource_name] == "8"
        assert one["image"] == leader["image"]
    assert {port["name"] for port in leader["ports"]} == {manifests["Service"]["spec"]["ports"][0]["targetPort"]}
    asked = {"startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "ports"}
    assert asked <= set(leader)
    assert not asked & set(worker)


@pytest.mark.parametrize("case", SPECS)
@pytest.mark.parametrize("which", ACROSS_NODES)
def test_pods_of_groups_are_as_confined_as_others(case: str, which: str) -> None:
    service = replace(make_service(), spec=spec_of(case))
    found = children(service, [(ACROSS_NODES[which], 2)], SETTINGS, needed=1, fleet=TokenFleetSpec())
    for template in templates({manifest["kind"]: manifest for manifest in found}):
        assert violations(template["spec"]) == ()
        assert template["spec"]["automountServiceAccountToken"] is False
        assert template["metadata"]["labels"]["taas.dev/service"] == "chat"


def test_vllm_is_told_its_rank_and_its_leader() -> None:
    variant, key = make_variant(tp=8, pp=2), ServiceKey("default", "chat")
    leader, worker = (command(make_spec(), variant, key, worker=it).args for it in (False, True))
    shared = ("--nnodes 2", "--master-addr $(LWS_LEADER_ADDRESS)", "--distributed-executor-backend mp")
    for args, own in ((leader, "--node-rank 0"), (worker, "--node-rank $(LWS_WORKER_INDEX)")):
        assert all(words in " ".join(args) for words in (*shared, own))
    assert "--headless" in worker
    assert "--headless" not in leader


def test_sglang_is_told_its_rank_and_its_leader() -> None:
    variant, key = make_variant("SGLang", tp=8, pp=2), ServiceKey("default", "chat")
    leader, worker = (" ".join(command(make_spec(), variant, key, worker=it).args) for it in (False, True))
    assert "--nnodes 2 --node-rank 0 --dist-init-addr $(LWS_LEADER_ADDRESS):29500" in leader
    assert "--nnodes 2 --node-rank $(LWS_WORKER_INDEX) --dist-init-addr $(LWS_LEADER_ADDRESS):29500" in worker


def test_what_users_write_cannot_read_the_variables_of_the_group() -> None:
    spec = make_spec(engine={"name": "vLLM", "extraArgs": ["--seed", "$(LWS_WORKER_INDEX)"]})
    args = command(spec, make_variant(tp=8, pp=2), ServiceKey("default", "chat")).args
    assert args[-1] == "$$(LWS_WORKER_INDEX)"


def test_pods_of_a_service_reach_each_other_only_where_they_form_groups() -> None:
    own = [{"podSelector": {"matchLabels": {"taas.dev/service": "chat"}}}]
    policy = rendered("vLLM on two nodes of eight H100")["NetworkPolicy"]["spec"]
    assert {"from": own} in policy["ingress"]
    assert {"to": own} in policy["egress"]
    assert any({"port": 53, "protocol": "UDP"} in rule.get("ports", ()) for rule in policy["egress"])
    alone = children(make_service(), [(make_variant(), 2)], SETTINGS, needed=1, fleet=TokenFleetSpec())
    assert "podSelector': {'matchLabels': {'taas.dev/service'" not in str(alone[2]["spec"]["ingress"])


def test_a_claim_offline_still_finds_its_leader_by_name() -> None:
    policy = rendered("vLLM on two nodes of eight H100", model={"uri": "pvc://weights/large"})["NetworkPolicy"]["spec"]
    assert [rule.get("ports", "own") for rule in policy["egress"]] == [
        [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
        "own",
    ]


def test_of_each_replica_that_may_go_only_one_pod_is_evicted() -> None:
    """Two replicas of three pods, one needed: after one eviction its group is gone, and no further one may go."""
    budget = rendered("SGLang on three nodes of eight MI300X")["PodDisruptionBudget"]["spec"]
    assert budget["minAvailable"] == 5


def test_names_leave_room_for_what_is_named_after_them() -> None:
    """A worker's StatefulSet is named after its leader, and its revision stands in a label."""
    name = group_set_name("s" * 40, "a-very-long-accelerator-vllm-tp8pp16-mxfp4")
    assert len(f"{name}-9999-0123456789") <= 63


# --- how they are seen


def group(name: str, nodes: tuple[str | None, ...], *, index: int = 0, **leader: Any) -> list[Pod]:
    first = f"{name}-{index}"
    pods = [
        make_pod(first if n == 0 else f"{first}-{n}", node=node, gpus=8, variant=VARIANT, group=first, worker=n > 0)
        for n, node in enumerate(nodes)
    ]
    return [replace(pods[0], **leader), *pods[1:]]


def test_a_replica_is_its_leader_and_holds_what_its_workers_hold() -> None:
    pods = tuple(group("set", ("n1", "n2")) + group("set", ("n3", "n4"), index=1, ready=False))
    facts = Facts(make_snapshot(CHAT, pods=pods, nodes=tuple(make_node(f"n{i}") for i in range(1, 5))))
    assert [pod.name for pod in facts.pods_of(CHAT.key)] == ["set-0", "set-1"]
    assert facts.ready(CHAT.key) == 1
    assert [room.free["nvidia.com/gpu"] for room in facts.rooms.values()] == [0, 0, 0, 0]
    tenancies = facts.tenancies
    assert [tenancies[f"n{i}"].ready for i in range(1, 5)] == [8, 8, 0, 0]
    assert [tenancies[f"n{i}"].starting for i in range(1, 5)] == [0, 0, 8, 8]


def test_what_keeps_a_worker_from_running_is_said_of_its_replica() -> None:
    leader, worker = group("set", ("n1", None))
    waits = replace(worker, unschedulable=True, failure="engine ended with 1", ready=False)
    seen = joined((waits, leader))
    assert [pod.name for pod in seen] == ["set-0-1", "set-0"]
    assert (seen[1].unschedulable, seen[1].failure) == (True, "engine ended with 1")


def test_pods_without_groups_are_left_as_they_are() -> None:
    pods = (make_pod("a"), make_pod("b"))
    assert joined(pods) is pods


@pytest.mark.parametrize(("name", "place"), [("set-0", 0), ("set-of-2-11", 11), ("odd", 0)])
def test_the_place_of_a_group_in_its_set(name: str, place: int) -> None:
    assert ordinal(make_pod(name)) == place


# --- how they are placed


def test_a_group_finds_room_for_all_of_it_or_for_none() -> None:
    """On three nodes, one after the other in age: leaders first would leave each of two groups with a half."""
    pods = [replace(pod, node=None) for i in (0, 1) for pod in group("set", (None, None), index=i)]
    youngest_last = [replace(pod, created_at=float(pod.worker)) for pod in pods]
    nodes = [make_node(f"n{i}") for i in range(1, 4)]
    found = Yard(rooms(nodes, ()).values(), lambda _pod, _room: True).place(youngest_last)
    assert [found[f"uid-set-0{rank}"] is not None for rank in ("", "-1")] == [True, True]
    assert [found[f"uid-set-1{rank}"] for rank in ("", "-1")] == [None, None]


def test_room_is_kept_for_workers_that_are_yet_to_come() -> None:
    """The leader is there alone for a moment; what else asks for a node meanwhile may not take its worker's."""
    large = make_service("chat", created_at=1.0, engine=LARGE, tier="Guaranteed")
    small = make_service("small", created_at=0.0, scaling={"minReplicas": 1})
    made = world(large, small, nodes=2)
    made.round(0.0)
    made.pods = {name: pod for name, pod in made.pods.items() if not pod.worker}
    placed = {a.pod.name: a.node for a in decide(made.snapshot(), made.now).actions if isinstance(a, Place)}
    assert placed[f"{SET}-0"] is not None
    assert [node for name, node in placed.items() if name.startswith("small")] in ([], [None])


# --- a life


def test_a_group_is_made_placed_and_serves_and_silence_follows() -> None:
    made = world(nodes=3)
    made.run(10)
    assert {key.kind for key in made.children} >= {"LeaderWorkerSet", "Service", "PodDisruptionBudget"}
    assert "Deployment" not in {key.kind for key in made.children}
    assert made.serving(CHAT.key) == 1
    assert len({pod.node for pod in made.pods.values()}) == len(made.pods) == 2
    status = made.services[0].status
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)
    made.run(25)
    for plan in made.run(10):
        assert (plan.actions, plan.statuses, plan.events) == ((), (), ())


def test_groups_scale_with_demand_and_the_last_ones_go() -> None:
    made = world(nodes=6)
    made.services = [make_service("chat", engine=LARGE, replicas=3)]
    made.run(30)
    assert made.serving(CHAT.key) == 3
    assert made.children[ObjectKey("PodDisruptionBudget", "default", "chat")].body["spec"]["minAvailable"] == 4
    assert [plan.actions for plan in made.run(3)] == [(), (), ()]
    made.services = [make_service("chat", engine=LARGE, replicas=1)]
    made.run(6)
    assert sorted(made.pods) == [f"{SET}-0", f"{SET}-0-1"]


def test_the_price_of_a_group_is_that_of_all_of_its_pods() -> None:
    made = world(nodes=2)
    made.run(20)
    cost = made.round().metrics["service_dollars_per_million_tokens"]
    per_hour = 16 * H100.spec.price_per_hour
    assert cost[(("namespace", "default"), ("service", "chat"))] == pytest.approx(per_hour / 3600 / 20 * 1e6, rel=0.01)


def test_of_replicas_that_span_nodes_one_at_most_waits_for_room() -> None:
    made = world(nodes=3)
    made.services = [make_service("chat", engine=LARGE, replicas=4)]
    made.run(12)
    (child,) = (child for key, child in made.children.items() if key.kind == "LeaderWorkerSet")
    assert child.body["spec"]["replicas"] == 2
    for number in range(5):
        made.add_node(make_node(f"m{number}"))
    made.run(12)
    assert made.serving(CHAT.key) == 4


def test_a_namespaces_limit_counts_the_accelerators_of_workers() -> None:
    made = world(nodes=6)
    limit = NamespaceLimit(name="default", max_accelerators=40)
    made.extra["fleet"] = TokenFleetSpec(namespaces=(limit,))
    made.services = [make_service("chat", engine=LARGE, replicas=6)]
    made.run(12)
    assert sum(sum(pod.accelerators.values()) for pod in made.pods.values()) == 32
    broken = replace(make_service("chat", engine=LARGE), spec=None, error="unreadable")
    other = make_service("other", created_at=9.0, replicas=20)
    made.services = [broken, other]
    made.run(6)
    assert sum(sum(pod.accelerators.values()) for pod in made.pods.values()) == 40


def test_a_cordoned_node_moves_no_group_and_shifts_no_request() -> None:
    """A successor would be the last of its set, and the first to go again."""
    made = world(nodes=4)
    made.run(12)
    held = {pod.node for pod in made.pods.values()}
    made.nodes = [replace(node, schedulable=node.name not in held) for node in made.nodes]
    before = len(made.history)
    made.run(20)
    assert not [action for action in made.history[before:] if isinstance(action, SetServing | Apply | Delete)]
    assert made.serving(CHAT.key) == 1


def test_a_node_that_holds_a_part_of_a_group_is_never_emptied() -> None:
    made = world(make_service("chat", engine=LARGE | {"tensorParallelSize": 4, "pipelineParallelSize": 3}), nodes=3)
    made.run(12)
    before = len(made.history)
    made.run(400, 30.0)
    assert len(made.history) == before


@pytest.mark.parametrize(("kind", "emptied"), [("Deployment", True), ("LeaderWorkerSet", False)])
def test_consolidation_takes_pods_of_deployments_only(kind: str, emptied: bool) -> None:
    """Each of two nodes is half empty, so that what is on one would fit onto the other."""
    pods = [
        make_pod(f"set-{i}", node=f"n{i + 1}", gpus=4, variant=VARIANT, group=f"set-{i}" * (kind != "Deployment"))
        for i in (0, 1)
    ]
    live = make_set(2, kind=kind, observedGeneration=1, updatedReplicas=2)
    facts = Facts(make_snapshot(CHAT, pods=tuple(pods), deployments=[live]))
    found = departures(facts, {CHAT.key: {VARIANT}}, {CHAT.key: ()}, {}, NOW)
    assert bool(found.proposals) is emptied


def test_the_change_to_a_replica_within_a_node_cuts_nothing() -> None:
    made = world(nodes=4)
    made.run(12)
    made.services = [make_service("chat", engine={"name": "vLLM", "tensorParallelSize": 8})]
    for _ in range(12):
        made.round()
        assert made.serving(CHAT.key) >= 1
        kinds = {key.kind for key in made.children}
        policy = made.children[ObjectKey("NetworkPolicy", "default", "chat")].body["spec"]
        groups = any("podSelector" in str(rule.get("to")) for rule in policy.get("egress", ()))
        assert groups or "LeaderWorkerSet" not in kinds, "half a group is cut off from the other"
    assert "LeaderWorkerSet" not in kinds


# --- one step


def make_set(replicas: int, *, kind: str = "LeaderWorkerSet", **status: Any) -> Child:
    body = {
        "kind": kind,
        "metadata": {"name": "set", "namespace": "default", "labels": {VARIANT_LABEL: VARIANT}},
        "spec": {"replicas": replicas},
        "status": status,
    }
    key = ObjectKey(kind, "default", "set")
    return Child(key=key, uid="u", resource_version="1", owner=CHAT.key, body=body)


UPDATES = {"conditions": [{"type": "UpdateInProgress", "status": "True"}]}
STEPS: dict[str, tuple[int, int, list[bool], Json, tuple[int, Reason]]] = {
    # from, to, readiness by place, status: replicas, reason
    "the last of those that all serve goes": (3, 2, [True, True, True], {}, (2, Reason.SCALED_DOWN)),
    "one that serves stays while an earlier one does not": (3, 2, [True, False, True], {}, (3, Reason.HOLDING)),
    "one that does not serve goes whatever the others do": (3, 2, [True, False, False], {}, (2, Reason.SCALED_DOWN)),
    "one that never came goes": (3, 2, [True, True], {}, (2, Reason.SCALED_DOWN)),
    "a rollout is waited for": (3, 2, [True, True, True], UPDATES, (3, Reason.ROLLING_OUT)),
    "more come at once, in a rollout too": (1, 3, [True], UPDATES, (3, Reason.SCALED_UP)),
    "as many as there are": (2, 2, [True, False], {}, (2, Reason.STEADY)),
}


@pytest.mark.parametrize("case", STEPS)
def test_the_next_step_of_a_set(case: str) -> None:
    current, wanted, ready, status, want = STEPS[case]
    pods = [pod for i, it in enumerate(ready) for pod in group("set", ("n1", "n2"), index=i, ready=it)]
    live = make_set(current, **status)
    got = step(Facts(make_snapshot(CHAT, pods=tuple(pods), deployments=[live])), CHAT.key, VARIANT, wanted, live)
    assert (got.replicas, got.reason) == want
    assert got.before == ()


def test_a_stale_view_takes_no_group_away() -> None:
    pods = [pod for i in range(2) for pod in group("set", ("n1", "n2"), index=i)]
    live = make_set(2)
    facts = Facts(make_snapshot(CHAT, pods=tuple(pods), deployments=[live], stale_kinds=("Pod",)))
    assert step(facts, CHAT.key, VARIANT, 1, live).reason is Reason.STALE_VIEW


@pytest.mark.parametrize(("replicas", "says"), [(1, True), (2, False)])
def test_a_change_of_a_single_replica_is_said_to_wait(replicas: int, says: bool) -> None:
    """LeaderWorkerSet 0.8 makes no surge where there are no more replicas than that."""
    made = world(nodes=6)
    made.services = [make_service("chat", engine=LARGE, replicas=replicas)]
    made.run(12)
    key = ObjectKey("LeaderWorkerSet", "default", SET)
    live = made.children[key]
    made.children[key] = replace(live, body=live.body | {"status": UPDATES})
    plan = decide(made.snapshot(), made.now + 100)
    (status,) = (write.status for write in plan.statuses if write.key.name == "chat")
    (reconciling,) = (it for it in status["conditions"] if it["type"] == "Reconciling")
    assert reconciling["status"] == "True"
    assert ("the change waits" in reconciling["message"]) is says


def test_whether_a_set_is_being_rolled_out() -> None:
    assert rolling_out(make_set(1, **UPDATES))
    assert not rolling_out(make_set(1, conditions=[{"type": "UpdateInProgress", "status": "False"}]))
    assert not rolling_out(make_set(1))


if __name__ == "__main__":
    for name in ACROSS_NODES:
        golden(name).write_text(yaml.safe_dump(rendered(name)["LeaderWorkerSet"]))
