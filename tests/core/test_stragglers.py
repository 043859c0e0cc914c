"""One replica that is much slower than its siblings is told of, and replaced as gently as any other."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import pytest

from tests.support.build import H100_8B, make_metrics, make_node, make_service
from tests.support.world import World
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.conditions import by_type
from tokenservice.core.model import Json, Missing, Pace, Plan, Reason, SetDeletionCost
from tokenservice.core.repack import LEAVING

CHAT = make_service("chat", scaling={"minReplicas": 4})
STEP = H100_8B.spec.step
PATIENCE_ROUNDS = 18
"""Of five seconds: three windows of metrics."""
QUIET = {"scaleDownWindowSeconds": 120, "paybackHours": 1e-6}
"""No node is emptied just to have it free."""


def tokens_per_second(running: float, times: float) -> float:
    """What a replica gives that takes so many times as long as the step model says."""
    model = STEP.model_dump()
    expected = model["alpha_ms"] + running * (
        model["beta_ms"] + model["kappa_ms"] * (1000 + 200 / 2) / 1000 + model["delta_ms"] * 1000 / 200
    )
    return 1000 * running / (expected * times)


def served(rested: float = 3600.0, **extra: Any) -> World:
    """Four replicas that have served for so many seconds on the first of two nodes, alike."""
    policy = TokenFleetSpec.model_validate({"consolidation": QUIET | extra})
    made = World(services=[CHAT], nodes=[make_node("n1"), make_node("n2")], extra={"fleet": policy})
    pace(made)
    made.run(20)
    assert made.serving(CHAT.key) == 4
    made.pods = {name: replace(pod, created_at=made.now - rested) for name, pod in made.pods.items()}
    return made


def pace(made: World, *slow: str, times: float = 10.0, running: float = 8.0, load: float = 1.0) -> None:
    """Every replica runs `running` sequences, the slow ones `load` times as many."""
    told = []
    for name, pod in sorted(made.pods.items()):
        if pod.ready:
            here = running * load if name in slow else running
            told.append(
                Pace(
                    pod=name,
                    running=here,
                    tokens_per_second=tokens_per_second(here, times if name in slow else 1.0),
                )
            )
    made.metrics[CHAT.key] = make_metrics(2.0, engines_reporting=1000, paces=tuple(told))


def run(made: World, rounds: int, *slow: str, **how: float) -> list[Plan]:
    plans = []
    for _ in range(rounds):
        pace(made, *slow, **how)
        plans.append(made.round())
    return plans


def marked(plans: list[Plan]) -> list[str]:
    """Pods that were told to leave for being slow, in order."""
    return [
        action.pod.name
        for plan in plans
        for action in plan.actions
        if isinstance(action, SetDeletionCost) and action.cost == LEAVING and action.reason is Reason.SLOW_REPLICA
    ]


def met(made: World) -> Json:
    return by_type(made.services[0].status)["ObjectivesMet"]


def test_a_slow_replica_is_told_of_and_replaced_before_it_goes() -> None:
    made = served()
    first = min(made.pods)
    plans, serving = [], []
    for _ in range(60):
        plans += run(made, 1, first)
        serving.append(made.serving(CHAT.key))
    assert marked(plans) == [first]
    assert first not in made.pods
    assert min(serving) >= 4, "its successor serves before it goes"
    assert sorted(str(pod.node) for pod in made.pods.values()) == ["n1", "n1", "n1", "n2"], "and it is elsewhere"
    (warned,) = [event for plan in plans for event in plan.events if event.type == "Warning"]
    assert warned.reason is Reason.SLOW_REPLICA
    assert f"{first} on n1 takes 10 times as long for a token as its siblings" in warned.message
    assert met(made)["reason"] != "SlowReplica", "it is over"
    counted = [next(iter(plan.metrics["service_slow_replicas"].values())) for plan in plans]
    assert (counted[0], max(counted), counted[-1]) == (0, 1, 0)


ALIKE: dict[str, tuple[dict[str, float], int]] = {
    "for less than three windows": ({}, PATIENCE_ROUNDS),
    "twice as long": ({"times": 2.5}, 2 * PATIENCE_ROUNDS),
    "for long answers that are counted when they end": ({"times": inf}, 2 * PATIENCE_ROUNDS),
    "with more to do": ({"times": 1.0, "load": 16.0}, 2 * PATIENCE_ROUNDS),
}


@pytest.mark.parametrize(("how", "rounds"), ALIKE.values(), ids=ALIKE)
def test_it_is_not_slow(how: dict[str, float], rounds: int) -> None:
    made = served()
    plans = run(made, rounds, min(made.pods), **how)
    assert marked(plans) == []
    assert met(made)["reason"] != "SlowReplica"


def test_a_model_that_promises_too_much_makes_no_replica_slow() -> None:
    made = served()
    assert marked(run(made, 2 * PATIENCE_ROUNDS, *made.pods)) == []


def test_a_moment_of_health_or_without_metrics_begins_anew() -> None:
    made = served()
    first = min(made.pods)
    run(made, PATIENCE_ROUNDS, first)
    run(made, 1)
    assert marked(run(made, PATIENCE_ROUNDS, first)) == []
    made.metrics[CHAT.key] = Missing("Unreachable", "Prometheus does not answer")
    made.round()
    assert marked(run(made, PATIENCE_ROUNDS, first)) == []


NOT_REPLACED: dict[str, dict[str, Any]] = {
    "it has not rested": {"rested": 0.0},
    "the fleet moves nothing": {"enabled": False},
    "the fleet moves nothing at once": {"maxConcurrentMoves": 0},
    "no other node has room": {"nodes": 1},
}


@pytest.mark.parametrize("case", NOT_REPLACED)
def test_it_is_told_of_even_where_it_is_not_replaced(case: str) -> None:
    how = dict(NOT_REPLACED[case])
    nodes = how.pop("nodes", 2)
    made = served(**how)
    made.nodes = made.nodes[:nodes]
    first = min(made.pods)
    plans = run(made, PATIENCE_ROUNDS + 20, first)
    assert marked(plans) == []
    assert met(made)["reason"] == "SlowReplica"
    warned = [event.reason for plan in plans for event in plan.events if event.type == "Warning"]
    assert warned == [Reason.SLOW_REPLICA], "once"


def test_of_two_slow_ones_the_second_waits_for_the_first() -> None:
    made = served()
    first, second, *_ = sorted(made.pods)
    assert marked(run(made, PATIENCE_ROUNDS + 1, first, second)) == [first], "both are as slow: the first by name"
    assert marked(run(made, 2, second)) == [], "while it is on its way"
    assert marked(run(made, 2 * PATIENCE_ROUNDS, second)) == [second]
