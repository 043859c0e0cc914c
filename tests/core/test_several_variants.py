"""Services that run on more than one variant, or go from one to another: what is held, counted and owed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest

from tests.support.build import (
    FLEET,
    GPU,
    H100,
    H100_8B,
    VARIANT,
    make_deployment,
    make_metrics,
    make_node,
    make_pod,
    make_service,
)
from tests.support.world import World
from tokenservice.core.model import Apply, Missing, ObjectKey, Profile
from tokenservice.core.names import ENGINE_KINDS
from tokenservice.core.room import rooms

A100 = replace(
    H100,
    name="a100",
    spec=H100.spec.model_copy(update={"node_labels": {"nvidia.com/gpu.product": "A100"}, "price_per_hour": 2.0}),
)
SLOWER = H100_8B.spec.step.model_copy(update={"alpha_ms": 11.0, "kappa_ms": 0.09, "delta_ms": 0.035})
A100_8B = replace(H100_8B, name="a100", spec=H100_8B.spec.model_copy(update={"accelerator": "a100", "step": SLOWER}))
FP8 = Profile(name="fp8", spec=H100_8B.spec.model_copy(update={"precision": "fp8"}))
ON_A100 = "a100-vllm-tp1-bf16"
LEARNED = FLEET.model_copy(
    update={"consolidation": FLEET.consolidation.model_copy(update={"scale_down_window_seconds": None})}
)
NO_DATA = Missing("NoData", "Prometheus is away")

UNKNOWN: dict[str, tuple[Any, dict[str, Any]]] = {
    "metrics are missing": (NO_DATA, {}),
    "one engine reports": (make_metrics(2.0, engines_reporting=1), {}),
    "demand was not watched for long": (make_metrics(2.0, engines_reporting=99), {"fleet": LEARNED}),
    "the peak is recent": (make_metrics(2.0, peak_requests_per_second=150.0, engines_reporting=99), {}),
}


def mixed(metrics: Any, **spec: Any) -> World:
    """One replica on an H100, one on an A100 that is worth a fraction of it, and room for more of both."""
    both = [make_node("n1"), replace(make_node("a1"), labels={"nvidia.com/gpu.product": "A100"})]
    service = make_service("chat", placement={"accelerators": ["h100", "a100"]}, **spec)
    made = World(
        services=[service],
        nodes=both,
        metrics={service.key: metrics},
        extra={"accelerators": (A100, H100), "profiles": (A100_8B, H100_8B)},
    )
    deployments = (make_deployment(service, 1), make_deployment(service, 1, variant=ON_A100))
    made.children = {one.key: one for one in deployments}
    pods = (make_pod("p1", node="n1"), make_pod("p2", node="a1", variant=ON_A100))
    made.pods = {pod.name: pod for pod in pods}
    return made


def counts(made: World) -> list[int]:
    return [child.body["spec"]["replicas"] for child in made.children.values() if child.key.kind in ENGINE_KINDS]


@pytest.mark.parametrize("case", ["metrics are missing", "one engine reports", "demand was not watched for long"])
def test_a_count_that_is_held_is_held_on_whatever_it_stands(case: str) -> None:
    metrics, extra = UNKNOWN[case]
    made = mixed(metrics)
    made.extra |= extra
    for _ in range(12):
        made.round()
        assert counts(made) == [1, 1]


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_lets_nothing_go_where_the_variant_changes(case: str) -> None:
    metrics, extra = UNKNOWN[case]
    before, after = make_service("chat"), make_service("chat", engine={"quantization": "FP8"})
    nodes = [make_node(f"n{number}") for number in range(1, 5)]
    made = World(
        services=[after], nodes=nodes, metrics={after.key: metrics}, extra={"profiles": (H100_8B, FP8)} | extra
    )
    old = make_deployment(before, 10)
    made.children = {old.key: old}
    pods = [make_pod(f"p{number}", node="n1" if number < 8 else "n2") for number in range(10)]
    made.pods = {pod.name: pod for pod in pods}
    for _ in range(20):
        made.round()
        assert made.serving(after.key) >= 10
    assert {pod.variant for pod in made.pods.values()} == {VARIANT.replace("bf16", "fp8")}
    assert len(made.pods) == 10


@pytest.mark.parametrize("alpha_ms", [11.0, 3.0])
def test_a_fixed_count_is_one_of_replicas_whatever_they_are_worth(alpha_ms: float) -> None:
    made = mixed(make_metrics(1.0, engines_reporting=99), replicas=6)
    step = SLOWER.model_copy(update={"alpha_ms": alpha_ms})
    made.extra["profiles"] = (replace(A100_8B, spec=A100_8B.spec.model_copy(update={"step": step})), H100_8B)
    made.nodes[0] = make_node("n1", accelerators=3)
    made.run(20)
    assert made.serving(made.services[0].key) == sum(counts(made)) == 6


@pytest.mark.parametrize(("starts", "least"), [(True, 3), (False, 4)])
def test_scale_in_waits_for_replicas_of_other_variants_that_are_owed_and_do_not_serve_yet(
    starts: bool, least: int
) -> None:
    """Each Deployment by itself has every replica ready, or none that serves to let go."""
    made = mixed(make_metrics(1.0, engines_reporting=99))
    service = make_service("chat", placement={"accelerators": ["a100", "h100"]}, scaling={"minReplicas": 3})
    made.services = [service]
    deployments = (make_deployment(service, 2), make_deployment(service, 2, variant=ON_A100))
    made.children = {one.key: one for one in deployments}
    serving = [make_pod("p1"), make_pod("p2"), make_pod("a1", node="a1", variant=ON_A100)]
    late = make_pod("a2", node="a1", variant=ON_A100, ready=False, created_at=made.now if starts else made.now + 1e6)
    made.pods = {pod.name: pod for pod in (*serving, late)}
    for _ in range(20):
        made.round()
        assert made.serving(service.key) >= 3
    assert sum(counts(made)) == least


def test_of_several_deployments_no_more_exchange_in_place_than_can_be_missed() -> None:
    """Each of them may be one short of its count then, so two of them at once are two replicas short."""
    made = mixed(make_metrics(1.0, engines_reporting=99), scaling={"minReplicas": 3})
    service = made.services[0]
    made.children = {}
    for variant in (VARIANT, ON_A100):
        live = make_deployment(service, 2, variant=variant)
        body = {**live.body, "status": {**live.body.get("status", {}), "replicas": 3, "updatedReplicas": 1}}
        made.children[live.key] = replace(live, body=body)
    made.nodes = [make_node("n1", accelerators=2), replace(made.nodes[1], allocatable={"nvidia.com/gpu": 2})]
    serving = [
        make_pod(f"{variant}{number}", node=node, variant=variant)
        for variant, node in ((VARIANT, "n1"), (ON_A100, "a1"))
        for number in range(2)
    ]
    waiting = [
        make_pod(f"{variant}-new", node=None, variant=variant, unschedulable=True, ready=False)
        for variant in (VARIANT, ON_A100)
    ]
    made.pods = {pod.name: pod for pod in (*serving, *waiting)}
    applied = [action for action in made.round().actions if isinstance(action, Apply)]
    strategies = [one.manifest["spec"]["strategy"] for one in applied if one.manifest["kind"] == "Deployment"]
    assert sum(one["rollingUpdate"]["maxUnavailable"] for one in strategies) == 1


@dataclass
class Slow(World):
    """Its scheduler looks again at what found no room after ten seconds, as the real one does in the end."""

    def _schedule(self) -> None:
        if self.now % 10 == 0:
            super()._schedule()


@dataclass
class Crowded(World):
    """Whatever becomes free is taken by somebody else before anybody of ours."""

    def _schedule(self) -> None:
        for name, room in rooms(self.nodes, self.pods.values()).items():
            for number in range(room.free[GPU]):
                foreign = make_pod(f"foreign-{self.now}-{number}", node=name, service=None, gpus=1)
                self.pods[foreign.name] = foreign
        super()._schedule()


def changing(kind: type[World], *, nodes: int = 1, gpus: int = 1, wanted: int = 4) -> tuple[World, ObjectKey]:
    """A service that goes from BF16, of which eight replicas stand on the first node, to FP8; its old Deployment."""
    before = make_service("chat", scaling={"minReplicas": wanted})
    after = make_service("chat", scaling={"minReplicas": wanted}, engine={"quantization": "FP8"})
    other = replace(FP8, spec=FP8.spec.model_copy(update={"tensor_parallel_size": gpus}))
    made = kind(
        services=[after],
        nodes=[make_node(f"n{number}") for number in range(nodes)],
        metrics={after.key: make_metrics(1.0, engines_reporting=99)},
        extra={"profiles": (H100_8B, other)},
        start_seconds=60.0,
    )
    old = make_deployment(before, 8)
    made.children = {old.key: old}
    made.pods = {name: make_pod(name, node="n0") for name in (f"p{number}" for number in range(8))}
    return made, old.key


@pytest.mark.parametrize(("kind", "nodes"), [(World, 1), (World, 2), (Slow, 1)])
def test_a_change_of_variant_gets_through_a_full_cluster_and_lets_nothing_go_before_its_time(
    kind: type[World], nodes: int
) -> None:
    """Eight serve, four are needed. Where there is room, successors come first; where not, one goes at a time."""
    made, old = changing(kind, nodes=nodes)
    service, counts_of_old = made.services[0].key, []
    for _ in range(60):
        made.round()
        assert made.serving(service) >= 4
        if old in made.children:
            assert made.serving(service) >= 7
            counts_of_old.append(int(made.children[old].body["spec"]["replicas"]))
    assert {pod.variant for pod in made.pods.values()} == {VARIANT.replace("bf16", "fp8")}
    assert made.serving(service) == 4
    assert (min(counts_of_old) < 8) is (nodes == 1)
    assert all(more - fewer <= 1 for more, fewer in pairwise(counts_of_old))


def test_replicas_of_a_variant_that_is_wanted_no_more_wait_for_no_room() -> None:
    """Two found none, and draw nodes; the four that serve go once those serve that take over from them."""
    made, old = changing(World, nodes=2, wanted=4)
    made.nodes[0] = make_node("n0", accelerators=4)
    made.pods = {name: make_pod(name, node="n0") for name in ("p0", "p1", "p2", "p3")}
    homeless = [make_pod(f"q{number}", node=None, unschedulable=True, ready=False) for number in range(2)]
    made.pods |= {pod.name: pod for pod in homeless}
    child = made.children[old]
    made.children[old] = replace(child, body={**child.body, "spec": {**child.body["spec"], "replicas": 6}})
    made.round()
    assert made.children[old].body["spec"]["replicas"] == 4
    assert not any(pod.name.startswith("q") for pod in made.pods.values())
    service = made.services[0].key
    for _ in range(40):
        made.round()
        assert made.serving(service) >= 4
    assert {pod.variant for pod in made.pods.values()} == {VARIANT.replace("bf16", "fp8")}


def test_who_holds_another_room_than_a_successor_waits_for_makes_none() -> None:
    made, old = changing(World, gpus=4)
    made.run(30)
    assert made.children[old].body["spec"]["replicas"] == made.serving(made.services[0].key) == 8


def test_room_that_somebody_else_takes_costs_one_replica_of_what_is_wanted() -> None:
    """And not the whole headroom: what is owed takes the recent peak without any."""
    made, _ = changing(Crowded, wanted=1)
    service = made.services[0].key
    for _ in range(60):
        made.metrics = {service: make_metrics(100.0, engines_reporting=made.serving(service))}
        made.round()
    (wanted,) = [child.body["spec"]["replicas"] for key, child in made.children.items() if key.name.endswith("fp8")]
    assert 5 < made.serving(service) == wanted - 1
