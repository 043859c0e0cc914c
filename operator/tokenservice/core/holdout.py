"""How well the engine model predicts what it has not seen: measurements against predictions made without them.

A shape is an (input length, output length) pair of a configuration. It is predicted from the configuration's other
shapes and the belief that other configurations give; a configuration with one shape is predicted from the belief alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenservice.core.calibration import Belief, Configuration, Measurement, fitted, predicted_tpot_ms, saturated
from tokenservice.core.kinship import Kin, Population
from tokenservice.core.step import StepModel

MANY_SHAPES = 6
"""From as many unsaturated shapes, a configuration's own measurements identify all four coefficients."""

Measured = Mapping[Configuration, Sequence[Measurement]]


@dataclass(frozen=True, slots=True)
class Predicted:
    """A measurement that the model had not seen, with what it said."""

    point: Measurement
    tpot_ms: float
    saturated: bool

    @property
    def error(self) -> float:
        """Absolute, as a share of the measured TPOT."""
        return abs(self.tpot_ms / self.point.tpot_ms - 1)


@dataclass(frozen=True, slots=True)
class Judged:
    """One configuration: the model of all that may be used, how many unsaturated shapes that is, and predictions."""

    configuration: Configuration
    step: StepModel
    shapes: int
    predictions: tuple[Predicted, ...]

    @property
    def many(self) -> bool:
        return self.shapes >= MANY_SHAPES

    @property
    def clear(self) -> tuple[Predicted, ...]:
        """Predictions below the knee: those that count."""
        return tuple(one for one in self.predictions if not one.saturated)


@dataclass(frozen=True, slots=True)
class Summary:
    """Errors of unseen points over configurations, as shares. Not a number where there are none."""

    groups: int
    points: int
    median_error: float
    p95_error: float
    worst_group_median: float


def held_out_in_turn(
    measured: Measured, kin: Mapping[Configuration, Kin], *, strangers_only: bool = False
) -> Iterator[Judged]:
    """Every shape of every configuration, each predicted without it. A generator: a file takes seconds.

    With `strangers_only`, other configurations of the same model say nothing either.
    """
    clear = _clear(measured, kin)
    population = Population(clear, kin.values())
    for configuration, points in measured.items():
        belief, usable = population.belief(kin[configuration], strangers_only=strangers_only), clear[configuration]
        predictions = [
            one
            for shape in sorted({point.shape for point in points})
            for one in _predictions(
                fitted([point for point in usable if point.shape != shape], belief),
                [point for point in points if point.shape == shape],
                kin[configuration],
            )
        ]
        yield _judged(configuration, usable, belief, predictions)


def against_others(measured: Measured, unseen: Measured, kin: Mapping[Configuration, Kin]) -> Iterator[Judged]:
    """Measurements of another file, predicted from `measured` alone; `kin` of the configurations of both."""
    clear = _clear(measured, kin)
    population = Population(clear, kin.values())
    for configuration, points in unseen.items():
        belief, usable = population.belief(kin[configuration]), clear.get(configuration, ())
        predictions = _predictions(fitted(usable, belief), points, kin[configuration])
        yield _judged(configuration, usable, belief, predictions)


def summary(judged: Iterable[Judged]) -> Summary:
    """Pooled over all points below the knee."""
    errors = [[one.error for one in group.clear] for group in judged]
    counted = [group for group in errors if group]
    pooled = [error for group in counted for error in group] or [float("nan")]
    return Summary(
        groups=len(counted),
        points=sum(map(len, counted)),
        median_error=float(np.median(pooled)),
        p95_error=float(np.percentile(pooled, 95)),
        worst_group_median=max((float(np.median(group)) for group in counted), default=float("nan")),
    )


def _clear(measured: Measured, kin: Mapping[Configuration, Kin]) -> dict[Configuration, list[Measurement]]:
    return {
        configuration: [point for point in points if not _saturated(point, kin[configuration])]
        for configuration, points in measured.items()
    }


def _saturated(point: Measurement, kin: Kin) -> bool:
    return saturated(point, kin.roofline.delta_ms * point.input_tokens)


def _predictions(belief: Belief, points: Sequence[Measurement], kin: Kin) -> tuple[Predicted, ...]:
    step = belief.step
    return tuple(Predicted(point, predicted_tpot_ms(step, point), _saturated(point, kin)) for point in points)


def _judged(
    configuration: Configuration, usable: Sequence[Measurement], belief: Belief, predictions: Sequence[Predicted]
) -> Judged:
    shapes = len({point.shape for point in usable})
    return Judged(configuration, fitted(usable, belief).step, shapes, tuple(predictions))
