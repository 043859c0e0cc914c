"""Who is given a node, and in which order."""

from __future__ import annotations

from tests.support.build import make_metrics, make_node, make_service
from tests.support.world import World
from tokenservice.core.decide import decide
from tokenservice.core.model import Place

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
