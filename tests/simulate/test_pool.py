"""The compiled pool against engines and a router in Python, request by request, and its own promises."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulate.engine_pool import Call, EnginePool
from tokenservice.core.step import StepModel
from tokenservice.simulate import pool_kernel as kernel
from tokenservice.simulate.bounds import Bounds
from tokenservice.simulate.engine import EngineLimits
from tokenservice.simulate.pool import Pool, prepare
from tokenservice.simulate.pool_state import BLOCK
from tokenservice.simulate.traffic import Outcomes, Requests

BOUNDS = Bounds(ttft_seconds=0.2, tpot_seconds=0.03)
LLAMA_8B_H100 = StepModel(alpha_ms=6.42091, beta_ms=0.0, kappa_ms=0.0499408, delta_ms=0.0196031)
ROOMY = EngineLimits(max_num_seqs=256, max_num_batched_tokens=8192, kv_capacity_tokens=438_681)
TICK_S = 1 / 128  # exact, also in milliseconds

# Powers of two, so that sums are exact whatever their order: many things happen at one instant, and still agree.
exact_steps = st.builds(
    StepModel,
    alpha_ms=st.sampled_from([3.90625, 4.0, 7.8125, 16.0]),
    beta_ms=st.sampled_from([0.0, 0.125, 1.0]),
    kappa_ms=st.sampled_from([0.0, 15.625, 62.5]),
    delta_ms=st.sampled_from([0.0, 0.0625, 0.5]),
)
tight_limits = st.builds(
    EngineLimits,
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(6, 40),
    kv_capacity_tokens=st.integers(60, 140),
)


@dataclass(frozen=True, slots=True)
class Add:
    step: StepModel
    limits: EngineLimits
    weight: float
    routable: bool


@dataclass(frozen=True, slots=True)
class Open:
    which: int
    routable: bool


@dataclass(frozen=True, slots=True)
class Fail:
    which: int


@dataclass(frozen=True, slots=True)
class Remove:
    which: int


@dataclass(frozen=True, slots=True)
class Fill:
    to: float


@dataclass(frozen=True, slots=True)
class Advance:
    """Offsets in ticks from now, ascending: the arrivals', and that of the end."""

    arrivals: tuple[tuple[int, Call], ...]
    ticks: int


Deed = Add | Open | Fail | Remove | Fill | Advance


