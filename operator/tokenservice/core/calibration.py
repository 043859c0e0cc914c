"""Fits the step model to measurements, starting from what is believed already.

A closed loop of C requests with prompts of I and answers of O tokens runs at `TPOT = alpha + beta C +
kappa C (I + O/2)/1000 + delta C I/O`: four coefficients that differ by orders of magnitude and are never negative, so
they are estimated as logarithms. The belief before measuring is normal in them; the measurements' relative errors
follow Student's t, so that a stray point pulls little. Their product's mode is the fit: where shapes are many the
measurements decide, where they are few the belief fills in what they leave open. There is no switch between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokenservice.core.roofline import Layout
from tokenservice.core.step import StepModel

Floats = npt.NDArray[np.floating[Any]]

TERMS = 4
"""alpha, beta, kappa, delta."""

_NOISE = 0.06
"""Spread of a measured TPOT around the model, as a share of it."""

_TAIL = 4.0
"""Degrees of freedom of Student's t."""

_LONGEST_STEP = 0.7
"""Of a logarithm in one iteration, which keeps Gauss-Newton from jumping."""

_ITERATIONS, _CONVERGED = 40, 1e-5

SATURATED_WAIT = 0.15
"""Share of a request's life, spent waiting for others before its first token, from which a point is saturated."""


@dataclass(frozen=True, slots=True, order=True)
class Configuration:
    """What a step model holds for. `experts_parallel` says whether experts are spread instead of sliced."""

    model: str
    engine: str
    engine_version: str
    accelerator: str
    precision: str
    tensor_parallel: int
    data_parallel: int = 1
    experts_parallel: bool = False

    @property
    def layout(self) -> Layout:
        return Layout(self.tensor_parallel, self.data_parallel)

    def __str__(self) -> str:
        size = f"tp{self.tensor_parallel}" + (f"-dp{self.data_parallel}" if self.data_parallel > 1 else "")
        spread = "-ep" if self.experts_parallel else ""
        engine = " ".join(filter(None, (self.engine, self.engine_version)))
        return f"{self.model} {self.precision} on {self.accelerator} {size}{spread}, {engine}"


@dataclass(frozen=True, slots=True)
class Measurement:
    """Mean latencies of a closed loop of `concurrency` requests of one shape; `ttft_ms` is 0 where unknown."""

    input_tokens: int
    output_tokens: int
    concurrency: int
    ttft_ms: float
    tpot_ms: float

    @property
    def shape(self) -> tuple[int, int]:
        """Input and output length."""
        return (self.input_tokens, self.output_tokens)


@dataclass(frozen=True, eq=False, slots=True)
class Belief:
    """A normal distribution of the logarithms of the coefficients: mean of 4, covariance of 4 x 4."""

    mean: Floats
    covariance: Floats

    @property
    def step(self) -> StepModel:
        """The most likely step model."""
        return StepModel(*(float(value) for value in np.exp(self.mean)))


def logarithms(step: StepModel, least: float = 1e-5) -> Floats:
    """Of the coefficients, in ms; those below `least` count as that, as nothing costs nothing."""
    return np.log(np.maximum([step.alpha_ms, step.beta_ms, step.kappa_ms, step.delta_ms], least))


def saturated(point: Measurement, prefill_ms: float) -> bool:
    """Whether requests queue beyond the knee: concurrency then says little about the batch, and TPOT nothing of load.

    A request waits for its own prefill of `prefill_ms` (0 where unknown) in any case; a lone one never queues. Judged
    from the measured latencies and never from a prediction.
    """
    if point.concurrency <= 1:
        return False
    life = point.ttft_ms + point.output_tokens * point.tpot_ms
    return (point.ttft_ms - prefill_ms) / life > SATURATED_WAIT


def predicted_tpot_ms(step: StepModel, point: Measurement) -> float:
    """TPOT of a closed loop; of the measured latencies nothing is used."""
    return step.tpot_ms(point.concurrency, point.input_tokens, point.output_tokens)


def fitted(points: Sequence[Measurement], belief: Belief) -> Belief:
    """The belief after measuring: mode, and curvature there. The belief itself without any points."""
    if not points:
        return belief
    terms, log_tpot = _terms(points), np.log([point.tpot_ms for point in points])
    before = np.linalg.inv(belief.covariance)
    mean = belief.mean
    precision: Floats = before
    for _ in range(_ITERATIONS):
        slope, residual = _linearised(terms, log_tpot, mean)
        weight = (_TAIL + 1) / (_TAIL + (residual / _NOISE) ** 2) / _NOISE**2
        precision = slope.T @ (weight[:, None] * slope) + before
        pull = slope.T @ (weight * residual) - before @ (mean - belief.mean)
        move = np.clip(np.linalg.solve(precision, pull), -_LONGEST_STEP, _LONGEST_STEP)
        mean = mean + move
        if np.abs(move).max() < _CONVERGED:
            break
    return Belief(mean, np.linalg.inv(precision))


def _terms(points: Sequence[Measurement]) -> Floats:
    """What each coefficient is multiplied with, one row a point."""
    return np.array([[predicted_tpot_ms(unit, point) for unit in _UNITS] for point in points])


_UNITS = tuple(StepModel(*(float(term == own) for term in range(TERMS))) for own in range(TERMS))


def _linearised(terms: Floats, log_tpot: Floats, mean: Floats) -> tuple[Floats, Floats]:
    """Derivative of the predictions' logarithms by those of the coefficients, and what is left of the measured ones."""
    parts = terms * np.exp(mean)
    tpot = parts.sum(axis=1)
    slope: Any = parts / tpot[:, None]
    return slope, log_tpot - np.log(tpot)
