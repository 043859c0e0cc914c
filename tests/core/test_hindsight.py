"""How long capacity for a peak is held: what is kept of demand, which rule wins in hindsight, and what it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.build import FLEET, NOW, VARIANT, make_deployment, make_metrics, make_node, make_pod, make_service
from tests.support.build import make_snapshot as snapshot_of
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.capacity import Workload
from tokenservice.core.decide import decide
from tokenservice.core.demand import Demand
from tokenservice.core.hindsight import (
    FACTORS,
    GROWTHS,
    LEADS,
    Hindsight,
    Hold,
    Look,
    ahead,
    all_advice,
    all_lived,
    begun,
    lived,
    paid,
    peak,
    rule,
    rules,
)
from tokenservice.core.memo import Memo
from tokenservice.core.model import Missing, Plan, Service, ServiceKey, ServiceMetrics

LEAD, CAPACITY, TOLERATED, ALLOWED = 80.0, 10.0, 1.0, 0.006
LONGEST_STEP = 60.0
PARTS = 16
"""Parts of a window; what it keeps is off by at most one."""

Rate = Callable[[float], float]


def looked(rates: Iterable[tuple[float, float]], lead: float = LEAD, capacity: float = CAPACITY) -> Hindsight:
    """The record after these (time, requests per second), each time later than the last."""
    record = begun(lead, 0.0)
    for now, rate in rates:
        record = lived(record, rate, capacity, TOLERATED, 1, now)
    return record


def watched(rate: Rate, seconds: float, step: float = 5.0) -> Hindsight:
    return looked((number * step, rate(number * step)) for number in range(1, int(seconds / step) + 1))


def best(record: Hindsight) -> Hold:
    hold = rule(record, ALLOWED)
    assert hold is not None
    return hold


def at(growth: float = 0.0, leads: float = 0.5, factor: float = 1.0) -> Hold:
    return Hold(int(np.flatnonzero(leads == LEADS)[0]), int(np.flatnonzero(growth == GROWTHS)[0]), factor)


def of_rule(values: np.ndarray, hold: Hold) -> float:
    """A rule's own entry."""
    shape = (len(GROWTHS), len(LEADS), len(FACTORS))
    return float(values.reshape(shape)[hold.growth, hold.window, list(FACTORS).index(hold.factor)])


def missed(record: Hindsight, hold: Hold) -> float:
    return of_rule(record.missed, hold) / record.arrived


def cost(record: Hindsight, hold: Hold) -> float:
    return of_rule(record.cost, hold)


# --- which rule wins -------------------------------------------------------------------------------------------------


@given(st.floats(0.5, 500), st.floats(5, 600))
@settings(max_examples=20)
def test_for_steady_demand_nothing_is_held_that_is_not_needed_and_nothing_misses(rate: float, lead: float) -> None:
    long_enough = max(5 * lead, 900.0) + 100
    record = looked(((second, rate) for second in np.arange(10.0, long_enough, 10.0)), lead)
    hold = best(record)
    assert missed(record, hold) <= ALLOWED
    assert of_rule(paid(record), hold) == paid(record).min() or record.missed[paid(record).argmin()] > 0
    assert peak(record, hold) <= rate


def on_off(on: float, off: float, high: float = 95.0, low: float = 1.0) -> Rate:
    return lambda second: high if second % (on + off) < on else low


@pytest.mark.parametrize("off", [200.0, 400.0, 900.0])
def test_where_demand_comes_back_after_a_lull_its_capacity_is_held_over_the_lull(off: float) -> None:
    record = watched(on_off(off, off), 12 * 2 * off)
    hold = best(record)
    assert LEADS[hold.window] * LEAD * (PARTS + 1) / PARTS > off
    assert missed(record, hold) < 0.02 < missed(record, at())


def test_capacity_is_not_held_over_a_lull_that_is_hours_long() -> None:
    """The onset costs a lead of misses a day at most; holding would cost half the day."""
    record = watched(on_off(36_000.0, 36_000.0), 4 * 72_000.0, step=20.0)
    assert LEADS[best(record).window] * LEAD < 36_000


