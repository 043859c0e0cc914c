"""The online refinement: it finds what is off, within bounds, and strays do it no harm."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenservice.core.refinement import LARGEST_FACTOR, LEAST_SAMPLES, Observation, Refinement, learned
from tokenservice.core.step import StepModel

STEP = StepModel(alpha_ms=10.0, beta_ms=0.05, kappa_ms=0.05, delta_ms=0.03)
PROMPT, ANSWER = 1000.0, 200.0


def window(truth: StepModel, batch: float, stray: float = 1.0) -> Observation:
    """What engines that take `truth` for a step would export at a batch."""
    context = batch * (PROMPT + 0.8 * ANSWER)
    prefill = batch * PROMPT / ANSWER
    tpot = truth.step_ms(batch, context, prefill) / 1000
    return Observation(tpot * stray, batch / tpot / stray, PROMPT, ANSWER)


def after(truth: StepModel, windows: int, seed: int = 1, strays: float = 0.0, noise: float = 0.03) -> Refinement:
    found, chance = Refinement(generation=1), random.Random(seed)
    for number in range(windows):
        stray = chance.choice((0.1, 5.0)) if chance.random() < strays else chance.lognormvariate(0, noise)
        found = learned(found, STEP, window(truth, chance.uniform(1, 120), stray=stray), 60.0 * number)
    return found


def test_factors_are_found_where_load_varies() -> None:
    truth = StepModel(12.5, 0.05 * 0.8, 0.05 * 0.8, 0.03 * 0.8)
    found = after(truth, 300)
    assert found.factors[0] == pytest.approx(1.25, rel=0.08)
    at_load = window(truth, 100)
    refined = found.applied(STEP)
    again = learned(Refinement(generation=1), refined, at_load, 0.0)
    assert again.error_fraction < 0.04
    assert found.error_fraction < 0.06


def test_one_window_in_ten_may_be_a_stray() -> None:
    truth = StepModel(13.0, 0.065, 0.065, 0.039)
    found = after(truth, 400, strays=0.1)
    refined = found.applied(STEP)
    for batch in (5, 50, 100):
        assert learned(Refinement(generation=1), refined, window(truth, batch), 0.0).error_fraction < 0.1


def test_an_exact_profile_stays_as_it_is() -> None:
    assert after(STEP, 200).factors == pytest.approx((1.0, 1.0, 1.0), abs=0.06)


def test_what_is_never_observed_is_not_invented() -> None:
    found = Refinement(generation=1)
    for number in range(100):
        found = learned(found, STEP, window(StepModel(15.0, 0.05, 0.05, 0.03), 0.3), 60.0 * number)
    assert found.factors[0] == pytest.approx(1.5, rel=0.05)
    assert found.factors[1:] == pytest.approx((1.0, 1.0), abs=0.05)


def test_a_change_of_the_engine_is_followed_within_an_hour() -> None:
    found = after(STEP, 200)
    slower = StepModel(14.0, 0.07, 0.07, 0.042)
    chance = random.Random(3)
    for number in range(60):
        found = learned(found, STEP, window(slower, chance.uniform(1, 120)), 60.0 * number)
    refined = found.applied(STEP)
    assert learned(Refinement(generation=1), refined, window(slower, 60), 0.0).error_fraction < 0.1


def test_a_window_without_work_says_nothing() -> None:
    before = Refinement(generation=1)
    assert learned(before, STEP, Observation(0.01, 0.0, PROMPT, ANSWER), 60.0) is before
    assert learned(before, STEP, Observation(float("nan"), 10.0, PROMPT, ANSWER), 60.0) is before


def test_nothing_is_steered_by_few_windows() -> None:
    found = Refinement(generation=1)
    for number in range(LEAST_SAMPLES):
        assert not found.steers
        found = learned(found, STEP, window(STEP, 30), 60.0 * number)
    assert found.steers


@given(
    st.lists(st.tuples(st.floats(1e-4, 100), st.floats(0.01, 1e5), st.floats(1, 1e5), st.floats(1, 1e4)), max_size=40)
)
def test_whatever_is_seen_factors_and_covariance_stay_sound(windows: list[tuple[float, float, float, float]]) -> None:
    found = Refinement(generation=1)
    for tpot, rate, prompt, answer in windows:
        found = learned(found, STEP, Observation(tpot, rate, prompt, answer), 0.0)
        assert all(1 / LARGEST_FACTOR - 1e-9 <= factor <= LARGEST_FACTOR + 1e-9 for factor in found.factors)
        for i in range(3):
            assert 0 < found.covariance[i][i] < 0.1
            for j in range(3):
                product = found.covariance[i][i] * found.covariance[j][j]
                assert found.covariance[i][j] ** 2 <= product * (1 + 1e-6)
        assert found.error_fraction >= 0
