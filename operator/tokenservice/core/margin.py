"""How far the model's capacity is to be trusted: a factor that follows the objectives that were missed.

The capacity that the step model gives is an estimate, and demand moves while replicas load. Neither error is known
beforehand, but their sum is seen: the share of requests that miss. The margin follows it as adaptive conformal
inference does (Gibbs and Candès, NeurIPS 2021): each moment adds `rate * (allowed - missed)`, weighted by its share
of the traffic. As long as replicas come in time, the long-run share of misses then differs from the allowed one by at
most `range / (rate * time)`, and no headroom is kept beyond that.

Engines export TTFT and TPOT apart, so the share of requests within both is known as an interval. A miss counts where
it is certain, a success where it is certain; what lies between moves nothing.
"""

from __future__ import annotations

from math import isfinite, sqrt

from tokenservice.core.capacity import Targets
from tokenservice.core.histogram import attainment
from tokenservice.core.model import Json, Margin, Missing, ServiceMetrics
from tokenservice.core.utilization import Interval, joint_attainment

LOWEST, HIGHEST = 0.5, 1.5
"""Bounds of the factor: the model was never seen further off."""

_PER_SECOND = 0.01
"""A minute in which a tenth of the requests misses lowers the factor by 0.06; an hour of none raises it by 0.2."""

_LEARNING_SECONDS, _LEAST_LEARNED_SECONDS = 100.0, 30.0
"""Until a pool was tried for so long the factor rises faster, by the root of what is missing, after the decaying steps
of Angelopoulos, Barber and Bates (ICML 2024). It never falls faster: a first load is no steady state."""

_BLIND_SECONDS = 60.0
"""After demand has overrun the pool, its queue and the windows of rates still tell of that."""

_KEPT = 0.5
"""Share of the allowed misses that one may spend of the two who spend them: this factor, and the rule in force of
`hindsight`."""

_MEMORY_SECONDS = 3600.0
_LONGEST_STEP_SECONDS = 30.0


UNTRIED = Margin()

_TRIED, _OVERRUN = 0.7, 1.05
"""Shares of the allowed load between which attainment says something of the capacity: an idle pool keeps any
objective, and one that demand has overrun keeps none. The latter is a matter of time (see `hindsight`)."""


def allowed(targets: Targets) -> float:
    """Share of requests that may miss, as far as it is spent."""
    return (1 - max(targets.ttft_fraction, targets.tpot_fraction)) * _KEPT


def usable(margin: Margin) -> float:
    """The factor, on a grid of 1 %: a count should not stir for less."""
    return round(margin.factor, 2)


def remembered(status: Json) -> Margin:
    """What a status says was learned, for a process that has learned nothing itself; UNTRIED where it says nothing."""
    factor = status.get("capacityFactor")
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not isfinite(factor):
        return UNTRIED
    return Margin(min(max(float(factor), LOWEST), HIGHEST), tried_seconds=_LEARNING_SECONDS)


def learned(margin: Margin) -> float | None:
    """What a status says of it; None while nothing was learned."""
    return usable(margin) if margin.tried_seconds > 0 else None


def moved(
    margin: Margin,
    metrics: ServiceMetrics | Missing,
    targets: Targets,
    now: float,
    *,
    load: float,
    queued: bool = False,
    enough: bool = False,
    seen: Interval | Missing | None = None,
) -> Margin:
    """The margin after one more look. `seen` is what `within` says, for callers who know it already.

    `load` is demand as a share of what the present replicas are held to take; a pool that is not tried proves
    nothing. `queued` says that a queue stands: after demand has overrun the pool, it tells of that for as long as it
    does. `enough` says that the fleet is as full as it should be. In both cases the factor does not rise.
    """
    overrun = load > _OVERRUN or (queued and now < margin.blind_until)
    if isinstance(metrics, Missing) or margin.at is None or now <= margin.at or overrun:
        blind = now + _BLIND_SECONDS if overrun else margin.blind_until
        return Margin(margin.factor, margin.usual, now, blind, margin.tried_seconds)
    seconds = min(now - margin.at, _LONGEST_STEP_SECONDS)
    usual = _usual(margin, metrics.requests_per_second, seconds)
    if seen is None:
        seen = within(metrics, targets)
    if isinstance(seen, Missing) or usual <= 0:
        return Margin(margin.factor, usual, now, margin.blind_until, margin.tried_seconds)
    weight = min(metrics.requests_per_second / usual, 3.0)
    step = _PER_SECOND * seconds * weight * _surprise(seen, allowed(targets))
    if (step > 0 and (enough or load < _TRIED)) or now < margin.blind_until:
        return Margin(margin.factor, usual, now, margin.blind_until, margin.tried_seconds)
    if step > 0:
        step *= _pace(margin)
    factor = min(max(margin.factor + step, LOWEST), HIGHEST)
    return Margin(factor, usual, now, margin.blind_until, margin.tried_seconds + seconds)


def _pace(margin: Margin) -> float:
    """How many times faster than usual the factor rises while little was tried."""
    return max(1.0, sqrt(_LEARNING_SECONDS / max(margin.tried_seconds, _LEAST_LEARNED_SECONDS)))


def _usual(margin: Margin, rate: float, seconds: float) -> float:
    if margin.usual <= 0:
        return rate
    weight = min(1.0, seconds / _MEMORY_SECONDS)
    return margin.usual + weight * (rate - margin.usual)


def within(metrics: ServiceMetrics, targets: Targets) -> Interval | Missing:
    """Share of the requests within both objectives."""
    return joint_attainment(
        attainment(metrics.ttft_buckets, targets.ttft_seconds), attainment(metrics.tpot_buckets, targets.tpot_seconds)
    )


def _surprise(seen: Interval, may: float) -> float:
    """How many fewer requests missed than may, negative when more did; 0 where it cannot be told."""
    fewest, most = 1 - seen.high, 1 - seen.low
    if fewest > may:
        return may - fewest
    return may - most if most < may else 0.0
