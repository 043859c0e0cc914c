"""Learns from production how a profile's step model is off: a Kalman filter on the logarithms of three factors.

One factor scales alpha, one what each running sequence adds (beta and kappa: load moves both alike), one prefill
(delta). Each window gives one observation, the mean TPOT of a service's engines at the mean batch, which Little's law
gives from the same window: `tokens per second x TPOT`. A factor moves only as far as the window says something about
it: idle engines tell of alpha, full ones of the load.

Built to be wrong safely: a window far from the prediction counts less the farther it is (Huber), a factor stays within
a half and twice the profile's figure, what is not observed is forgotten towards the start's uncertainty and no further,
and nothing is steered by fewer than `LEAST_SAMPLES` windows. The error is of predictions made before each window was
learned from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, log, sqrt

from tokenservice.core.step import StepModel

LEAST_SAMPLES = 5
"""Windows before a refinement steers anything."""

WINDOW_SECONDS = 60.0
"""Apart, so that two observations share little."""

LARGEST_FACTOR = 2.0

_TERMS = range(3)
_START_VARIANCE = 0.3**2  # a calibrated profile on other hardware of the same class is 10 to 30 % off
_NOISE = 0.1  # of a window's mean TPOT around the model
_DRIFT_VARIANCE = 0.01**2  # a window: engines are updated, traffic changes
_FAR = 1.5  # standard deviations from which an observation loses weight
_ERROR_MEMORY = 1 / 20  # weight of the newest window in the error
_RUNNING_ANSWER = 0.8  # of the mean answer, produced by a running sequence: long answers are met more often
_LEAST_BATCH = 0.2

Matrix = tuple[tuple[float, float, float], ...]

_START: Matrix = ((_START_VARIANCE, 0.0, 0.0), (0.0, _START_VARIANCE, 0.0), (0.0, 0.0, _START_VARIANCE))


@dataclass(frozen=True, slots=True)
class Observation:
    """One window of a service: mean TPOT, output tokens per second of one engine, mean lengths in tokens."""

    tpot_seconds: float
    tokens_per_second: float
    input_tokens: float
    output_tokens: float
    hit_rate: float = 0.0

    @property
    def batch(self) -> float:
        """Mean sequences that decode in one engine, by Little's law."""
        return self.tokens_per_second * self.tpot_seconds


@dataclass(frozen=True, slots=True)
class Refinement:
    """What was learned: logarithms of the three factors, their covariance, and how well it predicts.

    `at` is when the last window was learned from, in seconds since the epoch; `generation` that of the profile.
    """

    generation: int
    logs: tuple[float, float, float] = (0.0, 0.0, 0.0)
    covariance: Matrix = _START
    samples: int = 0
    error_fraction: float = 0.0
    at: float = 0.0

    @classmethod
    def resumed(
        cls,
        *,
        generation: int,
        factors: tuple[float, float, float],
        covariance: Matrix,
        samples: int,
        error_fraction: float,
    ) -> Refinement:
        """From what was written down. ValueError for what no refinement can have led to."""
        sound = all(1 / LARGEST_FACTOR - 1e-3 <= factor <= LARGEST_FACTOR + 1e-3 for factor in factors)
        if not sound or samples < 0 or not all(0 < covariance[i][i] <= _START_VARIANCE for i in _TERMS):
            raise ValueError("factors, samples or covariance are out of bounds")
        logs = _bounded([log(factor) for factor in factors])
        return cls(generation, logs, covariance, samples, error_fraction)

    @property
    def factors(self) -> tuple[float, float, float]:
        """Of alpha, of beta and kappa, of delta."""
        alpha, load, prefill = (exp(value) for value in self.logs)
        return alpha, load, prefill

    @property
    def steers(self) -> bool:
        """Whether enough was seen to decide by it."""
        return self.samples >= LEAST_SAMPLES

    def applied(self, step: StepModel) -> StepModel:
        """The refined coefficients."""
        alpha, load, prefill = self.factors
        return StepModel(step.alpha_ms * alpha, step.beta_ms * load, step.kappa_ms * load, step.delta_ms * prefill)


def learned(before: Refinement, step: StepModel, seen: Observation, now: float) -> Refinement:
    """The refinement of the profile's `step` after one more window; unchanged when the window says nothing."""
    parts = _parts(step, seen)
    if seen.batch < _LEAST_BATCH or not 0 < seen.tpot_seconds < float("inf") or sum(parts) <= 0:
        return before
    scaled = [part * factor for part, factor in zip(parts, before.factors, strict=True)]
    predicted = sum(scaled)
    slope = [part / predicted for part in scaled]
    surprise = log(seen.tpot_seconds * 1000 / predicted)
    spread = _drifted(before.covariance)
    toward = [sum(spread[i][j] * slope[j] for j in _TERMS) for i in _TERMS]
    known = sum(slope[i] * toward[i] for i in _TERMS)
    distance = abs(surprise) / sqrt(known + _NOISE**2)
    total = known + _NOISE**2 * max(1.0, distance / _FAR) ** 2
    gain = [value / total for value in toward]
    return replace(
        before,
        logs=_bounded([value + share * surprise for value, share in zip(before.logs, gain, strict=True)]),
        covariance=_matrix([[spread[i][j] - gain[i] * toward[j] for j in _TERMS] for i in _TERMS]),
        samples=before.samples + 1,
        error_fraction=_smoothed(before, abs(exp(-surprise) - 1)),
        at=now,
    )


def _parts(step: StepModel, seen: Observation) -> tuple[float, float, float]:
    """Milliseconds of an iteration that each factor scales."""
    batch = seen.batch
    context = seen.input_tokens + _RUNNING_ANSWER * seen.output_tokens
    prefill = batch * seen.input_tokens * (1 - seen.hit_rate) / seen.output_tokens
    return step.alpha_ms, batch * (step.beta_ms + step.kappa_ms * context / 1000), step.delta_ms * prefill


def _drifted(covariance: Matrix) -> Matrix:
    """Uncertainty grows between windows, the less the nearer it is to the start's."""
    return _matrix(
        [
            [value + (_DRIFT_VARIANCE * max(0.0, 1 - value / _START_VARIANCE) if i == j else 0.0) for j, value in row]
            for i, row in enumerate(enumerate(line) for line in covariance)
        ]
    )


def _bounded(logs: list[float]) -> tuple[float, float, float]:
    limit = log(LARGEST_FACTOR)
    alpha, load, prefill = (min(limit, max(-limit, value)) for value in logs)
    return alpha, load, prefill


def _matrix(rows: list[list[float]]) -> Matrix:
    """Symmetric, so that rounding cannot make it drift apart."""
    return tuple(_row([(rows[i][j] + rows[j][i]) / 2 for j in _TERMS]) for i in _TERMS)


def _row(values: list[float]) -> tuple[float, float, float]:
    first, second, third = values
    return first, second, third


def _smoothed(before: Refinement, error: float) -> float:
    """A plain mean at first, then an exponential one."""
    weight = max(_ERROR_MEMORY, 1 / (before.samples + 1))
    return before.error_fraction + weight * (error - before.error_fraction)
