"""Who is given a node, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from tests.core.test_several_variants import FP8
from tests.support.build import FLEET, H100_8B, NOW, make_deployment, make_metrics, make_node, make_pod, make_service
from tests.support.world import World
from tokenservice.core.decide import decide
from tokenservice.core.model import Place, Pod, Reason, SetServing
from tokenservice.core.repack import LEAVING

PROMISE = {"tier": "Guaranteed", "objectives": {"volume": {"guaranteedTokensPerSecond": 10}}}


def test_room_of_a_higher_tier_is_kept_until_its_pods_appear_and_not_for_longer() -> None:
    owed = make_service("owed", created_at=2.0, scaling={"minReplicas": 6}, **PROMISE)
    elastic = make_service("elastic", created_at=1.0, scaling={"minReplicas": 6})
    made = World(services=[elastic, owed], nodes=[make_node("n1")])
    made.metrics = {service.key: make_metrics(0.1) for service in made.services}
    made.round(0.0)
    made.pods = {name: pod for name, pod in made.pods.items() if pod.service == elastic.key}
    placed = [a for a in decide(made.snapshot(), made.now).actions if isinstance(a, Place)]
    assert sum(a.node is not None for a in placed) == len(placed) == 2
    later = [a for a in decide(made.snapshot(), made.now + 31).actions if isinstance(a, Place)]
    assert len(later) == 6


@dataclass
class Contrary(World):
    """Its scheduler refuses what the planner thinks has room: there are rules that only the scheduler knows."""

    refused: list[float] = field(default_factory=list)

    def _bind(self, pod: Pod) -> None:
        self.refused.append(self.now)
        self._change(pod.name, node=None, unschedulable=True)


def test_a_replica_whose_move_was_given_up_rests_before_the_next() -> None:
    """What was in the way is there still: else replicas would start and go for nothing, twice a minute, for ever."""
    services = [make_service(name) for name in ("a", "b")]
    made = Contrary(services=services, nodes=[make_node("n1"), make_node("n2")])
    made.metrics = {service.key: make_metrics(1.0, engines_reporting=9) for service in services}
    deployments = [make_deployment(service, 1) for service in services]
    made.children = {one.key: one for one in deployments}
    made.pods = {name: make_pod(name, node=node, service=name) for name, node in (("a", "n1"), ("b", "n2"))}
    rest = FLEET.consolidation.cooldown_seconds
    rounds = int(3 * rest / 5)
    made.run(rounds)
    started = [action for action in made.history if action.reason is Reason.MOVE_STARTED]
    assert len(services) <= len(started) <= 3 * len(services)
    assert made.now == NOW + 5 * rounds


def test_a_replica_whose_successor_goes_to_the_same_node_stays_and_rests() -> None:
    """Without the webhook nothing keeps the scheduler from a node that is to become free: it never would."""
    services = [make_service("a"), make_service("b", paused=True)]
    made = World(services=services, nodes=[make_node("n1"), make_node("n2")], webhook=False)
    made.metrics = {service.key: make_metrics(1.0, engines_reporting=9) for service in services}
    deployments = [make_deployment(service, 1) for service in services]
    made.children = {one.key: one for one in deployments}
    made.pods = {name: make_pod(name, node=node, service=name) for name, node in (("a", "n1"), ("b", "n2"))}
    rest = FLEET.consolidation.cooldown_seconds
    made.run(int(3 * rest / 5))
    started = [action for action in made.history if action.reason is Reason.MOVE_STARTED]
    assert 1 <= len(started) <= 3
    assert {name for name, pod in made.pods.items() if pod.ready and pod.service == services[0].key} == {"a"}
    assert not [action for action in made.history if isinstance(action, SetServing)]


@pytest.mark.parametrize("when", ["before the move", "amid the move"])
def test_replicas_of_a_variant_that_is_wanted_no_more_are_not_moved_and_hold_up_no_move(when: str) -> None:
    """They go when their successors serve, which here wait for the very node that another move makes free."""
    other = make_service("other", scaling={"minReplicas": 2})
    chat = make_service("chat", engine={"quantization": "FP8"})
    whole = FP8.spec.model_copy(update={"tensor_parallel_size": 8})
    made = World(services=[chat, other], nodes=[make_node(f"n{number}") for number in (1, 2, 3)])
    made.extra = {"profiles": (H100_8B, replace(FP8, spec=whole))}
    made.metrics = {service.key: make_metrics(0.1, engines_reporting=9) for service in made.services}
    deployments = [make_deployment(make_service("chat"), 1), make_deployment(other, 2)]
    made.children = {one.key: one for one in deployments}
    mark = LEAVING if when == "amid the move" else 0
    pods = [make_pod("c", node="n1", deletion_cost=mark)]
    pods += [make_pod(f"o{node}", node=node, service="other") for node in ("n2", "n3")]
    made.pods = {pod.name: pod for pod in pods}
    for _ in range(60):
        made.round()
        assert made.serving(chat.key) >= 1
    assert not [act for act in made.history if act.reason is Reason.MOVE_STARTED and act.service == chat.key]
    assert {pod.variant for pod in made.pods.values() if pod.service == chat.key} == {"h100-vllm-tp8-fp8"}
    assert len({pod.node for pod in made.pods.values() if pod.service == other.key}) == 1
