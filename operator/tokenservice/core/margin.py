"""How far the model's capacity is to be trusted: a factor that follows the objectives that were missed.

The capacity that the step model gives is an estimate, and demand moves while replicas load. Neither error is known
beforehand, but their sum is seen: the share of requests that miss. The margin follows it as adaptive conformal
inference does (Gibbs and Candès, NeurIPS 2021): each moment adds `rate * (allowed - missed)`, weighted by its share
of the traffic. As long as replicas come in time, the long-run share of misses then differs from the allowed one by at
most `range / (rate * time)`, and no headroom is kept beyond that.

Two spend the allowed misses: this factor, and demand that overruns the pool before replicas have come (`hindsight`
weighs that). What overruns take of them is measured over hours, and the factor has what they leave.

Engines export TTFT and TPOT apart, so the share of requests within both is known as an interval. A miss counts where
it is certain, a success where it is certain; what lies between moves nothing, unless more than all that are allowed may
have missed.
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

_LEAST_KEPT, _MOST_KEPT = 0.5, 0.9
"""Shares of the allowed misses that are left to the factor whatever overruns take: headroom is no help against steps
of demand, and one bad hour should not buy it for a day; and a little is kept for what windows of rates tell late."""

_MEMORY_SECONDS, _OVERRUN_MEMORY_SECONDS = 3600.0, 4 * 3600.0
_LONGEST_STEP_SECONDS, _MOST_WEIGHT = 30.0, 3.0
"""A moment counts for so long, and for so many times the usual traffic, at most: what nobody had seen before is no
measure of what is usual."""


UNTRIED = Margin()

_TRIED, _OVERRUN = 0.9, 1.05
"""Between this share of what replicas are filled to, and this share of what they take, attainment says something of the
capacity: a pool with room keeps any objective, and one that demand has overrun keeps none. The latter is a matter of
time (see `hindsight`)."""


def allowed(targets: Targets) -> float:
    """Share of requests that may miss, as far as the rules of `hindsight` may spend it."""
    return _may_miss(targets) * _LEAST_KEPT


def _may_miss(targets: Targets) -> float:
    return 1 - max(targets.ttft_fraction, targets.tpot_fraction)


def usable(margin: Margin) -> float:
    """The factor, on a grid of 1 %: a count should not stir for less."""
    return round(margin.factor, 2)


def remembered(status: Json) -> Margin:
    """What a status says was learned, for a process that has learned nothing itself; UNTRIED where it says nothing."""
    factor = _number(status.get("capacityFactor"))
    if factor is None:
        return UNTRIED
    overruns = _number(status.get("overrunShare"))
    return Margin(
        min(max(factor, LOWEST), HIGHEST),
        tried_seconds=_LEARNING_SECONDS,
        overrun_share=UNTRIED.overrun_share if overruns is None else max(0.0, overruns),
    )


def _number(written: object) -> float | None:
    if not isinstance(written, int | float) or isinstance(written, bool) or not isfinite(written):
        return None
    return float(written)


def learned(margin: Margin) -> float | None:
    """What a status says of it; None while nothing was learned."""
    return usable(margin) if margin.tried_seconds > 0 else None


def overruns(margin: Margin) -> float | None:
    """What a status says of the share that overruns take, to a tenth; None while nothing was learned."""
    return round(margin.overrun_share, 1) if margin.tried_seconds > 0 else None


def moved(
    margin: Margin,
    metrics: ServiceMetrics | Missing,
    targets: Targets,
    now: float,
    *,
    load: float,
    filled: float = 1.0,
    queued: bool = False,
    enough: bool = False,
    seen: Interval | Missing | None = None,
) -> Margin:
    """The margin after one more look. `seen` is what `within` says, for callers who know it already.

    `load` is demand as a share of what the present replicas are held to take, `filled` the share to which they are to
    be filled; a pool that is not tried proves nothing. `queued` says that a queue stands: after demand has overrun the
    pool, it tells of that for as long as it does. `enough` says that the fleet is as full as it should be. In both
    cases the factor does not rise.
    """
    overrun = load > _OVERRUN or (queued and now < margin.blind_until)
    blind_until = now + _BLIND_SECONDS if overrun else margin.blind_until
    if isinstance(metrics, Missing) or margin.at is None or now <= margin.at:
        return Margin(margin.factor, margin.usual, now, blind_until, margin.tried_seconds, margin.overrun_share)
    seconds = min(now - margin.at, _LONGEST_STEP_SECONDS)
    usual = margin.usual if overrun else _usual(margin, metrics.requests_per_second, seconds)
    if seen is None:
        seen = within(metrics, targets)
    if isinstance(seen, Missing) or usual <= 0:
        return Margin(margin.factor, usual, now, blind_until, margin.tried_seconds, margin.overrun_share)
    weight = min(metrics.requests_per_second / usual, _MOST_WEIGHT)
    may, blind = _may_miss(targets), now < blind_until
    taken = weight * (1 - seen.low) / may if blind else 0.0
    share = _mean(margin.overrun_share, taken, seconds / _OVERRUN_MEMORY_SECONDS)
    step = _PER_SECOND * seconds * weight * _surprise(seen, may, _left(margin))
    if blind or (step > 0 and (enough or load < _TRIED * filled)):
        return Margin(margin.factor, usual, now, blind_until, margin.tried_seconds, share)
    if step > 0:
        step *= _pace(margin)
    factor = min(max(margin.factor + step, LOWEST), HIGHEST)
    return Margin(factor, usual, now, blind_until, margin.tried_seconds + seconds, share)


def _left(margin: Margin) -> float:
    """Share of the allowed misses that the factor may spend."""
    return min(max(1 - margin.overrun_share, _LEAST_KEPT), _MOST_KEPT)


def _pace(margin: Margin) -> float:
    """How many times faster than usual the factor rises while little was tried."""
    return max(1.0, sqrt(_LEARNING_SECONDS / max(margin.tried_seconds, _LEAST_LEARNED_SECONDS)))


def _usual(margin: Margin, rate: float, seconds: float) -> float:
    return _mean(margin.usual, rate, seconds / _MEMORY_SECONDS) if margin.usual > 0 else rate


def _mean(before: float, now: float, weight: float) -> float:
    return before + min(1.0, weight) * (now - before)


def within(metrics: ServiceMetrics, targets: Targets) -> Interval | Missing:
    """Share of the requests within both objectives."""
    return joint_attainment(
        attainment(metrics.ttft_buckets, targets.ttft_seconds), attainment(metrics.tpot_buckets, targets.tpot_seconds)
    )


def _surprise(seen: Interval, may: float, left: float) -> float:
    """How many fewer requests missed than what is `left` of those that may, negative when more did.

    0 where it cannot be told.
    """
    fewest, most = 1 - seen.high, 1 - seen.low
    certain = min(may * left - fewest, may - most)
    return certain if certain < 0 else max(0.0, may * left - most)
