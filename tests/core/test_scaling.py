"""Counts: the rules in cases, the invariants as properties."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.build import make_spec
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.capacity import Capacity, Limit, Workload
from tokenservice.core.demand import Demand
from tokenservice.core.model import Missing, Reason
from tokenservice.core.scaling import MOST_REPLICAS, Scaling, desired

FLEET = TokenFleetSpec()
TEN_PER_SECOND = Capacity(10.0, 50.0, 0.2, 0.03, Limit.TPOT)
UNREACHABLE = Capacity(0.0, 0.0, 3.0, 0.1, Limit.TTFT)
GONE = Missing("MetricsMissing", "Prometheus does not answer")
WORK = Workload(1000, 200)


def asks(now: float, *, peak: float | None = None, forecast: float | None = None, waiting: float = 0.0) -> Demand:
    return Demand(
        requests_per_second=now,
        peak_requests_per_second=max(now, peak or now),
        forecast_requests_per_second=max(now, forecast or now),
        workload=WORK,
        tokens_per_second=now * WORK.output_tokens,
        waiting=waiting,
    )


def scaled(demand: Demand | Missing, current: int, capacity: Capacity = TEN_PER_SECOND, **spec: Any) -> Scaling:
    return desired(make_spec(**spec), current, demand, capacity, FLEET)


def with_scaling(**fields: Any) -> dict[str, Any]:
    return {"scaling": fields}


def guaranteeing(tokens: float) -> dict[str, Any]:
    return {"tier": "Guaranteed", "objectives": {"volume": {"guaranteedTokensPerSecond": tokens}}}


CASES: dict[str, tuple[Demand | Missing, int, dict[str, Any], int, Reason]] = {
    "demand above the target adds replicas at once": (asks(50.0), 2, {}, 8, Reason.SCALED_UP),
    "demand at the target is left alone": (asks(20.9), 3, {}, 3, Reason.STEADY),
    "a forecast above the target adds replicas": (asks(20.0, forecast=30.0), 3, {}, 5, Reason.SCALED_UP),
    "a recent peak keeps replicas": (asks(5.0, peak=40.0), 6, {}, 6, Reason.STEADY),
    "a peak that fewer replicas take removes some": (asks(5.0, peak=20.0), 6, {}, 3, Reason.SCALED_DOWN),
    "a smaller fleet that would be just full is not chosen": (asks(20.9), 4, {}, 4, Reason.STEADY),
    "no traffic goes to the floor": (asks(0.0), 6, {}, 1, Reason.SCALED_DOWN),
    "missing metrics hold": (GONE, 6, {}, 6, Reason.METRICS_MISSING),
    "missing metrics rise to the floor": (GONE, 1, with_scaling(minReplicas=3), 3, Reason.METRICS_MISSING),
    "a fixed count wins": (asks(50.0), 2, {"replicas": 0}, 0, Reason.SCALED_DOWN),
    "a fixed count wins over missing metrics": (GONE, 2, {"replicas": 5}, 5, Reason.SCALED_UP),
    "minReplicas holds": (asks(0.0), 3, with_scaling(minReplicas=2), 2, Reason.SCALED_DOWN),
    "maxReplicas holds": (asks(500.0), 3, with_scaling(maxReplicas=4), 4, Reason.SCALED_UP),
    "standby comes on top of demand": (asks(20.9), 3, with_scaling(standbyReplicas=2), 5, Reason.SCALED_UP),
    "the guaranteed volume is a floor": (asks(0.0), 9, guaranteeing(9_000), 5, Reason.SCALED_DOWN),
    "the guarantee outranks maxReplicas": (
        asks(0.0),
        9,
        guaranteeing(9_000) | with_scaling(maxReplicas=2),
        5,
        Reason.SCALED_DOWN,
    ),
    "demand beyond maxTokensPerSecond is not owed": (
        asks(500.0),
        1,
        {"objectives": {"volume": {"maxTokensPerSecond": 2000}}},
        2,
        Reason.SCALED_UP,
    ),
    "the service's own target wins over the fleet's": (
        asks(20.0),
        2,
        with_scaling(targetUtilization=0.5),
        4,
        Reason.SCALED_UP,
    ),
}


@pytest.mark.parametrize(("demand", "current", "spec", "wanted", "reason"), CASES.values(), ids=CASES.keys())
def test_count(demand: Demand | Missing, current: int, spec: dict[str, Any], wanted: int, reason: Reason) -> None:
    found = scaled(demand, current, **spec)
    assert (found.replicas, found.reason) == (wanted, reason)
    assert found.floor <= found.replicas <= max(found.ceiling, current)


def test_a_volume_beyond_any_fleet_asks_for_as_much_as_one_service_may_have() -> None:
    asked = scaled(asks(1.0), 1, **guaranteeing(1e9), scaling={"maxReplicas": 4})
    assert asked.replicas == MOST_REPLICAS
    assert asked.contradiction is not None
    assert f"{MOST_REPLICAS} replicas or more" in asked.contradiction.message


def test_a_rate_that_floats_cannot_count_up_to_ends() -> None:
    assert scaled(asks(1e30), 1).replicas == make_spec().scaling.max_replicas


def test_unreachable_objectives_hold() -> None:
    found = scaled(asks(50.0), 4, UNREACHABLE)
    assert (found.replicas, found.reason) == (4, Reason.HOLDING)


def test_a_lone_replica_is_filled_less_than_one_of_many() -> None:
    """Square-root staffing: with a high target the SLO, not the target, decides for small pools."""
    spec = with_scaling(targetUtilization=0.95)
    assert scaled(asks(9.0), 1, **spec).replicas == 2
    assert scaled(asks(90.0), 1, **spec).replicas == 10


def test_a_decision_says_what_it_rests_on_and_what_it_rejected() -> None:
    found = scaled(asks(20.0, waiting=60), 1)
    assert found.message == (
        "20 requests/s (60 waiting) fill 1 replica to 2.00 of their capacity (target 0.70): 3 are needed"
    )
    assert found.inputs["capacity"] == "10 requests/s per replica, TPOT"
    assert found.rejected == ("2 replicas: 20 requests/s fill 1.00 of their capacity (target 0.70)",)


def test_a_cut_by_max_replicas_is_told() -> None:
    assert "8 replicas: above maxReplicas 4" in scaled(asks(50.0), 1, **with_scaling(maxReplicas=4)).rejected


def test_standby_replicas_of_before_stay_below_the_most() -> None:
    """Such a spec is refused today; one that was stored before is not let beyond what it says itself."""
    assert scaled(asks(0.0), 1, **with_scaling(standbyReplicas=9, maxReplicas=4)).replicas == 4


# --- Invariants ----------------------------------------------------------------------------------------------------

rates = st.floats(0.0, 2000.0)
counts = st.integers(0, 100)
capacities = st.builds(
    Capacity, st.floats(0.01, 100), st.just(1.0), st.just(0.1), st.just(0.01), st.just(Limit.TPOT), st.floats(0.3, 1.5)
)


@st.composite
def specs(draw: st.DrawFn) -> TokenServiceSpec:
    least = draw(st.integers(1, 20))
    scaling: dict[str, Any] = {
        "minReplicas": least,
        "maxReplicas": draw(st.integers(least, 60)),
        "standbyReplicas": draw(st.integers(0, 3)),
        "targetUtilization": draw(st.floats(0.05, 0.95)),
    }
    guaranteed = draw(st.none() | st.floats(1.0, 1e5))
    volume = {} if guaranteed is None else {"volume": {"guaranteedTokensPerSecond": guaranteed}}
    return make_spec(scaling=scaling, objectives=volume)


@st.composite
def demands(draw: st.DrawFn) -> Demand:
    now = draw(rates)
    return asks(now, peak=now + draw(rates), forecast=now * draw(st.floats(1.0, 1.5)))


@given(specs(), counts, st.one_of(demands(), st.just(GONE)), capacities)
def test_never_below_the_floor(
    spec: TokenServiceSpec, current: int, demand: Demand | Missing, capacity: Capacity
) -> None:
    found = desired(spec, current, demand, capacity, FLEET)
    assert found.replicas >= found.floor >= spec.scaling.min_replicas
    volume = spec.objectives.volume
    if volume is not None and volume.guaranteed_tokens_per_second is not None and isinstance(demand, Demand):
        covered = found.replicas * capacity.requests_per_second * demand.workload.output_tokens
        owed = volume.guaranteed_tokens_per_second * (1 - 1e-6)
        assert covered >= owed or found.replicas >= MOST_REPLICAS


@given(specs(), counts, capacities)
def test_missing_metrics_never_lower_a_count(spec: TokenServiceSpec, current: int, capacity: Capacity) -> None:
    assert desired(spec, current, GONE, capacity, FLEET).replicas >= current


@given(specs(), counts, capacities, rates, rates)
def test_more_demand_never_means_fewer_replicas(
    spec: TokenServiceSpec, current: int, capacity: Capacity, one: float, other: float
) -> None:
    less, more = (desired(spec, current, asks(rate), capacity, FLEET) for rate in sorted((one, other)))
    assert less.replicas <= more.replicas


@given(specs(), counts, demands(), capacities)
def test_constant_demand_settles_at_once(
    spec: TokenServiceSpec, current: int, demand: Demand, capacity: Capacity
) -> None:
    once = desired(spec, current, demand, capacity, FLEET)
    again = desired(spec, once.replicas, demand, capacity, FLEET)
    assert again.replicas == once.replicas
    assert again == desired(spec, once.replicas, demand, capacity, FLEET)


@given(specs(), capacities, st.floats(1.0, 2000.0), st.lists(st.floats(0.98, 1.02), min_size=2, max_size=20))
def test_noise_of_two_percent_moves_a_count_one_way_only(
    spec: TokenServiceSpec, capacity: Capacity, rate: float, noise: list[float]
) -> None:
    replicas = desired(spec, 0, asks(rate * noise[0]), capacity, FLEET).replicas
    for factor in noise:
        wanted = desired(spec, replicas, asks(rate * factor), capacity, FLEET).replicas
        assert wanted >= replicas
        replicas = wanted


@given(specs(), counts, demands(), capacities)
def test_what_is_kept_takes_the_demand(
    spec: TokenServiceSpec, current: int, demand: Demand, capacity: Capacity
) -> None:
    found = desired(spec, current, demand, capacity, FLEET)
    if found.replicas < found.ceiling:
        target = spec.scaling.target_utilization
        assert target is not None
        able = found.replicas * capacity.requests_per_second * target
        assert demand.forecast_requests_per_second <= able * (1 + 1e-6)
