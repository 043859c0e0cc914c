"""What holds for every peer and every setting: bounds, memory of its own, missing metrics, and who sees the future."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulate.views import GONE, LENGTHS, TARGETS, ask, make_variant, make_view, metrics
from tests.support.build import H100_8B
from tokenservice.core.capacity import Workload, capacity, latency_at
from tokenservice.core.model import ServiceMetrics
from tokenservice.core.step import StepModel
from tokenservice.simulate.policies import POLICIES, Choice, Peer
from tokenservice.simulate.policy import EngineView, Policy, ServiceView


def choices_of(peers: Iterable[Peer]) -> list[Any]:
    return [pytest.param(choice, id=f"{peer.name}: {choice.label}") for peer in peers for choice in peer.sweep]


SEES_BY_ITSELF = {"knative-kpa", "kubeai", "chiron", "melange"}
"""Peers that read nothing of the engines' metrics."""

each_choice = pytest.mark.parametrize("choice", choices_of(POLICIES.values()))
each_blind_choice = pytest.mark.parametrize(
    "choice", choices_of(peer for peer in POLICIES.values() if peer.name not in SEES_BY_ITSELF)
)

usage = st.floats(0, 1)
amount = st.floats(0, 500)


class Facts(NamedTuple):
    """What an engine, and then the service, shows."""

    running: float
    waiting: float
    kv: float
    held: float
    duty: float
    rate: float
    starting: int


facts = st.builds(
    Facts,
    amount,
    amount,
    usage,
    amount,
    usage,
    st.floats(0, 300),
    st.integers(0, 5),
)


def as_view(replicas: int, seen: Facts) -> ServiceView:
    running, waiting, kv, held, duty, rate, starting = seen
    ready = max(0, replicas - starting)
    each = EngineView(running=running, waiting=waiting, kv_usage=kv)
    buckets = ((1.0, rate / 2), (2.0, rate * 0.9), (float("inf"), rate))
    told = metrics(
        requests_per_second=rate, running=running * ready, waiting=waiting * ready, kv_usage=kv, ttft_buckets=buckets
    )
    return make_view(
        replicas,
        most=40,
        ready=ready,
        engines=(each,) * ready,
        metrics=told,
        duty_cycle=duty,
        concurrency=(running + waiting) * ready + held,
    )


@each_choice
@settings(max_examples=10, deadline=None)
@given(st.lists(facts, min_size=1, max_size=8))
def test_counts_are_whole_and_within_the_bounds_and_the_same_again(choice: Choice, seen: list[Facts]) -> None:
    def run() -> list[int]:
        policy, counts = choice.make(), [3]
        for tick, now in enumerate(seen):
            counts.append(ask(policy, tick * policy.period_seconds, as_view(counts[-1], now), lambda start, end: 20))
        return counts

    first = run()
    assert all(isinstance(count, int) and 1 <= count <= 40 for count in first)
    assert run() == first


@each_blind_choice
def test_missing_metrics_hold_the_count(choice: Choice) -> None:
    policy = choice.make()
    blind = make_view(5, metrics=GONE, duty_cycle=GONE, engines=(), concurrency=0.0)
    for tick in range(100):
        assert ask(policy, tick * policy.period_seconds, blind) == 5


@each_choice
def test_before_anything_was_seen_nothing_is_taken_away(choice: Choice) -> None:
    policy = choice.make()
    unseen = make_view(5, metrics=GONE, duty_cycle=GONE, engines=(), concurrency=GONE)
    assert min(ask(policy, tick * policy.period_seconds, unseen, lambda *_: 50.0) for tick in range(5)) == 5


@each_choice
def test_only_the_forecasting_ones_look_ahead_and_none_looks_back(choice: Choice) -> None:
    asked: list[tuple[float, float]] = []

    def expected(start: float, end: float) -> float:
        asked.append((start, end))
        return 20.0

    policy, ever = choice.make(), False
    for tick in range(5):
        now = tick * policy.period_seconds
        asked.clear()
        ask(policy, now, make_view(3), expected)
        assert all(now <= start < end for start, end in asked)
        ever = ever or bool(asked)
    assert ever == choice.foresight