def hourly(second: float) -> float:
    """Up in an hour, down at once."""
    return 5 + 400 * (second % 3600.0) / 3600.0


def test_a_slope_counts_where_it_pays() -> None:
    """Along it half the replicas do, and nearly nothing is late; without it only the last peak would be enough."""
    record = watched(hourly, 8 * 3600.0)
    hold = best(record)
    assert GROWTHS[hold.growth] == 1
    assert missed(record, hold) < ALLOWED < missed(record, replace(hold, growth=0))
    assert cost(record, hold) < 0.65 * cost(record, at(leads=64.0))


def test_a_slope_is_no_reason_for_more_where_demand_is_steady() -> None:
    assert GROWTHS[best(watched(lambda _: 40.0, 3600.0)).growth] == 0


@given(st.lists(st.tuples(st.floats(1, 90), st.floats(0, 300)), min_size=60, max_size=120))
@settings(max_examples=20, deadline=None)
def test_the_rule_is_the_cheapest_of_those_that_miss_as_little(looks: list[tuple[float, float]]) -> None:
    """... as far as that was seen: what is charged for what was not is left out here."""
    times = np.cumsum([step for step, _ in looks])
    record = looked(zip(times, (rate for _, rate in looks), strict=True), lead=20.0)
    hold = rule(replace(record, highest=0.0), ALLOWED)
    if hold is None:
        return
    no_more = record.missed <= of_rule(record.missed, hold)
    assert of_rule(paid(record), hold) <= paid(record)[no_more].min() * (1 + 1e-9)


def test_demand_that_only_trembles_moves_no_replica() -> None:
    """What is held over each dip costs less than to let it go and start it anew, though no rule misses too much."""
    tremble, record = np.random.default_rng(0), begun(LEAD, 0.0, able=250.0)
    for number in range(1, 721):
        record = lived(record, tremble.normal(200, 20), CAPACITY, 30.0, 1, 5.0 * number)
    assert record.missed.max() < ALLOWED * record.arrived
    followed = of_rule(record.started, at(factor=0.7))
    assert followed > 100
    assert of_rule(record.started, best(record)) < 0.2 * followed


def test_each_start_is_paid_for_once() -> None:
    record, rises, before = begun(LEAD, 0.0), 0.0, 10.0
    for number in range(1, 121):
        record = lived(record, 95.0 if number % 40 < 20 else 35.0, CAPACITY, TOLERATED, 1, 5.0 * number)
        now = of_rule(record.wanted, at())
        rises, before = rises + max(0.0, now - before), now
    assert rises > 10
    assert of_rule(record.started, at()) == pytest.approx(rises, rel=0.05)  # what is long past fades
    assert of_rule(record.started, at(leads=64.0)) < of_rule(record.started, at())
    assert of_rule(paid(record), at()) == pytest.approx(cost(record, at()) + LEAD * of_rule(record.started, at()))


def test_what_was_not_seen_yet_weighs_less_the_longer_the_record_is() -> None:
    """A level that demand left after five minutes is held at first, but for what may queue, and let go in the end."""
    left = lambda second: 160.0 if second < 200 else 100.0  # noqa: E731
    short, long = watched(left, 6 * LEAD), watched(left, 6 * 3600.0, step=10.0)
    assert peak(short, best(short)) >= 0.9 * 160
    assert peak(long, best(long)) <= 100


def test_what_may_queue_until_replicas_have_loaded_need_not_be_held() -> None:
    left = watched(lambda second: 200.0 if second < 200 else 100.0, 6 * LEAD)
    impatient, patient = replace(left, tolerated_seconds=0.0), replace(left, tolerated_seconds=LEAD)
    assert peak(patient, best(patient)) < peak(impatient, best(impatient))


