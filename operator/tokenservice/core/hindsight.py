"""How long to hold the capacity for a peak: learned from what each way of holding would have cost and missed.

A replica that is let go too early is missed for as long as a new one loads; one that is kept too long is paid for.
Which weighs more depends on how demand comes back, so it is tried in hindsight: rules, each of a window, a growth and
a factor ("as many replicas as `factor` times the highest demand of the window needs, where demand is taken `growth`
of a lead ahead along its slope"), are run on the demand that was seen, with replicas that come one lead after they
are asked for and a queue in front of them. The rule in force is the one that would have kept the objectives at the
least cost. Windows are multiples of the lead, for that is the time that a mistake lasts; so the hysteresis follows from
the cold start and the traffic, a slope counts only where it has paid, and nobody has to set either.

All rules are run at once, as arrays; a step costs some tens of microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, exp, inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEADS = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
"""Windows of the rules, in leads."""

GROWTHS = np.array([0.0, 0.5, 1.0])
"""How far along its slope demand is taken, in leads."""

FACTORS = np.array([1.0, 0.95, 0.9, 0.8, 0.7])
"""What share of the peak they hold: objectives leave room for some misses."""

_BUCKETS = 16
"""A window's highest value is kept by so many parts of it."""

_LONG_ENOUGH_TIMES, _LONG_ENOUGH_SECONDS = 5.0, 900.0
"""The record is trusted when it is so many times as long as the lead, and as the longest lull in it: it has to have
seen demand come back. A quarter of an hour is enough where replicas load in less than a fifth of it: what went and did
not come back within it must be let go at some time."""

_LULL = 0.5
"""Demand below this share of the highest is a lull."""

_LONGER, _KEPT_LONGER = 2, 0.5
"""This share of the peak is held for a window so many places longer."""

_GROWN_WINDOWS = np.minimum(np.arange(len(LEADS)), 1)
"""What a slope promised is held for a lead at most: by then it has come, or will not."""

_LONGER_WINDOWS = np.minimum(np.arange(len(LEADS)) + _LONGER, len(LEADS) - 1)
_ONE = np.ones(1)

_SLOPE_SECONDS, _HORIZON_SECONDS, _HIGHEST_GROWTH = 30.0, 60.0, 1.5
"""A slope over so short a time says nothing of more than a minute, or of more than half as much again."""

DRAIN_SECONDS = 30.0
"""Least time that a queue may take to go: it adds to demand what would work it off in a lead, or in this."""

_COST_OF_MISSES = 100.0
"""One percent of misses beyond the allowed ones counts like twice the replicas."""

_MEMORY_LEADS = 200.0
_SHORTEST_MEMORY_SECONDS = 4 * 3600.0
_LONGEST_STEP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Hold:
    """A rule: keep what `factor` times the highest demand of the last `LEADS[window]` leads needs."""

    window: int
    growth: int
    factor: float


class Advice(NamedTuple):
    """What to hold: the peak that capacity is kept for and demand now, in the unit of the record."""

    peak: float
    ahead: float


@dataclass(frozen=True, slots=True, eq=False)
class Hindsight:
    """The record of one service. Arrays are never written to; a step makes new ones, so a record equals only itself.

    Demand is in one unit throughout, that of the `capacity` that `lived` is given: replicas' worth, so that it weighs
    the same when requests grow longer. `recent` are the last (time, demand). `peaks[g, w, b]` is the highest demand
    with growth g in part b of window w; `targets[r, b]` the lowest count that rule r asked for in part b of the last
    lead. By rule: its queue, what it would have missed, and its replica-seconds. `arrived` and `seconds` are what the
    record covers, `covered` the seconds as far as they are remembered. `highest` is the highest demand, which fades as
    the rest does, and `most` the replicas that it takes; `longest_lull` is the longest time, in seconds, for which
    demand stayed far below, and the present lull, if there is one, began at `lull_since`. `told_by` is what told the
    demand last.
    """

    lead_seconds: float
    at: float
    recent: tuple[tuple[float, float], ...]
    peaks: Floats
    peaks_since: Floats
    targets: Floats
    targets_since: Floats
    queues: Floats
    missed: Floats
    cost: Floats
    arrived: float = 0.0
    seconds: float = 0.0
    covered: float = 0.0
    highest: float = 0.0
    most: float = 0.0
    lull_since: float = 0.0
    longest_lull: float = 0.0
    told_by: object = None

    def knows(self, told_by: object, now: float) -> bool:
        """Whether this was looked at already: most decisions come between two rounds of metrics."""
        return self.told_by is told_by and now - self.at < _LONGEST_STEP_SECONDS / 2


