"""The reference rate of a variant, by simulation: the yardstick of the utilization figure.

lambda* is the highest steady Poisson rate per replica at which eight replicas behind a least-loaded router keep a
share of requests (99 %) within both latency targets. It is found by bisection on the request-level engine, with the
lengths of the service's own traffic, so it owes nothing to the operator's analytic estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenservice.core.step import StepModel
from tokenservice.simulate.engine import Engine, EngineLimits, Finished, Request

REPLICAS = 8
_WARM_UP = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Latency targets in seconds and the share of requests (0 to 1) that must meet both."""

    ttft_seconds: float
    tpot_seconds: float
    attainment: float = 0.99


def attainment(
    model: StepModel,
    limits: EngineLimits,
    lengths: Sequence[tuple[int, int]],
    requests_per_second: float,
    bounds: Bounds,
    *,
    requests: int = 4000,
    seed: int = 0,
) -> float:
    """Share of requests within both bounds at a steady rate per replica; lengths are drawn with replacement."""
    rng = np.random.default_rng(seed)
    engines = [Engine(model, limits) for _ in range(REPLICAS)]
    arrivals = np.cumsum(rng.exponential(1000 / (requests_per_second * REPLICAS), requests))
    drawn = rng.integers(0, len(lengths), requests)
    outstanding = [0] * REPLICAS
    finished: list[Finished] = []
    for index, (at, pick) in enumerate(zip(arrivals.tolist(), drawn.tolist(), strict=True)):
        for number, engine in enumerate(engines):
            done = [event for event in engine.advance(at) if isinstance(event, Finished)]
            outstanding[number] -= len(done)
            finished += done
        target = min(range(REPLICAS), key=outstanding.__getitem__)
        outstanding[target] += 1
        engines[target].submit(Request(index, at, *lengths[pick]))
    for engine in engines:
        finished += [event for event in engine.advance(arrivals[-1] + 1e7) if isinstance(event, Finished)]
    counted = [done for done in finished if int(done.request.id) >= requests * _WARM_UP]
    met = sum(_within(done, bounds) for done in counted)
    return met / (requests - int(requests * _WARM_UP))


def reference_rate(
    model: StepModel, limits: EngineLimits, lengths: Sequence[tuple[int, int]], bounds: Bounds, *, seed: int = 0
) -> float:
    """lambda* in requests per second per replica, within 1 %; 0 when even a lone request misses."""
    low, high = 0.0, _fluid_limit(model, limits, lengths)
    if attainment(model, limits, lengths, high * 0.01, bounds, requests=500, seed=seed) < bounds.attainment:
        return 0.0
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        meets = attainment(model, limits, lengths, middle, bounds, seed=seed) >= bounds.attainment
        low, high = (middle, high) if meets else (low, middle)
    return low


def _fluid_limit(model: StepModel, limits: EngineLimits, lengths: Sequence[tuple[int, int]]) -> float:
    """No replica can finish more: a full batch at the mean lengths, without any fluctuation."""
    inputs, outputs = np.mean(np.array(lengths, dtype=float), axis=0)
    batch = min(limits.max_num_seqs, limits.kv_capacity_tokens / (inputs + outputs / 2))
    return float(1000 * batch / (outputs * model.tpot_ms(batch, inputs, outputs)))


def _within(done: Finished, bounds: Bounds) -> bool:
    return done.ttft_ms <= bounds.ttft_seconds * 1000 and done.tpot_ms <= bounds.tpot_seconds * 1000
