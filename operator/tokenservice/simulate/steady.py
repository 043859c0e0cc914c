"""The reference rate of a variant, by simulation: the yardstick of the utilization figure.

lambda* is the highest steady Poisson rate per replica at which eight replicas behind a least-loaded router keep a
share of requests (99 %) within both latency targets. It is found by bisection on the request-level engine, with the
lengths of the service's own traffic, so it owes nothing to the operator's analytic estimate. Lengths are (input,
output), or (input, output, cached) where a prefix cache has part of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenservice.core.step import StepModel
from tokenservice.simulate.bounds import Bounds
from tokenservice.simulate.engine import EngineLimits
from tokenservice.simulate.pool import Pool
from tokenservice.simulate.traffic import Outcomes, Requests

Lengths = Sequence[tuple[int, ...]]

REPLICAS = 8
_WARM_UP = 0.2
_LONG_SECONDS = 1e4
"""Within so long after the last arrival everything has finished, or has missed by far."""


def attainment(
    model: StepModel,
    limits: EngineLimits,
    lengths: Lengths,
    requests_per_second: float,
    bounds: Bounds,
    *,
    requests: int = 4000,
    seed: int = 0,
) -> float:
    """Share of requests within both bounds at a steady rate per replica; lengths are drawn with replacement."""
    arrivals = poisson(lengths, requests_per_second * REPLICAS, requests, seed)
    warm = int(requests * _WARM_UP)
    pool = _replicas(model, limits, bounds)
    finished = pool.advance(arrivals, float(arrivals.at_s[-1]) + _LONG_SECONDS)
    counted = finished.at_s >= arrivals.at_s[warm]
    return int(np.count_nonzero(counted & _within(finished, bounds))) / (requests - warm)


def reference_rate(model: StepModel, limits: EngineLimits, lengths: Lengths, bounds: Bounds, *, seed: int = 0) -> float:
    """lambda* in requests per second per replica, within 1 %; 0 when even a lone request misses."""
    low, high = 0.0, _fluid_limit(model, limits, lengths)
    if attainment(model, limits, lengths, high * 0.01, bounds, requests=500, seed=seed) < bounds.attainment:
        return 0.0
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        meets = attainment(model, limits, lengths, middle, bounds, seed=seed) >= bounds.attainment
        low, high = (middle, high) if meets else (low, middle)
    return low


def poisson(lengths: Lengths, requests_per_second: float, requests: int, seed: int) -> Requests:
    """So many arrivals of a Poisson process, lengths drawn from those given."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1000 / requests_per_second, requests)) / 1000
    drawn = np.array(lengths, dtype=np.int32)[rng.integers(0, len(lengths), requests)]
    cached = drawn[:, 2] if drawn.shape[1] > 2 else np.zeros(requests, np.int32)
    return Requests(at_s, drawn[:, 0], drawn[:, 1], cached, np.full(requests, np.nan))


def _replicas(model: StepModel, limits: EngineLimits, bounds: Bounds) -> Pool:
    pool = Pool(bounds)
    for _ in range(REPLICAS):
        pool.open(pool.add(model, limits), True)
    return pool


def _fluid_limit(model: StepModel, limits: EngineLimits, lengths: Lengths) -> float:
    """No replica can finish more: a full batch at the mean lengths, without any fluctuation."""
    inputs, outputs, *cached = np.mean(np.array(lengths, dtype=float), axis=0)
    hit_rate = cached[0] / inputs if cached else 0.0
    batch = min(limits.max_num_seqs, limits.kv_capacity_tokens / (inputs + outputs / 2))
    return float(1000 * batch / (outputs * model.tpot_ms(batch, inputs, outputs, hit_rate)))


def _within(done: Outcomes, bounds: Bounds) -> NDArray[np.bool_]:
    return (done.ttft_s <= bounds.ttft_seconds) & (done.tpot_s <= bounds.tpot_seconds)