@st.composite
def advances(draw: st.DrawFn) -> Advance:
    gap = st.sampled_from([0, 0, 0, 1, 1, 2, 5, 20])
    offset, arrivals = 0, []
    for _ in range(draw(st.integers(0, 8))):
        offset += draw(gap)
        prompt = draw(st.integers(1, 40))
        cached = draw(st.sampled_from([0, 0, prompt - 1, prompt // 2]))
        deadline = draw(st.sampled_from([nan, nan, 0.5, 1.0, 4.0]))
        arrivals.append((offset, Call(0.0, prompt, draw(st.integers(1, 20)), cached, deadline)))
    return Advance(tuple(arrivals), offset + draw(gap))


adds = st.builds(
    Add, exact_steps, tight_limits, st.sampled_from([1.0, 1.0, 0.5, 2.0]), st.sampled_from([True, True, False])
)
deeds = st.lists(
    st.one_of(
        advances(),
        advances(),
        advances(),
        adds,
        st.builds(Open, st.integers(0, 5), st.booleans()),
        st.builds(Fail, st.integers(0, 5)),
        st.builds(Remove, st.integers(0, 5)),
        st.builds(Fill, st.sampled_from([0.0, 1.0, 2.5, 8.0])),
    ),
    max_size=14,
)


def requests(calls: Iterable[Call]) -> Requests:
    rows = [(it.at_s, it.input_tokens, it.output_tokens, it.cached_tokens, it.deadline_s) for it in calls]
    at, prompt, output, cached, deadline = zip(*rows, strict=True) if rows else ((),) * 5
    ints = [np.array(column, np.int32) for column in (prompt, output, cached)]
    return Requests(np.array(at, float), *ints, np.array(deadline, float))


def rows(outcomes: Outcomes) -> list[tuple[float, ...]]:
    fields = ("at_s", "input_tokens", "output_tokens", "cached_tokens", "ttft_s", "tpot_s", "finished_s")
    return list(zip(*(getattr(outcomes, field).tolist() for field in fields), strict=True))


class Both:
    """The compiled pool and the plain one, told the same."""

    def __init__(self) -> None:
        self.pool, self.plain = Pool(BOUNDS), EnginePool()
        self.outcomes: list[tuple[float, ...]] = []

    def do(self, deed: Deed) -> None:
        match deed:
            case Add():
                slot = self.pool.add(deed.step, deed.limits, weight=deed.weight)
                assert slot == self.plain.add(deed.step, deed.limits, deed.weight)
                self._open(slot, deed.routable)
            case Advance():
                self.advance([(offset * TICK_S, call) for offset, call in deed.arrivals], deed.ticks * TICK_S)
            case Fill():
                self.pool.fill_to = self.plain.fill_to = deed.to
            case _ if deed.which in self.plain.replicas:
                self._do_to(deed, deed.which)
            case _:
                with pytest.raises(ValueError, match="holds no replica"):
                    self.pool.unfinished(deed.which)

    def _do_to(self, deed: Open | Fail | Remove, slot: int) -> None:
        match deed:
            case Open():
                self._open(slot, deed.routable)
            case Remove() if self.plain.replicas[slot].unfinished:
                with pytest.raises(ValueError, match="unfinished requests"):
                    self.pool.remove(slot)
            case Remove():
                self.pool.remove(slot)
                self.plain.fail(slot)
            case Fail():
                lost, expected = self.pool.fail(slot), requests(self.plain.fail(slot))
                assert lost.at_s.tolist() == expected.at_s.tolist()
                assert sorted(lost.input_tokens.tolist()) == sorted(expected.input_tokens.tolist())

    def _open(self, slot: int, routable: bool) -> None:
        self.pool.open(slot, routable)
        self.plain.open(slot, routable)

    def advance(self, arrivals: list[tuple[float, Call]], seconds: float) -> None:
        now = self.pool.now_s
        calls = [
            Call(now + after, it.input_tokens, it.output_tokens, it.cached_tokens, it.deadline_s)
            for after, it in arrivals
        ]
        self.outcomes += rows(self.pool.advance(requests(calls), now + seconds))
        self.plain.advance(calls, now + seconds)

    def expected(self) -> list[tuple[float, ...]]:
        done = []
        for number, finished_ms in self.plain.finished_ms.items():
            call, first_ms = self.plain.calls[number], self.plain.first_token_ms[number]
            tpot = (finished_ms - first_ms) / max(1, call.output_tokens - 1) / 1000
            lengths = (call.input_tokens, call.output_tokens, call.cached_tokens)
            done.append((call.at_s, *lengths, (first_ms - call.at_s * 1000) / 1000, tpot, finished_ms / 1000))
        return done

    def gauges(self) -> tuple[dict[str, Any], dict[str, Any]]:
        stats, plain, slots = self.pool.stats(), self.plain, sorted(self.plain.replicas)
        engines = [plain.replicas[slot].engine for slot in slots]
        mine = {
            "slots": np.flatnonzero(stats.alive).tolist(),
            "unfinished": [self.pool.unfinished(slot) for slot in slots],
            "running": stats.running[slots].tolist(),
            "waiting": stats.waiting[slots].tolist(),
            "generated": stats.generation_tokens[slots].tolist(),
            "prompts": stats.prompt_tokens[slots].tolist(),
            "kv": stats.kv_usage[slots].tolist(),
            "preemptions": stats.totals.preemptions,
            "waits": (stats.held, stats.deferred),
            "integral": stats.unfinished_request_seconds,
            "finished": (stats.totals.finished, stats.tpot_counts[-1]),
            "first tokens": stats.ttft_counts[-1],
        }
        theirs = {
            "slots": slots,
            "unfinished": [plain.replicas[slot].unfinished for slot in slots],
            "running": [it.running for it in engines],
            "waiting": [it.waiting for it in engines],
            "generated": [it.generated_tokens for it in engines],
            "prompts": [it.prompt_tokens for it in engines],
            "kv": [it.kv_used_tokens / it.limits.kv_capacity_tokens for it in engines],
            "preemptions": plain.preemptions,
            "waits": (len(plain.held), len(plain.deferred)),
            "integral": plain.unfinished_request_ms / 1000,
            "finished": (len(plain.finished_ms), len(plain.finished_ms)),
            "first tokens": len(plain.first_token_ms),
        }
        return mine, theirs


@settings(max_examples=400)
@given(adds, deeds)
def test_every_request_fares_as_with_plain_engines_whatever_happens_to_replicas(first: Add, then: list[Deed]) -> None:
    both = Both()
    for deed in (first, *then, Advance((), 60)):
        both.do(deed)
        mine, theirs = both.gauges()
        assert mine == theirs
    assert sorted(both.outcomes) == sorted(both.expected())


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.integers(1, 12),
    st.floats(0.2, 1.5),
    st.sampled_from([(8, 64, 3000), (64, 512, 12_000), (256, 8192, 438_681)]),
)
def test_random_traffic_fares_as_with_plain_engines(
    seed: int, replicas: int, load: float, size: tuple[int, int, int]
) -> None:
    rng = np.random.default_rng(seed)
    both = Both()
    for _ in range(replicas):
        step = StepModel(rng.uniform(2, 30), rng.uniform(0, 0.3), rng.uniform(0, 0.5), rng.uniform(0, 0.1))
        both.do(Add(step, EngineLimits(*size), rng.uniform(0.5, 2), routable=True))
    both.do(Fill(float(rng.uniform(0, 20))))
    for _ in range(4):
        after = np.sort(rng.uniform(0, 5, int(load * 30)))
        both.advance([(at, random_call(rng)) for at in after.tolist()], 5.0)
    both.advance([], 2000.0)
    assert both.gauges()[0]["preemptions"] == both.gauges()[1]["preemptions"]
    mine, theirs = np.array(sorted(both.outcomes)), np.array(sorted(both.expected()))
    np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-9)


def random_call(rng: np.random.Generator) -> Call:
    prompt = int(rng.integers(1, 1500))
    deadline = float(rng.choice([nan, nan, 30.0, 60.0]))
    return Call(0.0, prompt, int(rng.integers(1, 400)), int(rng.integers(0, prompt)), deadline)


def pool_of(replicas: int) -> Pool:
    pool = Pool(BOUNDS)
    for _ in range(replicas):
        pool.open(pool.add(LLAMA_8B_H100, ROOMY), True)
    return pool


def call(at_s: float = 0.0, prompt: int = 100, output: int = 10, cached: int = 0, deadline_s: float = nan) -> Call:
    return Call(at_s, prompt, output, cached, deadline_s)


NONE = requests([])


def test_one_long_advance_equals_many_short_ones_and_its_memory_is_that_of_what_is_unfinished() -> None:
    rng = np.random.default_rng(1)
    at = np.sort(rng.uniform(0, 600, 3 * BLOCK))
    traffic = requests(call(float(it), int(rng.integers(1, 2000)), int(rng.integers(1, 300))) for it in at)
    whole, parts = pool_of(3), pool_of(3)
    outcomes = rows(whole.advance(traffic, 700.0))
    stepwise: list[tuple[float, ...]] = []
    for start in range(0, 700, 5):
        now = (at >= start) & (at < start + 5)
        stretch = Requests(*(getattr(traffic, field)[now] for field in traffic.__slots__))
        stepwise += rows(parts.advance(stretch, start + 5.0))
    assert outcomes == stepwise
    assert len(outcomes) == len(traffic)
    assert len(whole._state.sequences) <= 2 * BLOCK


@pytest.mark.parametrize(
    ("arrivals", "message"),
    {
        "early": ([call(0.5)], "request 0: at_s"),
        "late": ([call(1.0), call(2.5)], "request 1: at_s"),
        "unsorted": ([call(1.5), call(1.25)], "request 1: at_s"),
        "not a time": ([call(nan)], "request 0: at_s"),
        "no prompt": ([call(1.0, prompt=0)], "input_tokens"),
        "no output": ([call(1.0, output=0)], "output_tokens"),
        "all cached": ([call(1.0, prompt=5, cached=5)], "cached_tokens"),
        "too large": ([call(1.0, prompt=438_681, output=2)], "kv_capacity_tokens"),
        "wrong in a later block": ([call(1.0)] * BLOCK + [call(1.0, output=0)], f"request {BLOCK}: input_tokens"),
    }.values(),
)
def test_arrivals_that_make_no_sense_are_refused_before_anything_happens(arrivals: list[Call], message: str) -> None:
    pool = pool_of(1)
    pool.advance(NONE, 1.0)
    with pytest.raises(ValueError, match=message):
        pool.advance(requests(arrivals), 2.0)
    assert (pool.now_s, pool.unfinished(0), pool.stats().interactive_arrived) == (1.0, 0, 0)


@pytest.mark.parametrize("until_s", [0.5, nan, float("inf")])
def test_time_only_moves_forward_and_never_to_the_end_of_days(until_s: float) -> None:
    pool = pool_of(1)
    pool.advance(NONE, 1.0)
    with pytest.raises(ValueError, match="until_s"):
        pool.advance(NONE, until_s)


def test_a_replica_that_could_not_hold_what_waits_is_refused() -> None:
    pool = Pool(BOUNDS)
    pool.advance(requests([call(prompt=90, output=20)]), 1.0)
    with pytest.raises(ValueError, match="a waiting request needs 109"):
        pool.add(LLAMA_8B_H100, EngineLimits(1, 8, 108))
    assert pool.add(LLAMA_8B_H100, EngineLimits(1, 8, 109)) == 0


@pytest.mark.parametrize(
    ("step", "weight", "message"),
    [(LLAMA_8B_H100, 0.0, "weight"), (LLAMA_8B_H100, nan, "weight"), (StepModel(0, 1, 1, 1), 1.0, "alpha_ms")],
)
def test_a_replica_in_which_time_or_load_would_stand_still_is_refused(
    step: StepModel, weight: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Pool(BOUNDS).add(step, ROOMY, weight=weight)


def test_a_held_requests_wait_counts_and_a_deferred_ones_is_its_own_affair() -> None:
    pool = Pool(BOUNDS)
    pool.fill_to = 4.0
    pool.advance(requests([call(), call(deadline_s=60.0)]), 30.0)
    stats = pool.stats()
    assert (stats.held, stats.deferred, stats.unfinished_request_seconds) == (1, 1, 30.0)
    pool.open(pool.add(LLAMA_8B_H100, ROOMY), True)
    outcomes = pool.advance(NONE, 40.0)
    assert (outcomes.ttft_s > 30).all()
    engine_saw = dict(zip(pool.ttft_edges_s, pool.stats().ttft_counts.tolist(), strict=True))
    assert (engine_saw[20.0], engine_saw[40.0]) == (1, 2)
    assert (pool.stats().met_targets, pool.stats().met_deadlines) == (0, 1)


def test_the_histograms_are_those_of_the_outcomes_with_an_edge_at_each_target() -> None:
    rng = np.random.default_rng(2)
    pool = pool_of(1)
    at = np.sort(rng.uniform(0, 60, 1200))
    lengths = zip(at.tolist(), rng.integers(1, 3000, 1200).tolist(), rng.integers(1, 300, 1200).tolist(), strict=True)
    outcomes = pool.advance(requests(call(*it) for it in lengths), 600.0)
    stats = pool.stats()
    for values, edges, counts in (
        (outcomes.ttft_s, pool.ttft_edges_s, stats.ttft_counts),
        (outcomes.tpot_s, pool.tpot_edges_s, stats.tpot_counts),
    ):
        assert [int((values <= edge).sum()) for edge in edges] == counts.tolist()
    assert BOUNDS.ttft_seconds in pool.ttft_edges_s
    assert BOUNDS.tpot_seconds in pool.tpot_edges_s
    met = (outcomes.ttft_s <= BOUNDS.ttft_seconds) & (outcomes.tpot_s <= BOUNDS.tpot_seconds)
    assert 0 < stats.met_targets == met.sum() < len(outcomes)


def test_a_replica_is_busy_from_its_first_iteration_to_its_last_however_often_one_looks() -> None:
    pool = pool_of(2)
    pool.advance(requests([call(output=200)]), 0.5)
    assert pool.stats().busy_seconds.tolist() == [0.5, 0.0]
    outcomes = pool.advance(NONE, 50.0)
    assert pool.stats().busy_seconds.tolist() == pytest.approx([outcomes.finished_s[0], 0.0])


def test_a_new_replica_in_an_old_slot_counts_from_zero_and_the_totals_go_on() -> None:
    pool = pool_of(1)
    pool.advance(requests([call(), call(prompt=50, cached=20)]), 10.0)
    pool.advance(requests([call(10.0, output=500)]), 10.5)
    before = pool.stats().totals
    assert len(pool.fail(0)) == 1
    assert pool.stats().totals == before
    assert pool.add(LLAMA_8B_H100, ROOMY) == 0
    stats = pool.stats()
    assert (stats.arrived[0], stats.generation_tokens[0], stats.busy_seconds[0]) == (0, 0, 0.0)
    assert stats.totals == before
    assert (before.arrived, before.finished, before.prompt_tokens, before.cached_tokens) == (3, 2, 250, 20)


def test_without_numba_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['numba'] = None; import tokenservice.simulate.pool"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stderr.strip().endswith("install tokenservice[simulate]")


def test_what_is_prepared_serves_whatever_kind_of_number_comes() -> None:
    prepare()
    kinds = list(kernel.advance.signatures)
    pool = pool_of(1)
    pool.advance(Requests(*(np.array([value]) for value in (1, 10, 10, 0, nan))), 2)
    pool.advance(NONE, np.float64(3))
    assert kernel.advance.signatures == kinds
