"""The fewest accelerator-hours that could have done: counts chosen with foresight, and replicas that start at once.

Each control period has as many replicas as the requests that will arrive around it need, found by search on the
request-level simulation: of a few ways to smooth the true demand, each with the smallest factor that keeps the
objectives, the cheapest. Starting and draining cost nothing, nothing is fragmented, and the variant is the best one.
It is the best that was found, not a proof that nothing is better; no policy can see what it sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

import numpy as np

from tokenservice.simulate.assemble import Offer, Setting
from tokenservice.simulate.pool import Pool
from tokenservice.simulate.reference import bounds_of, limits_of
from tokenservice.simulate.sources import admitted
from tokenservice.simulate.tally import Tally
from tokenservice.simulate.traffic import Floats

ATTAINMENT = 0.99
_SMOOTHED_SECONDS = (0.0, 30.0)
"""Demand is taken as its mean this long before and after; more only blurs it."""

_RANGES = ((0.5, 1.6), (1.6, 3.2), (3.2, 6.4), (6.4, 12.8))
"""Of the factor; where bursts are over within a control period, it takes more than demand would say."""

_STEPS = 6
_NEAR = 0.05
"""Where a factor is known from a part of the time, the search over all of it begins this share around it ..."""

_NEAR_STEPS = 3
"""... and ends within an eighth of that."""

_LINGER_SECONDS = 600.0

Near = tuple[float, float]
"""A factor, and the seconds that demand was smoothed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """What the search found for one service."""

    accelerator_hours: float
    attainment: float
    work: float
    factor: float
    smoothed_seconds: float


def oracle(setting: Setting, progress: Callable[[float], None] = lambda _: None) -> dict[str, Foresight]:
    """The search, service by service. Utilization is the sum of `work / 3600` over that of `accelerator_hours`."""
    runs = len(setting.offers) * len(_SMOOTHED_SECONDS) * (_STEPS + 1)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        progress(done / runs)

    return {key.name: search(setting, one, tick) for key, one in setting.offers.items()}


def search(
    setting: Setting, one: Offer, tick: Callable[[], None] = lambda: None, *, near: Near | None = None
) -> Foresight:
    """The search for one service. `near`, found on a part of the time, spares most of it; it is not trusted beyond."""
    period = setting.scenario.control_period_seconds
    demand = _demand(one, setting.seconds, period)
    if near is not None:
        factor, smoothed = near
        bounds = (factor * (1 - _NEAR), factor * (1 + _NEAR))
        known = _smallest(setting, one, _smooth(demand, smoothed, period), smoothed, tick, bounds, _NEAR_STEPS)
        if known is not None:
            return known
    for bounds in _RANGES:
        found = [
            each
            for smoothed in _SMOOTHED_SECONDS
            if (each := _smallest(setting, one, _smooth(demand, smoothed, period), smoothed, tick, bounds)) is not None
        ]
        if found:
            return min(found, key=lambda each: each.accelerator_hours)
    raise ValueError(f"{one.service.key}: no factor up to {_RANGES[-1][1]} keeps {ATTAINMENT:.0%} of its requests")


def _smallest(
    setting: Setting,
    one: Offer,
    demand: Floats,
    smoothed: float,
    tick: Callable[[], None],
    bounds: tuple[float, float],
    steps: int = _STEPS,
) -> Foresight | None:
    """The smallest factor on the demand that keeps the objectives, by bisection; None when the largest does not."""
    low, high = bounds
    best = _tried(setting, one, demand, high, smoothed)
    tick()
    if best.attainment < ATTAINMENT:
        return None
    for _ in range(steps):
        middle = (low + high) / 2
        tried = _tried(setting, one, demand, middle, smoothed)
        tick()
        low, high, best = (low, middle, tried) if tried.attainment >= ATTAINMENT else (middle, high, best)
    return best


def _tried(setting: Setting, one: Offer, demand: Floats, factor: float, smoothed: float) -> Foresight:
    """One run of one service with counts that follow its true demand."""
    period, fewest = setting.scenario.control_period_seconds, max(1, one.spec.scaling.min_replicas)
    counts = np.maximum(fewest, np.ceil(demand * factor / one.lambda_star - 1e-9)).astype(int).tolist()
    pool, traffic = Pool(bounds_of(one.targets)), one.traffic.fresh()
    tally = Tally(one.yardstick, bounds_of(one.targets), setting.seconds)
    slots: list[int] = []
    now = 0.0
    for count in counts:
        while len(slots) < count:
            slots.append(pool.add(one.variant.step, limits_of(one.variant)))
        for number, slot in enumerate(slots):
            pool.open(slot, number < count)
        until = min(now + period, setting.seconds)
        requests = traffic.stretch(now, until)
        tally.came(requests)
        tally.went(pool.advance(admitted(requests, one.longest), until))
        now = until
    tally.went(pool.advance(traffic.stretch(now, now), now + _LINGER_SECONDS))
    hours = float(np.dot(counts, _lasting(setting.seconds, period))) * one.variant.accelerators / 3600
    return Foresight(
        accelerator_hours=hours,
        attainment=tally.attainment,
        work=tally.work_met,
        factor=factor,
        smoothed_seconds=smoothed,
    )


def _demand(one: Offer, seconds: float, period: float) -> Floats:
    """True interactive arrivals, requests per second, by control period."""
    traffic = one.traffic.fresh()
    counts = [
        np.count_nonzero(np.isnan(traffic.stretch(k * period, min((k + 1) * period, seconds)).deadline_s))
        for k in range(ceil(seconds / period))
    ]
    return np.array(counts) / _lasting(seconds, period)


def _lasting(seconds: float, period: float) -> Floats:
    """Seconds of each control period: the last one ends with the scenario."""
    starts = np.arange(ceil(seconds / period)) * period
    return np.asarray(np.minimum(period, seconds - starts))


def _smooth(demand: Floats, seconds: float, period: float) -> Floats:
    """Centred mean over `seconds` before and after."""
    reach = round(seconds / period)
    if reach == 0:
        return demand
    kernel, inside = np.ones(2 * reach + 1), slice(reach, reach + len(demand))  # "same" may be the kernel's length
    return np.asarray(np.convolve(demand, kernel)[inside] / np.convolve(np.ones_like(demand), kernel)[inside])
