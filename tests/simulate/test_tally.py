"""Requests added up by hand: both objectives or nothing, deadlines, and what never finished."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenservice.core.step import StepModel
from tokenservice.simulate.bounds import Bounds
from tokenservice.simulate.reference import Reference
from tokenservice.simulate.tally import BIN_SECONDS, Tally
from tokenservice.simulate.traffic import Outcomes, Requests

YARDSTICK = Reference(
    model=StepModel(10.0, 0.05, 0.05, 0.05),
    tensor_parallel_size=2,
    requests_per_second=4.0,
    batch=64.0,
    mean_input_tokens=1000.0,
    mean_output_tokens=200.0,
)
MEAN_WORTH = 2 / 4
BOUNDS = Bounds(ttft_seconds=1.0, tpot_seconds=0.05)

Row = tuple[float, float, float, float]
"""TTFT, TPOT, finished at, deadline."""


def tally() -> Tally:
    return Tally(YARDSTICK, BOUNDS, seconds=1800.0)


def requests(deadlines: Sequence[float], *, at: Sequence[float] | None = None, cached: int = 0) -> Requests:
    count = len(deadlines)
    return Requests(
        np.zeros(count) if at is None else np.array(at, dtype=float),
        np.full(count, 1000, np.int32),
        np.full(count, 200, np.int32),
        np.full(count, cached, np.int32),
        np.array(deadlines, dtype=float),
    )


def outcomes(*rows: Row) -> Outcomes:
    ttft, tpot, finished, deadline = np.array(rows, dtype=float).reshape(-1, 4).T
    came = requests(deadline.tolist())
    return Outcomes(
        came.at_s, came.input_tokens, came.output_tokens, came.cached_tokens, came.deadline_s, ttft, tpot, finished
    )


INTERACTIVE: dict[str, tuple[Row, tuple[int, int, int]]] = {
    "both within": ((0.5, 0.04, 10.0, nan), (1, 1, 1)),
    "just within both": ((1.0, 0.05, 10.0, nan), (1, 1, 1)),
    "late to the first token": ((1.1, 0.04, 10.0, nan), (0, 0, 1)),
    "slow after it": ((0.5, 0.06, 10.0, nan), (0, 1, 0)),
    "both missed": ((1.1, 0.06, 10.0, nan), (0, 0, 0)),
}


@pytest.mark.parametrize(("row", "counts"), INTERACTIVE.values(), ids=INTERACTIVE)
def test_a_request_is_met_within_both_objectives(row: Row, counts: tuple[int, int, int]) -> None:
    one = tally()
    one.came(requests([nan]))
    one.went(outcomes(row))
    assert (one.met, one.ttft_met, one.tpot_met) == counts
    assert (one.work_met, one.work_missed) == pytest.approx((MEAN_WORTH * counts[0], MEAN_WORTH * (1 - counts[0])))


DEFERRABLE: dict[str, tuple[Row, bool]] = {
    "in time, whatever its latencies": ((500.0, 9.0, 600.0, 600.0), True),
    "too late, however fast": ((0.1, 0.01, 600.1, 600.0), False),
}


@pytest.mark.parametrize(("row", "met"), DEFERRABLE.values(), ids=DEFERRABLE)
def test_a_deferrable_request_is_met_by_its_deadline_alone(row: Row, met: bool) -> None:
    one = tally()
    one.came(requests([600.0]))
    one.went(outcomes(row))
    assert (one.deferrable_attainment, one.work_met) == (met, MEAN_WORTH * met)
    assert (one.arrived, one.met, one.attainment) == (0, 0, 1.0)


def test_what_did_not_finish_is_a_miss_and_its_tokens_are_owed() -> None:
    one = tally()
    one.came(requests([nan, nan, nan, 600.0]))
    one.went(outcomes((0.5, 0.04, 10.0, nan)))
    assert (one.attainment, one.deferrable_attainment) == (pytest.approx(1 / 3), 0.0)
    assert (one.tokens_owed, one.output_tokens, one.output_tokens_met) == (600, 200, 200)
    assert one.work_offered == pytest.approx(4 * MEAN_WORTH)


def test_where_nothing_came_nothing_was_missed() -> None:
    one = tally()
    one.came(requests([]))
    one.went(outcomes())
    assert (one.attainment, one.deferrable_attainment, one.work_offered) == (1.0, 1.0, 0.0)


def test_a_prompt_found_in_the_cache_is_worth_less() -> None:
    whole, cached = tally(), tally()
    whole.came(requests([nan]))
    cached.came(requests([nan], cached=999))
    per_token = 10 / 64 + 0.05 + 0.05 * 1100 / 1000
    share = (0.05 * 1 + 200 * per_token) / (0.05 * 1000 + 200 * per_token)
    assert cached.work_offered == pytest.approx(whole.work_offered * share)


def test_a_worth_is_the_same_one_by_one_and_all_at_once() -> None:
    inputs, outputs = np.array([10.0, 1000.0, 5000.0]), np.array([1.0, 200.0, 900.0])
    together = YARDSTICK.accelerator_seconds(inputs, outputs, inputs)
    apart = [
        YARDSTICK.accelerator_seconds(prompt, answer, prompt)
        for prompt, answer in zip(inputs.tolist(), outputs.tolist(), strict=True)
    ]
    assert together.tolist() == pytest.approx(apart)
    assert apart[1] == MEAN_WORTH


def test_work_is_binned_where_it_came_and_where_it_was_finished() -> None:
    one = tally()
    one.came(requests([nan, nan], at=[0.0, BIN_SECONDS]))
    one.went(outcomes((0.5, 0.04, BIN_SECONDS - 1, nan), (0.5, 0.04, 1e6, nan), (9.9, 0.04, 10.0, nan)))
    assert one.offered.tolist() == [MEAN_WORTH, MEAN_WORTH, 0, 0]
    assert one.delivered.tolist() == [MEAN_WORTH, 0, 0, MEAN_WORTH]


rows = st.tuples(st.floats(0, 2), st.floats(0, 0.1), st.floats(0, 1000), st.sampled_from([nan, 300.0, 900.0]))


@given(st.lists(rows, max_size=30), st.integers(0, 30))
def test_however_they_are_cut_met_missed_and_unfinished_are_all_that_came(done: list[Row], cut: int) -> None:
    whole, parts = tally(), tally()
    deadlines = [row[3] for row in done] + [nan, 600.0]
    for one, stretches in ((whole, [done]), (parts, [done[:cut], done[cut:]])):
        one.came(requests(deadlines))
        for stretch in stretches:
            one.went(outcomes(*stretch))
    assert (whole.met, whole.ttft_met, whole.deferrable_met) == (parts.met, parts.ttft_met, parts.deferrable_met)
    assert (whole.finished, whole.tokens_owed) == (len(done), 2 * 200)
    assert whole.work_met + whole.work_missed == pytest.approx(len(done) * MEAN_WORTH)
    assert whole.met <= min(whole.ttft_met, whole.tpot_met) <= whole.arrived
    assert whole.work_offered == pytest.approx(len(deadlines) * MEAN_WORTH)