def test_every_rule_starts_from_the_fleet_that_is_there() -> None:
    """One that lets go after half a lead saves the most; what comes meanwhile was not missed by any."""
    record = begun(LEAD, 0.0, able=200.0)
    for now in np.arange(5.0, 3 * LEAD, 5.0):
        record = lived(record, 150.0 if now < LEAD / 4 else 20.0, CAPACITY, TOLERATED, 1, now)
    assert record.missed.max() == 0
    assert cost(record, at(leads=64.0)) == pytest.approx(20 * record.covered)
    assert cost(record, at()) < 0.8 * cost(record, at(leads=64.0))


def test_a_queue_is_worked_off_in_hindsight_as_it_would_be() -> None:
    """Replicas for demand alone would never catch up with what came before they had loaded."""
    record = watched(lambda second: 20.0 if second < 600 else 60.0, 3600.0)
    assert record.queues.max() == 0
    assert missed(record, at(growth=0.0)) < 0.3


# --- when it is trusted ----------------------------------------------------------------------------------------------


def lulled(lull: float) -> Rate:
    """Demand that falls below half for so many seconds, once."""
    return lambda second: 8.0 if 100 <= second < 100 + lull else 20.0


TRUSTED: dict[str, tuple[float, float, float]] = {
    "five leads": (30.0, 0.0, 150.0),
    "five longer leads": (400.0, 0.0, 2000.0),
    "five times the longest lull": (30.0, 100.0, 500.0),
    "a quarter of an hour where lulls are longer": (30.0, 600.0, 900.0),
    "five leads where they are longer than that": (200.0, 600.0, 1000.0),
}


@pytest.mark.parametrize(("lead", "lull", "long_enough"), TRUSTED.values(), ids=TRUSTED)
def test_a_record_is_trusted_once_it_has_seen_demand_come_back(lead: float, lull: float, long_enough: float) -> None:
    rate = lulled(lull)
    looks = [(second, rate(second)) for second in np.arange(5.0, long_enough, 5.0)]
    assert rule(looked(looks, lead), ALLOWED) is None
    assert rule(looked([*looks, (long_enough, 20.0)], lead), ALLOWED) is not None


def test_time_that_was_not_watched_does_not_count() -> None:
    record = looked([(5.0, 20.0), (100_000.0, 20.0)])
    assert record.seconds == 65.0
    assert rule(record, ALLOWED) is None


@pytest.mark.parametrize("now", [1000.0, 999.0, -5.0])
def test_a_look_at_no_later_time_changes_nothing(now: float) -> None:
    record = watched(lambda _: 20.0, 1000.0)
    assert lived(record, 500.0, CAPACITY, TOLERATED, 1, now) is record


def test_a_pause_does_not_make_a_queue_of_hours() -> None:
    """Nobody saw what arrived meanwhile: a minute of it is assumed."""
    record = looked([(5.0, 20.0), (10.0, 20.0), (7210.0, 400.0)])
    assert record.queues.max() <= 400.0 * 60


@pytest.mark.parametrize("hours", [0.25, 1.0, 6.0])
def test_time_for_which_nobody_could_look_is_no_time_without_demand(hours: float) -> None:
    """Prometheus was away: what was held before is held when it is back, whatever came meanwhile."""
    record = watched(on_off(300, 300), 5700.0)
    at, rule_of_it = record.at, best(record)
    soon, late = (lived(record, 1.0, CAPACITY, TOLERATED, 1, at + pause) for pause in (60.0, hours * 3600))
    assert np.array_equal(soon.peaks, late.peaks)
    assert peak(late, rule_of_it) == peak(soon, rule_of_it) > 10
    assert late.longest_lull == soon.longest_lull


def test_the_same_record_for_the_same_demand() -> None:
    one, other = (watched(on_off(300, 300), 3600.0) for _ in range(2))
    for part in fields(Hindsight):
        assert np.array_equal(getattr(one, part.name), getattr(other, part.name)), part.name


