"""The benchmark of decisions, on a fleet small enough for a test."""

from __future__ import annotations

import pytest

from tokenservice.catalogue import accelerator_classes, architectures
from tokenservice.core.allocation import stock
from tokenservice.core.facts import Facts
from tokenservice.core.model import Snapshot
from tokenservice.simulate.plan_bench import Result, run
from tokenservice.simulate.plan_bound import bound, wanted
from tokenservice.simulate.plan_fleet import Catalogue, new_fleet

CATALOGUE = Catalogue(classes=accelerator_classes(), architectures=architectures())


@pytest.fixture(scope="module")
def result() -> Result:
    return run(CATALOGUE, services=100, accelerators=1000, rounds=3, seed=1, say=lambda _: None)


@pytest.fixture(scope="module")
def fleet() -> Snapshot:
    return new_fleet(CATALOGUE, services=60, accelerators=600, seed=2)


def test_the_same_seed_gives_the_same_fleet(fleet: Snapshot) -> None:
    assert new_fleet(CATALOGUE, services=60, accelerators=600, seed=2) == fleet


def test_every_service_has_six_variants(fleet: Snapshot) -> None:
    assert {len(want.ranked) for want in wanted(fleet)} == {6}


def test_four_fifths_of_the_accelerators_are_placed(result: Result) -> None:
    assert 0.75 * result.accelerators <= result.placed <= result.accelerators


def test_a_plan_costs_at_most_three_percent_more_than_the_bound(result: Result) -> None:
    """A tenth of the benchmark's size, where every whole replica weighs ten times as much."""
    assert -1e-6 <= result.cost_gap <= 0.03


def test_fractions_of_replicas_are_cheaper_than_whole_ones(result: Result) -> None:
    assert result.bound.fractional <= result.bound.whole


def test_too_few_accelerators_are_said_to_be_too_few(fleet: Snapshot) -> None:
    with pytest.raises(ValueError, match="ask for less"):
        bound(fleet, dict.fromkeys(stock(Facts(fleet)), 8))
