"""What measurements of other configurations say about one: a belief for every configuration, measured or not.

Every coefficient is its roofline figure times a factor, and factors run in families: of the same model, engine,
accelerator, and both. Their logarithms are taken as a Gaussian process whose covariance adds up a variance for each
thing that two configurations share. Each configuration is first fitted alone; what its measurements say, with how
little they say it, then enters the process, and the belief for any other configuration is the conditional distribution.

The variances are round numbers: halving or doubling any of them moves the median error on held-out shapes by less than
a quarter of a point (`docs/capacity.md`), so they are not tuned to a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenservice.core.calibration import TERMS, Belief, Configuration, Floats, Measurement, fitted, logarithms
from tokenservice.core.step import StepModel

_ALONE = np.array([1.0, 1.2, 1.0, 1.2])
"""Standard deviation around the roofline with which a configuration is first fitted alone."""

_SCALE = np.array([1.0, 2.0, 2.0, 2.0])
"""Spread of the factors of the four coefficients; weight reads (alpha) are the best known."""

_COMMON, _ENGINE, _ACCELERATOR, _VERSION, _LAYOUT, _OWN = 0.12, 0.1, 0.1, 0.1, 0.13, 0.1
_EXPERTS, _MODEL, _MODEL_ENGINE, _MODEL_ENGINE_ACCELERATOR = 0.3, 0.2, 0.2, 0.15
_OTHER_PRECISION = 0.7  # correlation of a model's figures across number formats
_DOUBLINGS = 2.0  # of accelerators, over which correlation falls to 1/e
_FAINT = 1e-3  # information that even an empty direction has: keeps inverses finite


@dataclass(frozen=True, slots=True)
class Kin:
    """A configuration with its roofline figures; `family` joins repositories that hold the same model."""

    configuration: Configuration
    roofline: StepModel
    family: str
    experts: bool


class Population:
    """Measured configurations that inform beliefs about each other."""

    def __init__(self, measured: Mapping[Configuration, Sequence[Measurement]], kin: Iterable[Kin]) -> None:
        """`kin` of every configuration that is measured; those without measurements are left out."""
        self._kin = [one for one in kin if measured.get(one.configuration)]
        self._points = [measured[one.configuration] for one in self._kin]
        alone = [_alone(one, points) for one, points in zip(self._kin, self._points, strict=True)]
        size = TERMS * len(alone)
        self._factors = np.array([factors for factors, _ in alone]).reshape(size)
        total = _covariances(self._kin, self._kin)
        for place, (_, uncertainty) in enumerate(alone):
            total[_block(place), _block(place)] += uncertainty
        self._precision: Floats = np.linalg.inv(total)

    def belief(self, kin: Kin, *, strangers_only: bool = False) -> Belief:
        """About a configuration, from all others, or only from those of other models.

        Its own measurements are not used, and neither are those of configurations that share a measurement with it
        to the last digit: these are the same runs under another name.
        """
        left_out = self._same_runs(kin)
        if strangers_only:
            left_out = sorted({*left_out, *(p for p, one in enumerate(self._kin) if one.family == kin.family)})
        own = _covariances([kin], [kin])
        if len(left_out) == len(self._kin):
            return Belief(logarithms(kin.roofline), own)
        across = _covariances([kin], self._kin)
        gone = _indices(left_out)
        across[:, gone] = 0.0
        gain = _times_rest(self._precision, gone, across.T).T
        return Belief(logarithms(kin.roofline) + gain @ self._factors, own - gain @ across.T)

    def _same_runs(self, kin: Kin) -> list[int]:
        """Places of the configuration itself and of those that share a measurement with it."""
        own = [place for place, one in enumerate(self._kin) if one.configuration == kin.configuration]
        mine = {point for place in own for point in self._points[place]}
        return [p for p, points in enumerate(self._points) if p in own or not mine.isdisjoint(points)]


def _alone(kin: Kin, points: Sequence[Measurement]) -> tuple[Floats, Floats]:
    """What the measurements alone say of the factors' logarithms: mean and covariance, the weak start taken out."""
    start = logarithms(kin.roofline)
    found = fitted(points, Belief(start, np.diag(_ALONE**2)))
    information = np.linalg.inv(found.covariance) - np.diag(_ALONE**-2) + _FAINT * np.eye(TERMS)
    uncertainty: Floats = np.linalg.inv(information)
    factors = found.mean - start
    return factors + uncertainty @ (factors / _ALONE**2), uncertainty


def _covariances(ones: Sequence[Kin], others: Sequence[Kin]) -> Floats:
    """Of all factors of `ones` with all of `others`; the four coefficients are independent before measuring."""
    kinship = np.array([_kinship(one, other) for one in ones for other in others]).reshape(len(ones), len(others))
    result: Floats = np.kron(kinship, np.diag(_SCALE**2))
    return result


def _kinship(one: Kin, other: Kin) -> float:
    """Covariance by what two configurations share."""
    mine, its = one.configuration, other.configuration
    engine, accelerator = mine.engine == its.engine, mine.accelerator == its.accelerator
    doublings = abs(np.log2(mine.layout.accelerators / its.layout.accelerators))
    near = float(np.exp(-doublings / _DOUBLINGS))
    alike = near * (1.0 if mine.precision == its.precision else _OTHER_PRECISION)
    family = alike if one.family == other.family else 0.0
    return (
        _COMMON**2
        + _EXPERTS**2 * (one.experts and other.experts)
        + _ENGINE**2 * engine * near
        + _ACCELERATOR**2 * accelerator
        + _VERSION**2 * (engine and mine.engine_version == its.engine_version)
        + _LAYOUT**2 * (_spread(mine) == _spread(its))
        + family * (_MODEL**2 + _MODEL_ENGINE**2 * engine + _MODEL_ENGINE_ACCELERATOR**2 * (engine and accelerator))
        + _OWN**2 * (mine == its)
    )


def _spread(configuration: Configuration) -> tuple[bool, bool]:
    return (configuration.experts_parallel, configuration.data_parallel > 1)


def _times_rest(precision: Floats, gone: list[int], columns: Floats) -> Floats:
    """The inverse of the covariance without `gone` (its rows are 0 then), times columns; from the whole inverse."""
    result: Floats = precision @ columns
    if gone:
        result -= precision[:, gone] @ np.linalg.solve(precision[np.ix_(gone, gone)], result[gone])
    return result


def _block(place: int) -> slice:
    return slice(TERMS * place, TERMS * (place + 1))


def _indices(places: Sequence[int]) -> list[int]:
    return [TERMS * place + term for place in places for term in range(TERMS)]
