"""The bill of nodes: every accelerator once, from order to release, by what it was held for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.build import H100
from tokenservice.simulate.ledger import Ledger

PARTS = ("ready", "starting", "draining", "free_on_used_nodes", "on_empty_nodes")


def parts(ledger: Ledger) -> dict[str, float]:
    return {part: getattr(ledger.held, part) for part in PARTS}


def test_a_day_in_the_life_of_a_node() -> None:
    ledger = Ledger()
    ledger.node_ordered("n1", H100, 8, 0.0)
    ledger.lasted(90, {})
    ledger.lasted(60, {"n1": [0, 3, 0]})
    ledger.lasted(1000, {"n1": [3, 0, 0]})
    ledger.lasted(50, {"n1": [2, 0, 1]})
    ledger.node_gone("n1", 1200.0)
    assert parts(ledger) == {
        "ready": 3 * 1000 + 2 * 50,
        "starting": 3 * 60,
        "draining": 1 * 50,
        "free_on_used_nodes": 5 * (60 + 1000 + 50),
        "on_empty_nodes": 8 * 90,
    }
    assert ledger.held.existing == 8 * 1200
    assert ledger.accelerator_hours(1200.0) == pytest.approx(8 * 1200 / 3600)
    assert ledger.dollars(1200.0) == pytest.approx(8 * 1200 / 3600 * H100.spec.price_per_hour)


def test_a_bill_ends_with_the_scenario_even_for_nodes_that_go_later() -> None:
    ledger = Ledger()
    ledger.node_ordered("gone", H100, 8, 0.0)
    ledger.node_ordered("stays", H100, 4, 1800.0)
    ledger.node_gone("gone", 3600.0)
    assert [ledger.accelerator_hours(until) for until in (1800.0, 3600.0, 7200.0)] == [4.0, 10.0, 14.0]
    assert (ledger.accelerators, ledger.nodes_started) == (4, 2)


held = st.tuples(*[st.integers(0, 2)] * 3).map(list)
stretches = st.lists(
    st.tuples(st.floats(0, 1000), st.dictionaries(st.sampled_from(["n0", "n1", "n2"]), held, max_size=3)), max_size=20
)


@given(stretches)
def test_the_parts_add_up_to_what_existed_whatever_was_held(lives: list[tuple[float, dict[str, list[int]]]]) -> None:
    ledger, now = Ledger(), 0.0
    for name, accelerators in (("n0", 8), ("n1", 6), ("n2", 16)):
        ledger.node_ordered(name, H100, accelerators, now)
    for seconds, on_nodes in lives:
        ledger.lasted(seconds, on_nodes)
        now += seconds
    assert ledger.held.existing == pytest.approx(30 * now)
    assert ledger.accelerator_hours(now) == pytest.approx(30 * now / 3600)
    assert all(seconds >= 0 for seconds in parts(ledger).values())
