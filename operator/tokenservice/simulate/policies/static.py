"""Counts that never change: what fleets without an autoscaler do, and how large they make them.

The sizes need the workload in advance, which a static owner takes from last week's graphs and we take from the
workload itself: static fleets are shown at their best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import floor

import numpy as np

from tokenservice.core.model import ServiceKey
from tokenservice.simulate.policies.base import bounded, whole
from tokenservice.simulate.policy import FleetView
from tokenservice.simulate.traffic import Floats

BIN_SECONDS = 10.0
"""Width of the bins whose 99th percentile is provisioned for."""

_PERCENTILE = 99.0

Sizes = Mapping[ServiceKey, int]
"""Replicas of each service."""


@dataclass(slots=True)
class Static:
    """`sizes` replicas, within each service's bounds; a service without a size keeps its count."""

    name: str
    sizes: Sizes
    period_seconds: float = 3600.0

    def replicas(self, view: FleetView) -> Mapping[ServiceKey, int]:
        return {key: bounded(self.sizes[key], seen) for key, seen in view.services.items() if key in self.sizes}


def p99_sizes(demand: Mapping[ServiceKey, Floats], reference_rate: Mapping[ServiceKey, float]) -> dict[ServiceKey, int]:
    """Replicas for the 99th percentile of each service's own demand, at least 1: every tenant for itself.

    `demand` holds requests per second in bins of 10 s; `reference_rate` requests per second per replica.
    Raises ValueError for a service whose replicas can take nothing.
    """
    return {key: max(1, whole(_percentile(load))) for key, load in _loads(demand, reference_rate).items()}


def pooled_sizes(
    demand: Mapping[ServiceKey, Floats], reference_rate: Mapping[ServiceKey, float]
) -> dict[ServiceKey, int]:
    """Replicas for the 99th percentile of the summed demand, shared out by the services' own 99th percentiles.

    Bins must be of equal number for all services. As many replicas in total as the sum needs, but at least one a
    service; what rounding leaves goes to the largest remainders. A model's engine cannot serve another model, so this
    is what an owner gets who counts on peaks at different times.
    """
    loads = _loads(demand, reference_rate)
    if not loads:
        return {}
    total = whole(_percentile(np.sum(list(loads.values()), axis=0)))
    return _shared(max(total, len(loads)), {key: _percentile(load) for key, load in loads.items()})


def smallest_sizes(
    attained: Callable[[Sizes], Mapping[ServiceKey, float]], first: Sizes, *, target: float = 0.99, most: int = 10_000
) -> dict[ServiceKey, int]:
    """The fewest replicas at which each service reaches the target, at least 1; `most` where that does not.

    `attained(sizes)` (0 to 1) is asked for all services at once, log2 of the largest size times or so: a static fleet's
    services do not take from each other. By doubling from `first`, then bisection, so it must not fall with a size.
    """
    low, high = dict.fromkeys(first, 0), {key: max(1, size) for key, size in first.items()}
    short = dict(high)
    while short:
        found = attained(high)
        short = {key: size for key, size in high.items() if found[key] < target and size < most}
        low |= short
        high |= {key: min(2 * size, most) for key, size in short.items()}
    while any(high[key] - low[key] > 1 for key in high):
        middle = {key: max(1, (low[key] + high[key]) // 2) for key in high}
        found = attained(middle)
        for key, size in middle.items():
            if high[key] - low[key] > 1:
                (high if found[key] >= target else low)[key] = size
    return high


def _loads(demand: Mapping[ServiceKey, Floats], reference_rate: Mapping[ServiceKey, float]) -> dict[ServiceKey, Floats]:
    """Demand in replicas, bin by bin."""
    unable = [str(key) for key in demand if reference_rate[key] <= 0]
    if unable:
        raise ValueError(f"no number of replicas serves {', '.join(unable)}: its reference rate is 0")
    return {key: rates / reference_rate[key] for key, rates in demand.items()}


def _percentile(load: Floats) -> float:
    return float(np.percentile(load, _PERCENTILE)) if len(load) else 0.0


def _shared(total: int, weights: Mapping[ServiceKey, float]) -> dict[ServiceKey, int]:
    """`total` in proportion to the weights by largest remainders, one each at first."""
    spare, sum_of_weights = total - len(weights), sum(weights.values())
    exact = {key: spare * weight / sum_of_weights if sum_of_weights else 0.0 for key, weight in weights.items()}
    shares = {key: 1 + floor(share) for key, share in exact.items()}
    left = total - sum(shares.values())
    largest = sorted(exact, key=lambda key: (floor(exact[key]) - exact[key], key))
    return shares | {key: shares[key] + 1 for key in largest[:left]}