def begun(lead_seconds: float, now: float, able: float = 0.0) -> Hindsight:
    """A record that has seen nothing. Every rule starts from the fleet that is there, which takes `able` requests per
    second: as if that much had been asked for until now."""
    rules = len(LEADS) * len(GROWTHS) * len(FACTORS)
    peaks = np.zeros((len(GROWTHS), len(LEADS), _BUCKETS))
    peaks[..., 0] = able
    return Hindsight(
        lead_seconds=lead_seconds,
        at=now,
        recent=(),
        peaks=peaks,
        peaks_since=np.full(len(LEADS), now),
        targets=np.full((rules, _BUCKETS), np.inf),
        targets_since=np.array([now]),
        lull_since=now,
        queues=np.zeros(rules),
        missed=np.zeros(rules),
        cost=np.zeros(rules),
    )


def lived(
    record: Hindsight,
    requests_per_second: float,
    capacity: float,
    tolerated_seconds: float,
    fewest: int,
    now: float,
    *,
    filled: float = 1.0,
    told_by: object = None,
) -> Hindsight:
    """The record after one more look at demand.

    `capacity` is one replica's, in the unit of demand, of which rules fill the share `filled`; a queue of more than
    `tolerated_seconds` of work is a miss; no rule goes below `fewest` replicas.
    """
    seconds = min(now - record.at, _LONGEST_STEP_SECONDS)
    if seconds <= 0:
        return record
    recent = (*(one for one in record.recent if one[0] >= now - _SLOPE_SECONDS), (now, requests_per_second))
    peaks, peaks_since = _moved(record.peaks, record.peaks_since, record.lead_seconds * LEADS, now, 0.0)
    signals = _signals(recent, record.lead_seconds)
    np.maximum(peaks[..., 0], signals[:, None], out=peaks[..., 0])
    targets, since = _moved(record.targets, record.targets_since, record.lead_seconds * _ONE, now, np.inf)
    late = np.minimum(record.queues / max(record.lead_seconds, DRAIN_SECONDS), requests_per_second)
    present = np.repeat(signals, len(LEADS) * len(FACTORS)) + late
    wanted = np.maximum(np.ceil(np.maximum(_held(peaks).ravel(), present) / (capacity * filled) - 1e-9), fewest)
    np.minimum(targets[:, 0], wanted, out=targets[:, 0])
    able = targets.min(axis=1) * capacity
    queues = np.maximum(record.queues + (requests_per_second - able) * seconds, 0.0)
    late = queues > able * tolerated_seconds
    kept = exp(-seconds / max(_MEMORY_LEADS * record.lead_seconds, _SHORTEST_MEMORY_SECONDS))
    came = requests_per_second * seconds
    highest = max(record.highest * kept, requests_per_second)
    lull_since = record.lull_since if requests_per_second < _LULL * highest else now
    return replace(
        record,
        at=now,
        recent=recent,
        peaks=peaks,
        peaks_since=peaks_since,
        targets=targets,
        targets_since=since,
        queues=queues,
        missed=record.missed * kept + late * came,
        cost=record.cost * kept + wanted * seconds,
        arrived=record.arrived * kept + came,
        seconds=record.seconds + seconds,
        covered=record.covered * kept + seconds,
        highest=highest,
        most=max(fewest, ceil(highest / (capacity * filled) - 1e-9)),
        lull_since=lull_since,
        longest_lull=max(record.longest_lull, now - lull_since),
        told_by=told_by,
    )