def test_services_do_not_share_memory() -> None:
    for peer in POLICIES.values():
        alone, beside = peer.sweep[0].make(), peer.sweep[0].make()
        calm, busy = make_view(2, concurrency=1.0), make_view(2, concurrency=500.0, metrics=metrics(running=500))
        for tick in range(4):
            now = tick * alone.period_seconds
            ask(beside, now, _renamed(busy))
            assert ask(alone, now, calm) == ask(beside, now, calm)


def _renamed(seen: ServiceView) -> ServiceView:
    return replace(seen, key=seen.key._replace(name="other"))


# --- Steady demand -------------------------------------------------------------------------------------------------

STEP = H100_8B.spec.step
VARIANT = make_variant(StepModel(STEP.alpha_ms, STEP.beta_ms, STEP.kappa_ms, STEP.delta_ms))
RATE = capacity(VARIANT, LENGTHS, TARGETS).requests_per_second


def steady(replicas: int, load: float, work: Workload = LENGTHS) -> ServiceView:
    """What a fleet in the steady state of the closed form shows at `load` replicas' worth of demand."""
    rate = load * RATE / replicas
    at = latency_at(VARIANT, work, rate)
    swamped = at.batch > VARIANT.max_num_seqs
    running = VARIANT.max_num_seqs if swamped else at.batch
    each = EngineView(
        running=running,
        waiting=50.0 if swamped else 0.0,
        kv_usage=min(1.0, running * (work.input_tokens + work.output_tokens / 2) / VARIANT.kv_capacity_tokens),
    )
    return make_view(
        replicas,
        variant=VARIANT,
        reference_rate=RATE,
        engines=(each,) * replicas,
        metrics=_told(rate, replicas, each, at.ttft_seconds, at.tpot_seconds),
        duty_cycle=min(1.0, running),
        concurrency=(each.running + each.waiting) * replicas,
    )


def _told(rate: float, replicas: int, each: EngineView, ttft: float, tpot: float) -> ServiceMetrics:
    total = rate * replicas
    return metrics(
        requests_per_second=total,
        running=each.running * replicas,
        waiting=each.waiting * replicas,
        kv_usage=each.kv_usage,
        ttft_buckets=_buckets(total, min(ttft, 100.0)),
        tpot_buckets=_buckets(total, min(tpot, 100.0)),
    )


def _buckets(rate: float, mean: float) -> tuple[tuple[float, float], ...]:
    return ((mean / 2, 0.1 * rate), (mean * 1.5, 0.95 * rate), (mean * 4, rate), (float("inf"), rate))


def settled(make: Callable[[], Policy], load: float, seconds: float = 7200.0) -> list[int]:
    """Counts over the last half hour."""
    policy, count, late = make(), 2, []
    now = 0.0
    while now < seconds:
        count = ask(policy, now, steady(count, load), lambda start, end: load * RATE)
        now += policy.period_seconds
        if now > seconds - 1800:
            late.append(count)
    return late


@pytest.mark.parametrize("peer", sorted(set(POLICIES) - {"hpa-duty-cycle"}))
def test_with_its_best_setting_a_peer_settles_at_enough_for_a_steady_demand(peer: str) -> None:
    ends = [settled(choice.make, 6.3) for choice in POLICIES[peer].sweep]
    assert any(min(counts) >= 7 and max(counts) <= 9 for counts in ends)


def test_the_duty_cycle_cannot_tell_a_batch_of_one_from_a_full_one() -> None:
    ends = [settled(choice.make, 6.3) for choice in POLICIES["hpa-duty-cycle"].sweep]
    assert {count for counts in ends for count in counts} == {64}


# --- Words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peer", POLICIES.values(), ids=POLICIES)
def test_the_documentation_lists_every_peer_with_its_settings_and_source(peer: Peer) -> None:
    text = (Path(__file__).parents[2] / "docs/policies.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith(f"| `{peer.name}` |")]
    assert len(rows) == 1
    assert [label for label in [*(it.label for it in peer.sweep[1:]), peer.citation] if label not in rows[0]] == []


def test_the_published_default_comes_first_and_labels_differ() -> None:
    for peer in POLICIES.values():
        labels = [choice.label for choice in peer.sweep]
        assert labels[0] == "default"
        assert len(set(labels)) == len(labels)
        assert {choice.make().name for choice in peer.sweep} == {peer.name}
