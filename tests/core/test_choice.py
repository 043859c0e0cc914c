"""Who takes which variant where accelerators are scarce."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.build import H100, H100_8B, NOW, make_metrics, make_node, make_service, make_snapshot
from tokenservice.core.choice import Ways, choose
from tokenservice.core.decide import decide
from tokenservice.core.model import Apply, Service, Snapshot

CHEAP = replace(
    H100, name="cheap", spec=H100.spec.model_copy(update={"price_per_hour": 2.0, "node_labels": {"kind": "cheap"}})
)
PROFILES = (H100_8B, replace(H100_8B, name="cheap", spec=H100_8B.spec.model_copy(update={"accelerator": "cheap"})))


def ways(costs: list[list[float]], sizes: list[list[int]], classes: list[list[int]], stock: list[int]) -> Ways:
    return Ways(np.array(costs), np.array(sizes, dtype=float), np.array(classes), np.array(stock, dtype=float))


def cost(given_ways: Ways, choice: object) -> float:
    return float(given_ways.cost[np.arange(len(given_ways.cost)), np.array(choice)].sum())


def test_with_plenty_everyone_takes_the_cheapest() -> None:
    assert choose(ways([[1, 2], [3, 2]], [[1, 1], [1, 1]], [[0, 1], [0, 1]], [9, 9])).tolist() == [0, 1]


def test_who_loses_least_by_it_gives_way() -> None:
    scarce = ways([[1, 1.1], [1, 2.0]], [[4, 4], [4, 4]], [[0, 1], [0, 1]], [4, 8])
    assert choose(scarce).tolist() == [1, 0]


def test_where_nothing_fits_everyone_keeps_the_cheapest() -> None:
    assert choose(ways([[1, 1.5]], [[4, 4]], [[0, 1]], [0, 0])).tolist() == [0]


CASES = st.integers(1, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.floats(1, 2), min_size=3, max_size=3), min_size=n, max_size=n),
        st.lists(st.lists(st.sampled_from([1, 2, 4]), min_size=3, max_size=3), min_size=n, max_size=n),
        st.lists(st.integers(0, 14), min_size=3, max_size=3),
    )
)


@settings(max_examples=200, deadline=None)
@given(CASES)
def test_a_choice_never_costs_more_than_a_little_above_the_best(
    case: tuple[list[list[float]], list[list[int]], list[int]],
) -> None:
    """Of a handful of services one wrong choice weighs much; of a thousand, see `bench plan`."""
    costs, sizes, stock = case
    given_ways = ways(costs, sizes, [[0, 1, 2]] * len(costs), stock)
    found = choose(given_ways)
    possible = [c for c in product(range(3), repeat=len(costs)) if np.all(given_ways.used(np.array(c)) <= stock)]
    if possible and np.all(given_ways.used(found) <= given_ways.stock):
        assert cost(given_ways, found) <= 1.35 * min(cost(given_ways, c) for c in possible)


def fleet(*services: Service, cheap: int = 8) -> Snapshot:
    nodes = (make_node("n1"), replace(make_node("c1", accelerators=cheap), labels={"kind": "cheap"}))
    metrics = {service.key: make_metrics(60.0, engines_reporting=100) for service in services}
    return make_snapshot(*services, nodes=nodes, accelerators=(CHEAP, H100), profiles=PROFILES, metrics=metrics)


def used(snapshot: Snapshot) -> dict[str, set[str]]:
    """Classes of the Deployments that a plan makes, by service."""
    found: dict[str, set[str]] = {}
    for action in decide(snapshot, NOW).actions:
        if isinstance(action, Apply) and action.manifest["kind"] == "Deployment" and action.service is not None:
            variant = action.manifest["spec"]["selector"]["matchLabels"]["taas.dev/variant"]
            found.setdefault(action.service.name, set()).add(variant.partition("-")[0])
    return found


def test_the_guaranteed_tier_chooses_before_others_however_old_these_are() -> None:
    owed = make_service("owed", created_at=9.0, tier="Guaranteed")
    old = make_service("old", created_at=1.0)
    assert used(fleet(owed, old, cheap=8))["owed"] == {"cheap"}


def test_who_names_classes_gets_them_in_that_order_whatever_they_cost() -> None:
    picky = make_service("picky", placement={"accelerators": ["h100", "cheap"]})
    assert used(fleet(picky))["picky"] == {"h100"}


def test_the_cheaper_of_two_equal_variants_is_taken() -> None:
    assert used(fleet(make_service("one")))["one"] == {"cheap"}