def test_a_record_is_never_written_to() -> None:
    record = watched(on_off(100, 100), 1000.0)
    before = {part.name: np.copy(getattr(record, part.name)) for part in fields(Hindsight)}
    for step in (1.0, 50.0, 5000.0):
        lived(record, 900.0, CAPACITY, TOLERATED, 1, record.at + step)
    rule(record, ALLOWED), peak(record, at()), ahead(record, at())
    for name, value in before.items():
        assert np.array_equal(getattr(record, name), value), name


@given(
    st.lists(st.tuples(st.floats(10, 300), st.floats(0, 500), st.floats(0.5, 50)), min_size=2, max_size=8), st.data()
)
@settings(max_examples=20, deadline=None)
def test_records_that_are_looked_at_together_are_those_looked_at_alone(
    services: list[tuple[float, float, float]], data: st.DataObject
) -> None:
    """Services come and go between the looks, so that every batch is another."""
    alone = [begun(lead, 0.0) for lead, _, _ in services]
    together = list(alone)
    for now in np.cumsum(data.draw(st.lists(st.floats(0.5, 400), min_size=1, max_size=30))).tolist():
        here = sorted(data.draw(st.sets(st.integers(0, len(services) - 1), min_size=1)))
        rates = {number: data.draw(st.floats(0, services[number][1])) for number in here}
        looks = [Look(together[n], rates[n], services[n][2], TOLERATED, 1) for n in here]
        for number, record in zip(here, all_lived(looks, now), strict=True):
            together[number] = record
            alone[number] = lived(alone[number], rates[number], services[number][2], TOLERATED, 1, now)
    for one, other in zip(alone, together, strict=True):
        for part in fields(Hindsight):
            assert np.array_equal(getattr(one, part.name), getattr(other, part.name)), part.name
    shares = [0.001 * number for number in range(len(services))]
    assert rules(together, shares) == [rule(one, share) for one, share in zip(alone, shares, strict=True)]
    assert all_advice(together, shares) == [
        all_advice([one], [share])[0] for one, share in zip(alone, shares, strict=True)
    ]


# --- what is kept ----------------------------------------------------------------------------------------------------

steps = st.one_of(st.sampled_from([1.0, 5.0, 60.0]), st.floats(0.5, 30), st.floats(100, 3000))
looks_of_demand = st.lists(st.tuples(steps, st.floats(0, 500)), min_size=1, max_size=80)


