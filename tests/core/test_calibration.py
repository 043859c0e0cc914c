"""Fitting, kinship and held-out predictions: what is found, what is borrowed, and that nothing is peeked at."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenservice.core.calibration import (
    Belief,
    Configuration,
    Measurement,
    fitted,
    logarithms,
    predicted_tpot_ms,
    saturated,
)
from tokenservice.core.holdout import against_others, held_out_in_turn, summary
from tokenservice.core.kinship import Kin, Population
from tokenservice.core.step import StepModel

TRUTH = StepModel(alpha_ms=12.0, beta_ms=0.06, kappa_ms=0.05, delta_ms=0.04)
PRIOR = Belief(logarithms(StepModel(9.0, 0.1, 0.05, 0.03)), np.diag([0.25, 1.0, 0.25, 0.25]))
SHAPES = [(256, 256), (1024, 128), (1024, 1024), (2048, 256), (4096, 512), (8192, 1024)]
ONE = Configuration("org/model-8B", "vLLM", "1", "h100", "bf16", 1)


def measured(truth: StepModel, shapes: Sequence[tuple[int, int]] = SHAPES, noise: float = 0.0) -> list[Measurement]:
    """A closed loop at five concurrencies for every shape, with a TTFT of one prefill."""
    chance, points = random.Random(7), []
    for prompt, answer in shapes:
        for concurrency in (1, 4, 16, 64, 128):
            tpot = truth.tpot_ms(concurrency, prompt, answer) * chance.lognormvariate(0, noise)
            points.append(Measurement(prompt, answer, concurrency, truth.delta_ms * prompt, tpot))
    return points


def worst_error(step: StepModel, points: Sequence[Measurement]) -> float:
    return max(abs(predicted_tpot_ms(step, point) / point.tpot_ms - 1) for point in points)


def kin(configuration: Configuration, step: StepModel = TRUTH, family: str = "model-8b") -> Kin:
    return Kin(configuration, step, family, experts=False)


# --- Fitting -------------------------------------------------------------------------------------------------------


def test_many_shapes_identify_the_step_model_whatever_was_believed() -> None:
    step = fitted(measured(TRUTH), PRIOR).step
    assert worst_error(step, measured(TRUTH)) < 0.005
    assert step.alpha_ms == pytest.approx(TRUTH.alpha_ms, rel=0.01)


def test_one_shape_in_ten_measured_wrong_does_not_spoil_the_fit() -> None:
    points = measured(TRUTH, noise=0.02)
    spoiled = [replace(p, tpot_ms=p.tpot_ms * 4) if n % 10 == 3 else p for n, p in enumerate(points)]
    assert worst_error(fitted(spoiled, PRIOR).step, measured(TRUTH)) < 0.06


def test_without_measurements_the_belief_stands() -> None:
    assert fitted([], PRIOR) is PRIOR


def test_what_one_shape_leaves_open_the_belief_fills_in() -> None:
    """A single shape cannot tell beta from kappa from delta; a belief that knows kappa and delta carries over."""
    knowing = Belief(logarithms(replace(TRUTH, alpha_ms=9.0, beta_ms=0.2)), np.diag([0.3, 1.0, 0.003, 0.003]))
    found = fitted(measured(TRUTH, [(1024, 1024)]), knowing).step
    assert worst_error(found, measured(TRUTH)) < 0.05


@settings(max_examples=40, deadline=None)
@given(
    st.builds(StepModel, st.floats(1, 60), st.floats(0.001, 0.5), st.floats(0.001, 0.5), st.floats(0.002, 0.3)),
    st.sets(st.sampled_from(SHAPES), min_size=1),
)
def test_measuring_makes_surer_and_never_negative(truth: StepModel, shapes: set[tuple[int, int]]) -> None:
    found = fitted(measured(truth, sorted(shapes)), PRIOR)
    assert (np.diag(found.covariance) <= np.diag(PRIOR.covariance) * (1 + 1e-6)).all()
    assert min(found.step.alpha_ms, found.step.beta_ms, found.step.kappa_ms, found.step.delta_ms) > 0


SATURATION = {
    "waits for most of its life": (Measurement(1024, 128, 16, 6775.0, 25.5), 60.0, True),
    "only its own prefill": (Measurement(8000, 100, 16, 400.0, 15.5), 130.0, False),
    "a lone request never queues": (Measurement(8000, 10, 1, 900.0, 5.0), 0.0, False),
    "no first token was measured": (Measurement(1024, 128, 16, 0.0, 25.5), 60.0, False),
}


@pytest.mark.parametrize("case", SATURATION)
def test_points_beyond_the_knee_are_recognised(case: str) -> None:
    point, prefill_ms, wanted = SATURATION[case]
    assert saturated(point, prefill_ms) is wanted


# --- Kinship -------------------------------------------------------------------------------------------------------


def test_a_configuration_is_never_believed_about_by_its_own_measurements() -> None:
    other = replace(ONE, tensor_parallel=2)
    before, after = (
        Population({ONE: measured(own), other: measured(TRUTH)}, [kin(ONE), kin(other)]).belief(kin(ONE))
        for own in (TRUTH, StepModel(50.0, 1.0, 1.0, 1.0))
    )
    assert np.allclose(before.mean, after.mean)


def test_the_same_runs_under_another_name_say_nothing() -> None:
    alias = replace(ONE, model="org/renamed-8B")
    slow = measured(StepModel(40.0, 0.2, 0.2, 0.2))
    population = Population({ONE: slow, alias: slow}, [kin(ONE), kin(alias)])
    assert np.allclose(population.belief(kin(ONE)).mean, logarithms(TRUTH))


def test_the_nearer_the_kin_the_more_it_counts() -> None:
    slow = measured(replace(TRUTH, alpha_ms=24.0))
    near = replace(ONE, tensor_parallel=2)
    far = Configuration("org/stranger-70B", "SGLang", "9", "b200", "fp8", 8)
    beliefs = [
        Population({one: slow}, [kin(one, family=family)]).belief(kin(ONE))
        for one, family in ((near, "model-8b"), (far, "stranger-70b"))
    ]
    moved = [float(belief.mean[0] - logarithms(TRUTH)[0]) for belief in beliefs]
    assert moved[0] > 2 * moved[1] > 0
    assert beliefs[0].covariance[0, 0] < beliefs[1].covariance[0, 0]


def test_strangers_only_leaves_out_the_family() -> None:
    near = replace(ONE, tensor_parallel=2)
    population = Population({near: measured(replace(TRUTH, alpha_ms=24.0))}, [kin(near)])
    assert np.allclose(population.belief(kin(ONE), strangers_only=True).mean, logarithms(TRUTH))


def test_without_any_measurement_the_roofline_is_believed() -> None:
    assert np.allclose(Population({}, []).belief(kin(ONE)).mean, logarithms(TRUTH))


# --- Held-out predictions ------------------------------------------------------------------------------------------


def two_kin(own: Sequence[Measurement]) -> tuple[dict[Configuration, list[Measurement]], dict[Configuration, Kin]]:
    other = replace(ONE, tensor_parallel=2)
    points = {ONE: list(own), other: measured(replace(TRUTH, alpha_ms=7.0))}
    return points, {one: kin(one) for one in points}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_prediction_never_depends_on_what_it_predicts(shape: tuple[int, int]) -> None:
    """Latencies of a held-out shape may be anything: what is said of it stays the same."""
    honest = measured(TRUTH, noise=0.05)
    forged = [replace(p, ttft_ms=p.ttft_ms * 1.5, tpot_ms=p.tpot_ms * 3) if p.shape == shape else p for p in honest]
    told = []
    for own in (honest, forged):
        judged = next(one for one in held_out_in_turn(*two_kin(own)) if one.configuration == ONE)
        told.append([one.tpot_ms for one in judged.predictions if one.point.shape == shape])
    assert told[0] == pytest.approx(told[1], rel=1e-9)


def test_held_out_shapes_of_a_sound_model_are_predicted() -> None:
    judged = next(one for one in held_out_in_turn(*two_kin(measured(TRUTH, noise=0.02))) if one.configuration == ONE)
    found = summary([judged])
    assert (found.groups, found.points, judged.shapes, judged.many) == (1, 30, 6, True)
    assert found.median_error < 0.03


def test_saturated_points_are_reported_apart_and_fitted_by_nobody() -> None:
    queued = [Measurement(1024, 128, 256, 60_000.0, 20.0)]
    with_queue, without = (
        next(one for one in held_out_in_turn(*two_kin(points)) if one.configuration == ONE)
        for points in (measured(TRUTH) + queued, measured(TRUTH))
    )
    assert [one.point for one in with_queue.predictions if one.saturated] == queued
    assert len(with_queue.clear) == len(without.clear)
    assert with_queue.step == without.step


def test_another_file_is_predicted_from_the_first_alone() -> None:
    points, kins = two_kin(measured(TRUTH, SHAPES[:3]))
    unseen = {ONE: measured(TRUTH, SHAPES[3:])}
    (judged,) = against_others(points, unseen, kins)
    assert (judged.shapes, judged.many) == (3, False)
    assert summary([judged]).median_error < 0.05
    forged = {ONE: [replace(point, tpot_ms=1.0) for point in unseen[ONE]]}
    (again,) = against_others(points, forged, kins)
    assert [one.tpot_ms for one in again.predictions] == [one.tpot_ms for one in judged.predictions]


def test_a_summary_of_nothing_is_not_a_number() -> None:
    assert np.isnan(summary([]).median_error)