def advice(record: Hindsight | None, allowed: float) -> Advice:
    """By the rule in force. Until the record is long enough nobody knows how demand comes back: any peak may."""
    hold = None if record is None else rule(record, allowed)
    if record is None or hold is None:
        return Advice(inf, 0.0)
    return Advice(peak(record, hold), ahead(record, hold))


def long_enough(record: Hindsight) -> float:
    """Seconds that demand has to be watched before capacity is let go."""
    lulls = min(_LONG_ENOUGH_TIMES * record.longest_lull, _LONG_ENOUGH_SECONDS)
    return max(_LONG_ENOUGH_TIMES * record.lead_seconds, lulls)


def rule(record: Hindsight, allowed: float) -> Hold | None:
    """The cheapest rule, misses beyond the `allowed` share being dear; None while the record is too short.

    Each is charged with one more rise to the highest demand, of which it would miss what it usually does not hold until
    replicas have loaded: what was not seen yet weighs less the longer the record is.
    """
    if record.seconds < long_enough(record):
        return None
    once = record.highest * record.lead_seconds
    held = record.cost / max(record.covered, 1e-9) / max(record.most, 1.0)
    missed = record.missed + once * np.maximum(0.0, 1 - held)
    beyond = np.maximum(0.0, missed / max(record.arrived + once, 1e-9) - allowed)
    chosen = np.argmin(record.cost * (1 + _COST_OF_MISSES * beyond))
    growth, window, factor = np.unravel_index(int(chosen), (len(GROWTHS), len(LEADS), len(FACTORS)))
    return Hold(int(window), int(growth), float(FACTORS[factor]))


def peak(record: Hindsight, hold: Hold) -> float:
    """Demand that a rule holds capacity for, requests per second."""
    return float(_held(record.peaks)[hold.growth, hold.window, hold.factor == FACTORS][0])


def forecast(now: float, slope_per_second: float, lead_seconds: float) -> float:
    """The present or, if higher, the line through it at the lead, at most half above it."""
    return min(max(now, now + slope_per_second * lead_seconds), now * _HIGHEST_GROWTH)


def ahead(record: Hindsight, hold: Hold) -> float:
    """Demand now, as the rule takes it, requests per second."""
    return float(_signals(record.recent, record.lead_seconds)[hold.growth])


def _held(parts: Floats) -> Floats:
    """Demand that each rule [growth, window, factor] holds capacity for: its peak, and half of a longer window's.

    A lull longer than any seen before says nothing of how it ends, so capacity is let go in two steps.
    """
    peaks = parts.max(axis=2)
    longer = _KEPT_LONGER * peaks[0, _LONGER_WINDOWS]
    grown = np.maximum(peaks[0], peaks[:, _GROWN_WINDOWS])
    return np.asarray(np.maximum(grown[:, :, None] * FACTORS, longer[:, None]))


def _signals(recent: tuple[tuple[float, float], ...], lead_seconds: float) -> Floats:
    """Demand by growth: the present, or further up its slope."""
    (began, before), (now, rate) = recent[0], recent[-1]
    slope, horizon = (rate - before) / (now - began) if now > began else 0.0, min(lead_seconds, _HORIZON_SECONDS)
    return np.array([forecast(rate, slope, growth * horizon) for growth in GROWTHS.tolist()])


def _moved(parts: Floats, since: Floats, spans: Floats, now: float, empty: float) -> tuple[Floats, Floats]:
    """Parts (the last axis) moved on by whole widths, newest first, each window by its own clock.

    The axis before the last is that of the windows where there are several.
    """
    widths = spans / _BUCKETS
    steps = np.floor((now - since) / widths + 1e-9).astype(int)
    moved = parts.copy()
    for number in np.flatnonzero(steps):
        rows = moved if len(steps) == 1 else moved[:, number]
        shift = min(int(steps[number]), _BUCKETS)
        rows[..., shift:] = rows[..., : _BUCKETS - shift].copy()
        rows[..., :shift] = empty
    return moved, since + steps * widths