def timed(looks: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return list(zip(map(float, np.cumsum([step for step, _ in looks])), (rate for _, rate in looks), strict=True))


@given(looks_of_demand, st.floats(10, 300))
@settings(max_examples=60, deadline=None)
def test_a_peak_is_the_highest_demand_of_its_window_up_to_one_part(
    looks: list[tuple[float, float]], lead: float
) -> None:
    record = looked(timed(looks), lead)
    seen = timed([(min(step, LONGEST_STEP), rate) for step, rate in looks])  # what nobody saw makes no peak older
    now = seen[-1][0]
    for number, leads in enumerate(LEADS):
        window, slack = leads * lead, 1e-6 * now
        least = max(rate for at, rate in seen if at == now or now - at < window * (PARTS - 1) / PARTS - slack)
        most = max(rate for at, rate in seen if now - at <= window + slack)
        assert least <= record.peaks[0, number].max() <= most


@given(looks_of_demand, st.floats(10, 300), st.sampled_from(GROWTHS), st.sampled_from(LEADS))
@settings(max_examples=30, deadline=None)
def test_longer_windows_and_more_growth_never_hold_less(
    looks: list[tuple[float, float]], lead: float, growth: float, leads: float
) -> None:
    record = looked(timed(looks), lead)
    assert (np.diff(record.peaks.max(axis=2), axis=0) >= 0).all()
    held = [peak(record, at(growth, leads, factor)) for factor in FACTORS]
    assert held == sorted(held, reverse=True)
    assert ahead(record, at(growth)) <= 1.5 * record.recent[-1][1]


@given(looks_of_demand, st.floats(10, 300))
@settings(max_examples=60, deadline=None)
def test_what_a_rule_has_is_the_least_that_it_asked_for_in_the_last_lead_up_to_one_part(
    looks: list[tuple[float, float]], lead: float
) -> None:
    """Of the peak and of demand now; a queue, which would ask for more, is tolerated for as long as it takes."""
    seen, record, hold = timed(looks), begun(lead, 0.0), at(leads=2.0, factor=0.9)
    asked: list[tuple[float, float]] = []
    for now, rate in seen:
        record = replace(lived(record, rate, CAPACITY, TOLERATED, 2, now), queues=np.zeros_like(record.queues))
        asked.append((now, max(2, ceil(max(peak(record, hold), rate) / CAPACITY - 1e-9))))
    now, slack = seen[-1][0], 1e-6 * seen[-1][0]
    row = [of_rule(record.targets[:, part], hold) for part in range(PARTS)]
    most = min(count for at, count in asked if at == now or now - at < lead * (PARTS - 1) / PARTS - slack)
    least = min(count for at, count in asked if now - at <= lead + slack)
    assert least <= min(row) <= most


def test_what_a_slope_promised_is_held_for_a_lead_at_most() -> None:
    """By then it has come, or will not: only demand itself is held for longer."""
    rise = [(second, second) for second in np.arange(5.0, 101.0, 5.0)]
    record = looked([*rise, *((100.0 + after, 20.0) for after in np.arange(5.0, 2 * LEAD, 5.0))])
    assert record.peaks[2, 5].max() > 120
    assert peak(record, at(growth=1.0, leads=16.0)) == 100


def test_capacity_is_let_go_in_two_steps() -> None:
    """A lull longer than any before: half of the peak is held for a window four times as long."""
    calm = lambda seconds: looked([*((t, 80.0) for t in np.arange(5.0, 1001.0, 5.0)), *lull(seconds)])  # noqa: E731
    hold = at(leads=1.0)
    assert peak(calm(LEAD / 2), hold) == 80
    assert [peak(calm(seconds), hold) for seconds in (1.5 * LEAD, 3.5 * LEAD)] == [40, 40]
    assert peak(calm(5 * LEAD), hold) == 8


def lull(seconds: float) -> list[tuple[float, float]]:
    return [(1000.0 + after, 8.0) for after in np.arange(5.0, seconds + 1, 5.0)]


RAMP = [(float(second), 10.0 + second) for second in range(5, 31, 5)]

AHEAD: dict[str, tuple[list[tuple[float, float]], float, float]] = {
    "the present without growth": (RAMP, 0.0, 40.0),
    "half a minute along the slope": (RAMP, 0.5, 60.0),
    "never more than half above the present": ([(5.0, 0.0), (30.0, 40.0)], 1.0, 60.0),
    "falling demand is not taken to fall on": ([(5.0, 90.0), (30.0, 40.0)], 1.0, 40.0),
    "a single look has no slope": ([(5.0, 40.0)], 1.0, 40.0),
    "a look before a long gap has none either": ([(5.0, 1.0), (500.0, 40.0)], 1.0, 40.0),
}


@pytest.mark.parametrize(("looks", "growth", "expected"), AHEAD.values(), ids=AHEAD)
def test_demand_ahead(looks: list[tuple[float, float]], growth: float, expected: float) -> None:
    assert ahead(looked(looks), at(growth)) == pytest.approx(expected, rel=0.02)
    assert ahead(looked(looks), at(growth, factor=0.7)) == pytest.approx(expected, rel=0.02)


# --- the queue -------------------------------------------------------------------------------------------------------


def asked(arriving: float, waiting: float, lead: float = 60.0) -> Demand:
    return Demand(
        requests_per_second=arriving + waiting / 30,
        peak_requests_per_second=arriving,
        forecast_requests_per_second=arriving,
        workload=Workload(1000, 200),
        tokens_per_second=0.0,
        waiting=waiting,
        arriving=arriving,
        lead_seconds=lead,
    )


QUEUES: dict[str, tuple[Demand, float, float]] = {
    "no queue": (asked(10, 0), 12, 10),
    "one that is worked off within the lead": (asked(10, 100), 12, 10),
    "what is left of one by then goes within a lead": (asked(10, 180), 12, 11),
    "one that grows meanwhile": (asked(10, 60), 8, 13),
    "what is late is lost: at most what arrives": (asked(10, 1e6), 12, 20),
    "a lead of nothing gives half a minute": (asked(10, 30, lead=0.0), 0, 11),
}


@pytest.mark.parametrize(("demand", "able", "expected"), QUEUES.values(), ids=QUEUES)
def test_of_the_queue_only_what_a_new_replica_will_meet_adds_demand(
    demand: Demand, able: float, expected: float
) -> None:
    assert demand.ahead(able) == pytest.approx(expected)


@given(st.floats(0, 500), st.floats(0, 1e5), st.floats(0, 600), st.floats(0, 1000), st.floats(0, 1000))
def test_abler_replicas_never_leave_more_and_never_more_than_arrives(
    arriving: float, waiting: float, lead: float, one: float, other: float
) -> None:
    demand = asked(arriving, waiting, lead)
    weak, able = sorted((one, other))
    assert arriving <= demand.ahead(able) <= demand.ahead(weak) <= 2 * arriving
    if waiting <= (able - arriving) * lead:
        assert demand.ahead(able) == arriving


# --- what it does to counts ------------------------------------------------------------------------------------------

CHAT = make_service()
OWN_WINDOW, LEARNED = FLEET, TokenFleetSpec()
IDLE_REPLICAS = 6


def passes(
    service: Service,
    fleet: TokenFleetSpec,
    told: Iterable[ServiceMetrics | Missing],
    *,
    before: Plan | None = None,
    start: float = NOW,
    memo: Memo | None = None,
) -> list[Plan]:
    """Decisions every five seconds for six replicas that stay, each after the last."""
    pods = tuple(make_pod(f"chat-{number}") for number in range(IDLE_REPLICAS))
    child = make_deployment(service, IDLE_REPLICAS, readyReplicas=IDLE_REPLICAS)
    plans = [Plan() if before is None else before]
    for number, metrics in enumerate(told):
        seen = snapshot_of(
            service,
            nodes=(make_node("n1"),),
            pods=pods,
            children={child.key: child},
            metrics={service.key: metrics},
            fleet=fleet,
            margins=plans[-1].margins,
            hindsights=plans[-1].hindsights,
        )
        plans.append(decide(seen, start + 5.0 * number, memo))
    return plans[1:]


def test_what_stays_the_same_is_looked_at_in_time_and_not_for_all_services_at_once() -> None:
    """A look takes time; a step of more than a minute would not be learned from in full."""
    services = [make_service(f"chat-{number}") for number in range(60)]
    metrics, plan = {service.key: make_metrics(1.0) for service in services}, Plan()
    looks, since = list[int](), dict[ServiceKey, float]()
    for number in range(60):
        now = NOW + 5.0 * number
        seen = snapshot_of(*services, nodes=(make_node("n1"),), metrics=metrics, hindsights=plan.hindsights)
        before, plan = plan.hindsights, decide(seen, now)
        looked = [key for key, record in plan.hindsights.items() if record is not before.get(key)]
        assert all(now - since.get(key, now) <= 50.0 for key in looked)
        since |= dict.fromkeys(looked, now)
        looks.append(len(looked))
    assert looks[:2] == [60, 60]
    assert 0 < max(looks[2:]) < 20
    assert max(now - at for at in since.values()) <= 45.0


def wanted(plan: Plan) -> int:
    """The count that the status says is wanted."""
    (status,) = (one.status for one in plan.statuses if one.key.name == CHAT.key.name)
    return int(status["desiredReplicas"])


def quiet(count: int) -> list[ServiceMetrics]:
    return [make_metrics(0.5, engines_reporting=IDLE_REPLICAS) for _ in range(count)]


WATCHED = 81
"""Decisions, five seconds apart, in five leads of 80 s."""


def test_a_service_that_was_not_watched_never_goes_down() -> None:
    plans = passes(CHAT, LEARNED, quiet(WATCHED))
    assert {wanted(plan) for plan in plans} == {IDLE_REPLICAS}


def test_with_a_window_of_the_user_it_goes_down_at_once() -> None:
    assert wanted(passes(CHAT, OWN_WINDOW, quiet(1))[0]) == 1


def test_it_goes_down_once_demand_was_watched_for_long_enough() -> None:
    counts = [wanted(plan) for plan in passes(CHAT, LEARNED, quiet(200))]
    assert counts[:WATCHED] == [IDLE_REPLICAS] * WATCHED
    assert counts[-1] == 1


def test_the_peak_of_metrics_does_not_rule_what_was_learned() -> None:
    """Prometheus remembers an hour-old peak for as long as the user asked it to; the record knows better."""
    late = [replace(one, peak_requests_per_second=500.0) for one in quiet(200)]
    assert wanted(passes(CHAT, LEARNED, late)[-1]) == 1
    assert wanted(passes(CHAT, OWN_WINDOW, late)[-1]) == IDLE_REPLICAS


def test_a_lower_maximum_holds_before_anything_was_learned() -> None:
    bounded = replace(CHAT, spec=make_service(scaling={"maxReplicas": 3}).spec)
    assert wanted(passes(bounded, LEARNED, quiet(1))[0]) == 3


def test_what_is_said_of_a_peak_that_nobody_knows_is_no_number() -> None:
    assert "inf " not in repr(passes(CHAT, LEARNED, quiet(1))[0].statuses)


@pytest.mark.parametrize("other", [{"lead_seconds": 130.0}, {"lead_seconds": 50.0}, {"unit": "h100-vllm-tp2-bf16"}])
def test_another_time_to_load_and_replicas_of_another_worth_begin_anew(other: dict[str, Any]) -> None:
    before = passes(CHAT, LEARNED, quiet(200))[-1]
    record = before.hindsights[CHAT.key]
    known = replace(before, hindsights={CHAT.key: replace(record, **other)})
    after = passes(CHAT, LEARNED, quiet(2), before=known, start=NOW + 1000)
    anew = after[0].hindsights[CHAT.key]
    assert (anew.lead_seconds, anew.unit, anew.seconds) == (record.lead_seconds, VARIANT, 0)
    assert wanted(after[1]) == IDLE_REPLICAS


def test_a_start_that_takes_a_little_longer_forgets_nothing() -> None:
    before = passes(CHAT, LEARNED, quiet(200))[-1]
    record = before.hindsights[CHAT.key]
    known = replace(before, hindsights={CHAT.key: replace(record, lead_seconds=record.lead_seconds / 1.2)})
    after = passes(CHAT, LEARNED, quiet(2), before=known, start=NOW + 1000)
    assert after[0].hindsights[CHAT.key].seconds > record.seconds
    assert wanted(after[1]) == 1


def test_an_outage_of_metrics_leaves_the_record_as_it_was() -> None:
    before = passes(CHAT, LEARNED, quiet(10))[-1]
    gone = passes(CHAT, LEARNED, [Missing("Stale", "too old")] * 3, before=before, start=NOW + 50)[-1]
    assert gone.hindsights[CHAT.key] is before.hindsights[CHAT.key]


def test_decisions_between_two_rounds_of_metrics_leave_the_record_as_it_was() -> None:
    """... and yet a source that repeats itself is believed in the end."""
    (same,) = quiet(1)
    records = [plan.hindsights[CHAT.key] for plan in passes(CHAT, LEARNED, [same] * 20)]
    assert records[2] is records[1]
    assert records[-1].seconds > 60


def test_a_memo_changes_nothing() -> None:
    told = [make_metrics(30.0 if number % 40 < 20 else 0.5, engines_reporting=6) for number in range(230)]
    bare, spared = (passes(CHAT, LEARNED, told, memo=memo) for memo in (None, Memo()))
    assert [(plan.statuses, plan.actions) for plan in bare] == [(plan.statuses, plan.actions) for plan in spared]
