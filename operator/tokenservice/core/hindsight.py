"""How long to hold the capacity for a peak: learned from what each way of holding would have cost and missed.

A replica that is let go too early is missed for as long as a new one loads; one that is kept too long is paid for.
Which weighs more depends on how demand comes back, so it is tried in hindsight: rules, each of a window, a growth and
a factor ("as many replicas as `factor` times the highest demand of the window needs, where demand is taken `growth`
of a lead ahead along its slope"), are run on the demand that was seen, with replicas that come one lead after they
are asked for and a queue in front of them. The rule in force is the one that would have kept the objectives at the
least cost. Windows are multiples of the lead, for that is the time that a mistake lasts; so the hysteresis follows from
the cold start and the traffic, a slope counts only where it has paid, and nobody has to set either.

All rules of many services are run at once, as arrays whose first axis is the service: a step of a thousand records
costs what fifty would cost one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, floor, inf
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

_TOGETHER = 64
"""Records of one step: enough to spread numpy's overhead, few enough to stay in the processor's cache."""

_SLOPE_SECONDS, _HORIZON_SECONDS, _HIGHEST_GROWTH = 30.0, 60.0, 1.5
"""A slope over so short a time says nothing of more than a minute, or of more than half as much again."""

DRAIN_SECONDS = 30.0
"""Least time that a queue may take to go: it adds to demand what would work it off in a lead, or in this."""

_START_LEADS = 1.0
"""A start costs this beside the time that the replica is wanted for: a node that comes before it and goes after it, the
requests that it drains, its cold caches. A rule that follows every stir of demand pays that each time."""

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


_HOLDS = tuple(
    Hold(window, growth, factor)
    for growth in range(len(GROWTHS))
    for window in range(len(LEADS))
    for factor in FACTORS.tolist()
)
"""In the order of the arrays."""


class Advice(NamedTuple):
    """What to hold: the peak that capacity is kept for and demand now, in the unit of the record."""

    peak: float
    ahead: float


UNWATCHED = Advice(inf, 0.0)
"""Until a record is long enough nobody knows how demand comes back: any peak may."""


@dataclass(frozen=True, slots=True, eq=False)
class Hindsight:
    """The record of one service. Arrays are never written to; a step makes new ones, so a record equals only itself.

    Demand is in one unit throughout, that of the `capacity` that `lived` is given: replicas' worth, so that it
    weighs the same when requests grow longer; `unit` names the variant of these replicas. `recent` are the last
    (time, demand). `peaks[g, w, b]` is the highest demand with growth g in part b of window w; `targets[r, b]` the
    lowest count that rule r asked for in part b of the last lead. By rule: the count that it wanted last, its queue,
    what it would have missed, the replicas that it would have started, and its replica-seconds. `arrived` and `seconds`
    are what the record covers, `covered` the seconds as far as they are remembered. `highest` is the highest demand,
    which fades as the rest does, and `most` the replicas that it takes; a queue may take `tolerated_seconds`;
    `longest_lull` is the longest time, in seconds, for which demand stayed far below, and the present lull, if there is
    one, began at `lull_since`. `told_by` is what told the demand last.
    """

    lead_seconds: float
    unit: str
    at: float
    recent: tuple[tuple[float, float], ...]
    peaks: Floats
    peaks_since: Floats
    targets: Floats
    targets_since: Floats
    wanted: Floats
    queues: Floats
    missed: Floats
    started: Floats
    cost: Floats
    arrived: float = 0.0
    seconds: float = 0.0
    covered: float = 0.0
    highest: float = 0.0
    most: float = 0.0
    tolerated_seconds: float = 0.0
    lull_since: float = 0.0
    longest_lull: float = 0.0
    told_by: object = None

    def knows(self, told_by: object, now: float, turn: float = 0.0) -> bool:
        """Whether this was looked at already: most decisions come between two rounds of metrics.

        What stays the same is looked at once in each three quarters of a step, when these are over by the share `turn`.
        """
        period = 0.75 * _LONGEST_STEP_SECONDS
        return self.told_by is told_by and floor(now / period - turn) == floor(self.at / period - turn)


def begun(lead_seconds: float, now: float, able: float = 0.0, unit: str = "") -> Hindsight:
    """A record that has seen nothing. Every rule starts from the fleet that is there, which takes `able` requests per
    second: as if that much had been asked for until now."""
    rules = len(LEADS) * len(GROWTHS) * len(FACTORS)
    peaks = np.zeros((len(GROWTHS), len(LEADS), _BUCKETS))
    peaks[..., 0] = able
    return Hindsight(
        lead_seconds=lead_seconds,
        unit=unit,
        at=now,
        recent=(),
        peaks=peaks,
        peaks_since=np.full(len(LEADS), now),
        targets=np.full((rules, _BUCKETS), np.inf, dtype=np.float32),  # whole numbers: exact, in half the memory
        targets_since=np.array([now]),
        lull_since=now,
        wanted=np.full(rules, np.inf, dtype=np.float32),
        queues=np.zeros(rules),
        missed=np.zeros(rules),
        started=np.zeros(rules),
        cost=np.zeros(rules),
    )


class Look(NamedTuple):
    """One more look at a service's demand.

    `capacity` is one replica's, in the unit of demand, of which rules fill the share `filled`; a queue of more than
    `tolerated_seconds` of work is a miss; no rule goes below `fewest` replicas.
    """

    record: Hindsight
    demand: float
    capacity: float
    tolerated_seconds: float
    fewest: int
    filled: float = 1.0
    told_by: object = None


def lived(
    record: Hindsight,
    demand: float,
    capacity: float,
    tolerated_seconds: float,
    fewest: int,
    now: float,
    *,
    filled: float = 1.0,
    told_by: object = None,
) -> Hindsight:
    """The record after one more look at demand."""
    look = Look(record, demand, capacity, tolerated_seconds, fewest, filled, told_by)
    return all_lived([look], now)[0]


def all_lived(looks: Sequence[Look], now: float) -> list[Hindsight]:
    """The records after one more look at each; a record that is not older than `now` stays as it is."""
    after = [look.record for look in looks]
    due = [number for number, record in enumerate(after) if now > record.at]
    for first in range(0, len(due), _TOGETHER):
        some = due[first : first + _TOGETHER]
        for number, record in zip(some, _lived([looks[number] for number in some], now), strict=True):
            after[number] = record
    return after


def _lived(looks: Sequence[Look], now: float) -> list[Hindsight]:
    looks = [look._replace(record=_as_watched(look.record, now)) for look in looks]
    records = [look.record for look in looks]
    demand, fewest = _column([look.demand for look in looks]), _column([look.fewest for look in looks])
    capacity, tolerated, filled = (
        _column([look.capacity for look in looks]),
        _column([look.tolerated_seconds for look in looks]),
        _column([look.filled for look in looks]),
    )
    lead = _column([record.lead_seconds for record in records])
    seconds = [min(now - record.at, _LONGEST_STEP_SECONDS) for record in records]
    recents = [_recent(look, now) for look in looks]
    peaks, peaks_since = _moved(records, "peaks", lead * LEADS, now, 0.0)
    signals = _signals(recents, lead)
    np.maximum(peaks[..., 0], signals[..., None], out=peaks[..., 0])
    targets, targets_since = _moved(records, "targets", lead * _ONE, now, np.inf)
    queues = np.stack([record.queues for record in records])
    queued = np.minimum(queues / np.maximum(lead, DRAIN_SECONDS), demand)
    present = np.repeat(signals, len(LEADS) * len(FACTORS), axis=1) + queued
    held = np.maximum(_held(peaks).reshape(len(looks), -1), present)
    wanted = np.maximum(np.ceil(held / (capacity * filled) - 1e-9), fewest)
    np.minimum(targets[..., 0], wanted, out=targets[..., 0], casting="same_kind")
    able, step = targets.min(axis=-1) * capacity, _column(seconds)
    queues = np.maximum(queues + (demand - able) * step, 0.0)
    late = queues > able * tolerated
    kept = [exp(-took / _memory_seconds(record)) for took, record in zip(seconds, records, strict=True)]
    came = [look.demand * took for look, took in zip(looks, seconds, strict=True)]
    missed = np.stack([record.missed for record in records]) * _column(kept) + late * _column(came)
    rises = np.maximum(wanted - np.stack([record.wanted for record in records]), 0.0)
    started = np.stack([record.started for record in records]) * _column(kept) + rises
    cost = np.stack([record.cost for record in records]) * _column(kept) + wanted * step
    found = []
    for row, (record, look) in enumerate(zip(records, looks, strict=True)):
        highest = max(record.highest * kept[row], look.demand)
        lull_since = record.lull_since if look.demand < _LULL * highest else now
        found.append(
            Hindsight(
                lead_seconds=record.lead_seconds,
                unit=record.unit,
                at=now,
                recent=recents[row],
                # Copies, or one record that nobody looks at any more would keep all the others' arrays.
                peaks=peaks[row].copy(),
                peaks_since=peaks_since[row].copy(),
                targets=targets[row].copy(),
                targets_since=targets_since[row].copy(),
                wanted=wanted[row].astype(np.float32),
                queues=queues[row].copy(),
                missed=missed[row].copy(),
                started=started[row].copy(),
                cost=cost[row].copy(),
                arrived=record.arrived * kept[row] + came[row],
                seconds=record.seconds + seconds[row],
                covered=record.covered * kept[row] + seconds[row],
                highest=highest,
                most=max(look.fewest, ceil(highest / (look.capacity * look.filled) - 1e-9)),
                tolerated_seconds=look.tolerated_seconds,
                lull_since=lull_since,
                longest_lull=max(record.longest_lull, now - lull_since),
                told_by=look.told_by,
            )
        )
    return found


def _as_watched(record: Hindsight, now: float) -> Hindsight:
    """The record with its peaks as old as they are without the time for which nobody looked.

    Demand that was not seen was not none: what was held before Prometheus went is held when it is back.
    """
    unseen = now - record.at - _LONGEST_STEP_SECONDS
    if unseen <= 0:
        return record
    return replace(record, peaks_since=record.peaks_since + unseen, lull_since=record.lull_since + unseen)


def _column(values: Sequence[float]) -> Floats:
    """A number of each service, against arrays with more axes."""
    return np.array(values, dtype=np.float64)[:, None]


def _recent(look: Look, now: float) -> tuple[tuple[float, float], ...]:
    since = now - _SLOPE_SECONDS
    return (*[one for one in look.record.recent if one[0] >= since], (now, look.demand))


def _memory_seconds(record: Hindsight) -> float:
    return max(_MEMORY_LEADS * record.lead_seconds, _SHORTEST_MEMORY_SECONDS)


def all_advice(records: Sequence[Hindsight], allowed: Sequence[float]) -> list[Advice]:
    """By the rules in force, where the `allowed` shares may be missed."""
    holds = rules(records, allowed)
    return [UNWATCHED if hold is None else _advice(record, hold) for record, hold in zip(records, holds, strict=True)]


def _advice(record: Hindsight, hold: Hold) -> Advice:
    return Advice(peak(record, hold), ahead(record, hold))


def rule(record: Hindsight, allowed: float) -> Hold | None:
    """The cheapest rule, misses beyond the `allowed` share being dear; None while the record is too short."""
    return rules([record], [allowed])[0]


def rules(records: Sequence[Hindsight], allowed: Sequence[float]) -> list[Hold | None]:
    """The rule of each record.

    Each is charged with one more rise to the highest demand: what it does not usually hold queues until replicas have
    loaded, and what then queues beyond the tolerated time is missed. What was not seen yet weighs less the longer the
    record is.
    """
    found: list[Hold | None] = [None] * len(records)
    due = [number for number, record in enumerate(records) if record.seconds >= long_enough_seconds(record)]
    if due:
        known = [records[number] for number in due]
        once = [record.highest * record.lead_seconds for record in known]
        cost = np.stack([record.cost for record in known])
        held = cost / _column([max(record.covered, 1e-9) * max(record.most, 1.0) for record in known])
        short = np.maximum(
            0.0, (1 - held) - held * _column([one.tolerated_seconds / one.lead_seconds for one in known])
        )
        missed = np.stack([record.missed for record in known]) + _column(once) * short
        came = _column([max(record.arrived + rise, 1e-9) for record, rise in zip(known, once, strict=True)])
        beyond = np.maximum(0.0, missed / came - _column([allowed[number] for number in due]))
        dear = np.stack([paid(record) for record in known]) * (1 + _COST_OF_MISSES * beyond)
        for number, chosen in zip(due, np.argmin(dear, axis=1).tolist(), strict=True):
            found[number] = _HOLDS[chosen]
    return found


def paid(record: Hindsight) -> Floats:
    """Replica-seconds of each rule, with what its starts cost."""
    return np.asarray(record.cost + record.started * (record.lead_seconds * _START_LEADS))


def long_enough_seconds(record: Hindsight) -> float:
    """How long demand has to be watched before capacity is let go."""
    lulls = min(_LONG_ENOUGH_TIMES * record.longest_lull, _LONG_ENOUGH_SECONDS)
    return max(_LONG_ENOUGH_TIMES * record.lead_seconds, lulls)


def peak(record: Hindsight, hold: Hold) -> float:
    """Demand that a rule holds capacity for: its row of `_held`."""
    plain, grown = record.peaks[0], record.peaks[hold.growth, _GROWN_WINDOWS[hold.window]].max()
    longer = plain[_LONGER_WINDOWS[hold.window]].max()
    return max(float(plain[hold.window].max()) * hold.factor, float(grown) * hold.factor, float(longer) * _KEPT_LONGER)


def forecast(now: float, slope_per_second: float, lead_seconds: float) -> float:
    """The present or, if higher, the line through it at the lead, at most half above it."""
    return min(max(now, now + slope_per_second * lead_seconds), now * _HIGHEST_GROWTH)


def ahead(record: Hindsight, hold: Hold) -> float:
    """Demand now, as the rule takes it."""
    slope, horizon = _slope(record.recent), min(record.lead_seconds, _HORIZON_SECONDS)
    return forecast(record.recent[-1][1], slope, float(GROWTHS[hold.growth]) * horizon)


def _held(parts: Floats) -> Floats:
    """Demand that each rule [..., growth, window, factor] holds capacity for: its peak, and half of a longer window's.

    A lull longer than any seen before says nothing of how it ends, so capacity is let go in two steps.
    """
    peaks = parts.max(axis=-1)
    longer = _KEPT_LONGER * peaks[..., :1, _LONGER_WINDOWS]
    grown = np.maximum(peaks[..., :1, :], peaks[..., _GROWN_WINDOWS])
    return np.asarray(np.maximum(grown[..., None] * FACTORS, longer[..., None]))


def _signals(recents: Sequence[tuple[tuple[float, float], ...]], lead_seconds: Floats) -> Floats:
    """Demand [service, growth]: the present, or further up its slope. As `forecast`, for all at once."""
    rate, slope = _column([recent[-1][1] for recent in recents]), _column([_slope(recent) for recent in recents])
    along = rate + slope * (GROWTHS * np.minimum(lead_seconds, _HORIZON_SECONDS))
    return np.asarray(np.minimum(np.maximum(rate, along), rate * _HIGHEST_GROWTH))


def _slope(recent: tuple[tuple[float, float], ...]) -> float:
    (began, before), (now, rate) = recent[0], recent[-1]
    return (rate - before) / (now - began) if now > began else 0.0


def _moved(records: Sequence[Hindsight], name: str, spans: Floats, now: float, empty: float) -> tuple[Floats, Floats]:
    """The records' parts (the last axis) moved on by whole widths, newest first, each window by its own clock.

    The axis before the last is that of the windows where there are several. All arrays are new.
    """
    parts = np.stack([getattr(record, name) for record in records])
    since = np.stack([getattr(record, f"{name}_since") for record in records])
    widths = spans / _BUCKETS
    steps = np.floor((now - since) / widths + 1e-9)
    shifts = np.minimum(steps, _BUCKETS).astype(int)
    windows = parts if shifts.shape[1] > 1 else parts[:, :, None]
    for shift in np.unique(shifts[shifts > 0]).tolist():
        row, window = np.nonzero(shifts == shift)
        windows[row, :, window, shift:] = windows[row, :, window, : _BUCKETS - shift]
        windows[row, :, window, :shift] = empty
    return parts, since + steps * widths
