"""A memo changes how long a decision takes, never what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.build import make_metrics, make_node, make_service
from tests.support.world import World
from tokenservice.core.decide import decide
from tokenservice.core.memo import Memo
from tokenservice.core.model import Missing, ObjectKey, Plan, ServiceKey
from tokenservice.core.refusal import refusal

SERVICES = (
    make_service("owed", created_at=2.0, tier="Guaranteed", scaling={"minReplicas": 2}),
    make_service("chat", created_at=1.0),
    make_service("rest", created_at=3.0, tier="Spot", model={"uri": "hf://nobody/knows"}),
)
NAMES = st.sampled_from([service.key.name for service in SERVICES])


def world(seconds_to_start: float = 20.0) -> World:
    made = World(
        services=list(SERVICES), nodes=[make_node(f"n{i}") for i in range(1, 4)], start_seconds=seconds_to_start
    )
    made.metrics = {service.key: make_metrics(1.0, engines_reporting=1000) for service in SERVICES}
    return made


def happen(made: World, what: str, name: str, value: float) -> None:
    key = ServiceKey("default", name)
    if what == "rate":
        made.metrics[key] = make_metrics(value, engines_reporting=1000, peak_requests_per_second=value)
    elif what == "missing":
        made.metrics[key] = Missing("Unreachable", "Prometheus does not answer")
    elif what == "cordon":
        made.nodes = [replace(node, schedulable=node.name != f"n{int(value) % 3 + 1}") for node in made.nodes]
    elif what == "drift":
        spoil(made, ObjectKey("Service", "default", name))
    elif what == "status":
        made.services = [replace(one, status={}) if one.key == key else one for one in made.services]
    elif what == "spec":
        spec = make_service(name, scaling={"minReplicas": int(value) % 4 + 1}).spec
        made.services = [replace(one, spec=spec, generation=2) if one.key == key else one for one in made.services]
    elif what == "broken":
        made.services = [replace(one, spec=None, error="no") if one.key == key else one for one in made.services]
    elif what == "gone":
        made.services = [one for one in made.services if one.key != key]
    elif what == "refused":
        made.extra["refusals"] = {key: refusal("Service chat", "exceeded quota")} if value > 50 else {}
    elif what == "stale":
        made.extra["stale_kinds"] = ("Pod",) if value > 50 else ()
    elif what == "unready":
        for pod in [pod for pod in made.pods.values() if pod.service == key][:1]:
            made.pods[pod.name] = replace(pod, ready=False, node=None, phase="Pending", unschedulable=True)


def spoil(made: World, key: ObjectKey) -> None:
    child = made.children.get(key)
    if child is not None:
        made.children[key] = replace(child, body=child.body | {"spec": {"type": "NodePort"}}, resource_version="x")


HAPPENINGS = st.tuples(
    st.sampled_from(
        [
            "rate",
            "missing",
            "cordon",
            "drift",
            "status",
            "spec",
            "broken",
            "gone",
            "refused",
            "stale",
            "unready",
            "nothing",
        ]
    ),
    NAMES,
    st.floats(0, 100),
)


def said(plan: Plan) -> tuple[Any, ...]:
    return (plan.actions, plan.statuses, plan.events, plan.metrics, plan.proposals, plan.margins)


def same_with_and_without(made: World, memo: Memo) -> None:
    """Asked twice with the memo: the second time nothing at all is new."""
    snapshot = made.snapshot()
    plain = said(decide(snapshot, made.now))
    assert said(decide(snapshot, made.now, memo)) == plain
    assert said(decide(snapshot, made.now, memo)) == plain
    later = made.now + 61.0
    assert said(decide(snapshot, later, memo)) == said(decide(snapshot, later))


@settings(max_examples=40, deadline=None)
@given(st.lists(HAPPENINGS, max_size=8), st.sampled_from([0.0, 20.0]))
def test_plans_are_the_same_with_a_memo_and_without(happenings: list[tuple[str, str, float]], start: float) -> None:
    made, memo = world(start), Memo()
    for _ in range(4):
        same_with_and_without(made, memo)
        made.round()
    for what, name, value in happenings:
        happen(made, what, name, value)
        for _ in range(2):
            same_with_and_without(made, memo)
            made.round()


@pytest.mark.parametrize("what", ["rate", "missing", "cordon", "drift", "status", "spec", "broken", "unready"])
def test_a_change_after_a_long_rest_is_seen(what: str) -> None:
    made, memo = world(), Memo()
    for _ in range(12):
        decide(made.snapshot(), made.now, memo)
        made.round()
    happen(made, what, "owed", 90.0)
    same_with_and_without(made, memo)


def test_nothing_is_kept_of_services_that_are_gone() -> None:
    made, memo = world(), Memo()
    decide(made.snapshot(), made.now, memo)
    before = len(memo)
    made.services = made.services[:1]
    decide(made.snapshot(), made.now, memo)
    assert len(memo) < before


def test_a_result_is_recalled_only_for_the_same_facts() -> None:
    memo, made = Memo(), list[int]()

    def make() -> Any:
        made.append(1)
        return len(made)

    assert [memo.recall("part", "owner", given, make) for given in ((1,), (1,), (2,), (1,))] == [1, 1, 2, 3]
    assert memo.recall("other part", "owner", (1,), make) == 4


def test_what_is_not_worth_keeping_is_made_again() -> None:
    memo = Memo()
    memo.recall("part", "owner", (1,), lambda: "first", lambda value: value != "first")
    assert memo.recall("part", "owner", (1,), lambda: "second") == "second"
