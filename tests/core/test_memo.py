"""A memo changes how long a decision takes, never what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.build import make_metrics, make_node, make_service
from tests.support.world import World
from tokenservice.core.decide import decide
from tokenservice.core.facts import Facts
from tokenservice.core.hindsight import Hindsight
from tokenservice.core.memo import Memo, column
from tokenservice.core.model import Missing, ObjectKey, Plan, ServiceKey
from tokenservice.core.outlook import outlooks
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
            made.pods[pod.name] = replace(pod, ready=False, node=None, unschedulable=True)
    elif what in ("restarted", "going", "lost"):
        happen_to_a_pod(made, what, key, int(value))
    elif what == "new node":
        made.nodes = sorted([*made.nodes, make_node(f"m{int(value)}")], key=lambda node: node.name)
    elif what == "no node":
        made.nodes = made.nodes[: int(value) % 3 + 1]
    elif what == "new":
        newcomer = make_service(f"{name}-{int(value)}", created_at=10.0)
        made.services = sorted(
            {one.key: one for one in (*made.services, newcomer)}.values(), key=lambda service: service.key
        )
        made.metrics[newcomer.key] = make_metrics(value, engines_reporting=1000)


def happen_to_a_pod(made: World, what: str, key: ServiceKey, number: int) -> None:
    mine = [pod for pod in made.pods.values() if pod.service == key]
    for pod in mine[number % len(mine) :][:1] if mine else ():
        if what == "lost":
            del made.pods[pod.name]
        elif what == "going":
            made.pods[pod.name] = replace(pod, deleting=True)
        else:
            made.pods[pod.name] = replace(pod, restarts=pod.restarts + 1, resource_version=f"again-{number}")


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
            "restarted",
            "going",
            "lost",
            "new node",
            "no node",
            "new",
            "nothing",
        ]
    ),
    NAMES,
    st.floats(0, 100),
)


def said(plan: Plan) -> tuple[Any, ...]:
    records = {key: record_said(record) for key, record in plan.hindsights.items()}
    return (plan.actions, plan.statuses, plan.events, plan.metrics, plan.proposals, plan.margins, records)


def record_said(record: Hindsight) -> dict[str, Any]:
    """A record equals only itself; what it says may be compared."""
    values = {one.name: getattr(record, one.name) for one in fields(record)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


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


@pytest.mark.parametrize(
    "what", ["rate", "missing", "cordon", "drift", "status", "spec", "broken", "unready", "lost", "new"]
)
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


KEYS = st.lists(st.sampled_from("abcdef"), max_size=6, unique=True).map(tuple)


@given(st.lists(st.tuples(KEYS, st.lists(st.integers(0, 2), min_size=12, max_size=12), st.booleans()), max_size=6))
def test_what_is_recalled_of_each_is_what_would_be_made_from_nothing(
    rounds: list[tuple[tuple[str, ...], list[int], bool]],
) -> None:
    memo, asked = Memo(), list[Sequence[str]]()
    before: dict[str, tuple[int, int, bool]] = {}
    for keys, values, shared in rounds:
        rows = {key: (*values[2 * n : 2 * n + 2], shared) for n, key in enumerate(keys)}

        def make(new: Sequence[str], rows: dict[str, Any] = rows) -> list[Any]:
            asked.append(new)
            return [rows[key] for key in new]

        columns = tuple([row[n] for row in rows.values()] for n in range(2))
        found = memo.recall_each("part", keys, columns, make, lambda row: row[0] != 0, shared=(shared,))
        assert list(found.items()) == list(rows.items())
        news = [key for key, row in rows.items() if row[0] == 0 or before.get(key) != row]
        assert asked == ([news] if news else [])
        asked.clear()
        before = rows


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers()), KEYS)
def test_a_column_is_what_stands_under_each_key(values: dict[str, int], keys: tuple[str, ...]) -> None:
    assert list(column(values, keys, None)) == [values.get(key) for key in keys]
    assert list(column(values, tuple(values), None)) == list(values.values())


def test_asking_for_the_same_again_makes_nothing_and_gives_the_same_object() -> None:
    memo, column = Memo(), ["x", "y"]
    first = memo.recall_each("part", ("a", "b"), (column,), lambda new: [key + "!" for key in new])
    again = memo.recall_each("part", ("a", "b"), (["x", "y"],), lambda _: pytest.fail("nothing is new"))
    assert again is first


def test_a_result_is_renewed_from_the_last_one() -> None:
    memo = Memo()
    for number in (1, 1, 2, 3):
        found = memo.renew("part", number, lambda: "made", lambda before, last, now=number: f"{last},{before}-{now}")
    assert found == "made,1-2,2-3"


def test_after_one_change_only_what_it_touches_is_made_anew() -> None:
    """Of a change to one service no other's outlook, of one to a pod no other service's outlook and node's room."""
    made, memo = world(), Memo()
    for _ in range(12):
        decide(made.snapshot(), made.now, memo)
        made.round()
    before = parts(made, memo)
    assert anew(before, parts(made, memo)) == []
    happen(made, "rate", "chat", 2.0)
    assert anew(before, before := parts(made, memo)) == ["chat"]
    happen(made, "restarted", "owed", 0)
    restarted = next(pod for pod in made.pods.values() if pod.restarts)
    assert anew(before, parts(made, memo)) == ["owed", restarted.node]


def parts(made: World, memo: Memo) -> dict[str, object]:
    facts = Facts(made.snapshot(), memo)
    return {seen.service.key.name: seen for seen in outlooks(facts)} | dict(facts.rooms)


def anew(before: dict[str, object], after: dict[str, object]) -> list[str]:
    return [name for name, part in after.items() if part is not before[name]]
