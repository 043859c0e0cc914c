"""What one service breaks, it breaks for itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.build import make_metrics, make_node, make_service, make_snapshot
from tests.support.world import World
from tokenservice.app.bulkhead import AGAIN_SECONDS, AT_ONCE, Bulkhead
from tokenservice.core.decide import decide
from tokenservice.core.memo import Memo
from tokenservice.core.model import Plan, Service, Snapshot

NAMES = [f"s{index:02}" for index in range(20)]
SNAPSHOT = make_snapshot(*(make_service(name) for name in NAMES))


def breaks_over(*names: str) -> Any:
    """A decision that fails for as long as one of these is decided on; its plan says who was."""

    def decide(snapshot: Snapshot, now: float, memo: Memo) -> Plan:
        taken = [service.key.name for service in snapshot.services if service.spec is not None]
        for name in taken:
            if name in names:
                raise KeyError(name)
        return Plan(metrics={"taken": {(name,): 1.0 for name in taken}})

    return decide


def taken(plan: Plan) -> list[str]:
    return [name for (name,) in plan.metrics["taken"]]


@given(st.lists(st.sampled_from(NAMES), unique=True, max_size=AT_ONCE))
def test_all_but_those_that_break_it_are_decided_on(bad: list[str]) -> None:
    assert taken(Bulkhead(breaks_over(*bad))(SNAPSHOT, 0.0)) == [name for name in NAMES if name not in bad]


def test_where_no_service_is_to_blame_the_pass_fails() -> None:
    def broken(snapshot: Snapshot, now: float, memo: Memo) -> Plan:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Bulkhead(broken)(SNAPSHOT, 0.0)


def test_what_only_the_memo_broke_is_no_services_fault_and_goes_with_it() -> None:
    used = list[Memo]()

    def forgetful(snapshot: Snapshot, now: float, memo: Memo) -> Plan:
        if any(memo is one for one in used):
            raise KeyError("what is no more")
        used.append(memo)
        return cast(Plan, breaks_over()(snapshot, now, memo))

    bulkhead = Bulkhead(forgetful)
    assert taken(bulkhead(SNAPSHOT, 0.0)) == NAMES
    with pytest.raises(KeyError):
        bulkhead(SNAPSHOT, 1.0)
    assert taken(bulkhead(SNAPSHOT, 2.0)) == NAMES


def test_more_than_a_few_fail_the_pass_and_go_on_at_the_next() -> None:
    bulkhead = Bulkhead(breaks_over(*NAMES[: AT_ONCE + 3]))
    with pytest.raises(KeyError):
        bulkhead(SNAPSHOT, 0.0)
    assert taken(bulkhead(SNAPSHOT, 1.0)) == NAMES[AT_ONCE + 3 :]


def test_one_that_was_set_aside_is_tried_again_when_its_spec_changes_and_after_a_while() -> None:
    asked = list[list[str]]()
    fails = breaks_over("s03")

    def spied(snapshot: Snapshot, now: float, memo: Memo) -> Plan:
        asked.append([service.key.name for service in snapshot.services if service.spec is not None])
        return cast(Plan, fails(snapshot, now, memo))

    def tries(snapshot: Snapshot, now: float) -> bool:
        asked.clear()
        bulkhead(snapshot, now)
        return any("s03" in one for one in asked)

    changed = [replace(one, generation=2) if one.key.name == "s03" else one for one in SNAPSHOT.services]
    bulkhead = Bulkhead(spied)
    assert tries(SNAPSHOT, 0.0)
    assert not tries(SNAPSHOT, 5.0)
    assert len(asked) == 1, "what is known costs nothing more"
    assert tries(replace(SNAPSHOT, services=tuple(changed)), 10.0)
    assert not tries(replace(SNAPSHOT, services=tuple(changed)), AGAIN_SECONDS)
    assert tries(replace(SNAPSHOT, services=tuple(changed)), 10.0 + AGAIN_SECONDS)


def test_a_service_that_breaks_the_real_decision_keeps_its_replicas_and_is_told_and_others_scale() -> None:
    bad, good = make_service("bad"), make_service("good")
    made = World([bad, good], [make_node("a"), make_node("b")], decides=Bulkhead(decide))
    made.metrics = {one.key: make_metrics(engines_reporting=1000) for one in (bad, good)}
    made.run(6)
    serving = made.serving(bad.key)
    made.metrics[bad.key] = cast(Any, "no figures")
    made.metrics[good.key] = make_metrics(60.0, engines_reporting=1000, peak_requests_per_second=60.0)
    plans = made.run(4)
    assert not [action for plan in plans for action in plan.actions if action.service == bad.key], "it is left alone"
    assert made.serving(bad.key) == serving
    assert made.serving(good.key) > serving
    (stalled,) = (one for one in _service(made, bad).status["conditions"] if one["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "DecisionFailed")
    assert "AttributeError" in stalled["message"]


def _service(made: World, service: Service) -> Service:
    return next(one for one in made.services if one.key == service.key)
