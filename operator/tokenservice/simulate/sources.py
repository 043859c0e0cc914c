"""Where requests come from: drawn along a rate curve, or replayed from a file.

A source can be gone through any number of times and is always the same: each kind of draw has its own generator,
seeded from (seed, service, kind), and draws happen in blocks of a fixed size, whoever asks and when.

Arrivals of a curve are a renewal process with gamma gaps in operational time, the integral of the rate: at CV 1 a
Poisson process of exactly that rate, and at any CV the mean follows the curve.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from math import inf, nan
from typing import Protocol

import numpy as np

from tokenservice.simulate.curves import Curve
from tokenservice.simulate.lengths import Lengths
from tokenservice.simulate.traffic import Ints, Requests
from tokenservice.simulate.workload_spec import Deferrable

_BLOCK = 8192


class Draw(IntEnum):
    """What a generator is for; part of its seed."""

    ARRIVALS = 0
    LENGTHS = 1
    DEFERRED = 2
    ADDED_ARRIVALS = 3
    ADDED_LENGTHS = 4
    COPIES = 5
    SCALE = 6


@dataclass(frozen=True, slots=True)
class Seeds:
    """Where a service's generators come from."""

    scenario: int
    service: int

    def generator(self, draw: Draw) -> np.random.Generator:
        return np.random.default_rng([self.scenario, self.service, draw])


class Source(Protocol):
    """Requests from 0 to `length_s`, in blocks in order of time, and how many are expected between two times."""

    @property
    def length_s(self) -> float: ...

    @property
    def lengths(self) -> Lengths: ...

    def expected(self, start_s: float, end_s: float) -> float: ...

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        """(input, output, cached) tokens of n requests."""

    def blocks(self) -> Iterator[Requests]: ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """Arrivals along a curve with gaps of this CV; each due `deadline_s` after it arrived, NaN for never."""

    curve: Curve
    cv: float
    lengths: Lengths
    seeds: Seeds
    draws: tuple[Draw, Draw] = (Draw.ARRIVALS, Draw.LENGTHS)
    deadline_s: float = nan

    @property
    def length_s(self) -> float:
        return self.curve.length_s

    def expected(self, start_s: float, end_s: float) -> float:
        return self.curve.expected(start_s, end_s)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        inputs, outputs = self.lengths.draw(n, rng)
        return inputs, outputs, np.zeros_like(inputs)

    def blocks(self) -> Iterator[Requests]:
        gaps, lengths = (self.seeds.generator(draw) for draw in self.draws)
        shape, passed, last_s = self.cv**-2.0, 0.0, 0.0
        while passed < self.curve.total:
            operational = passed + np.cumsum(gaps.gamma(shape, 1 / shape, _BLOCK))
            passed = float(operational[-1])
            inputs, outputs = self.lengths.draw(_BLOCK, lengths)
            # Of two that are next to nothing apart the root may round the later one below the other.
            at_s = np.maximum.accumulate(np.maximum(self.curve.time_of(operational), last_s))
            last_s = float(at_s[-1])
            block = Requests(at_s, inputs, outputs, np.zeros_like(inputs), at_s + self.deadline_s)
            yield part(block, 0, int(np.searchsorted(at_s, inf)))


@dataclass(frozen=True, slots=True)
class Replayed:
    """Requests that are all known beforehand."""

    requests: Requests
    length_s: float
    lengths: Lengths

    def expected(self, start_s: float, end_s: float) -> float:
        first, last = np.searchsorted(self.requests.at_s, (start_s, end_s))
        return float(last - first)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        known = self.requests
        which = rng.integers(0, len(known), n if len(known) else 0)
        return known.input_tokens[which], known.output_tokens[which], known.cached_tokens[which]

    def blocks(self) -> Iterator[Requests]:
        yield self.requests


@dataclass(frozen=True, slots=True)
class Marked:
    """A source some of whose requests, drawn one by one, may wait."""

    source: Source
    deferrable: Deferrable
    seeds: Seeds

    @property
    def length_s(self) -> float:
        return self.source.length_s

    @property
    def lengths(self) -> Lengths:
        return self.source.lengths

    def expected(self, start_s: float, end_s: float) -> float:
        return self.source.expected(start_s, end_s)

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        return self.source.sample(n, rng)

    def blocks(self) -> Iterator[Requests]:
        rng = self.seeds.generator(Draw.DEFERRED)
        for block in self.source.blocks():
            waits = rng.random(len(block)) < self.deferrable.share_of_all_work
            yield replace(block, deadline_s=np.where(waits, block.at_s + self.deferrable.deadline_seconds, nan))


class Reader:
    """Goes through a source once."""

    def __init__(self, source: Source) -> None:
        self._blocks = source.blocks()
        self._held = [nothing()]

    def until(self, end_s: float) -> Requests:
        """All that arrive before `end_s` and were not taken yet."""
        while (block := self._last()) is None or block.at_s[-1] < end_s:
            following = next(self._blocks, None)
            if following is None:
                break
            self._held.append(following)
        held = joined(self._held)
        taken = int(np.searchsorted(held.at_s, end_s))
        self._held = [part(held, taken, len(held))]
        return part(held, 0, taken)

    def _last(self) -> Requests | None:
        return self._held[-1] if len(self._held[-1]) else None


# --- Columns -------------------------------------------------------------------------------------------------------


def nothing() -> Requests:
    """No requests."""
    whole = np.zeros(0, dtype=np.int32)
    return Requests(np.zeros(0), whole, whole, whole, np.zeros(0))


def admitted(requests: Requests, longest: int) -> Requests:
    """Those that an engine takes: it refuses what is longer than its model or its cache."""
    fits = requests.input_tokens.astype(np.int64) + requests.output_tokens - 1 <= longest
    return requests if fits.all() else picked(requests, np.flatnonzero(fits))


def part(requests: Requests, first: int, last: int) -> Requests:
    """Those from `first` to `last`, without copying."""
    return picked(requests, slice(first, last))


def picked(requests: Requests, which: slice | np.ndarray) -> Requests:
    """Those at the given places."""
    return Requests(
        requests.at_s[which],
        requests.input_tokens[which],
        requests.output_tokens[which],
        requests.cached_tokens[which],
        requests.deadline_s[which],
    )


def joined(parts: list[Requests]) -> Requests:
    """One after the other."""
    if len(parts) == 1:
        return parts[0]
    return Requests(
        np.concatenate([it.at_s for it in parts]),
        np.concatenate([it.input_tokens for it in parts]),
        np.concatenate([it.output_tokens for it in parts]),
        np.concatenate([it.cached_tokens for it in parts]),
        np.concatenate([it.deadline_s for it in parts]),
    )


def merged(parts: list[Requests]) -> Requests:
    """All of them in order of time."""
    together = joined(parts)
    return together if len(parts) == 1 else picked(together, np.argsort(together.at_s, kind="stable"))
