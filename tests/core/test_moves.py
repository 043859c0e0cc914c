"""Who is given a node, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.support.build import FLEET, NOW, make_deployment, make_metrics, make_node, make_pod, make_service
from tests.support.world import World
from tokenservice.core.decide import decide
from tokenservice.core.model import Place, Pod, Reason, SetServing

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
