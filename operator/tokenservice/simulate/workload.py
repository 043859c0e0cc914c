"""Requests of one service, stretch by stretch: the same for every policy and however time is cut.

Memory does not grow with the time simulated: a week of 10^8 drawn requests takes no more than an hour of them.
"""

from __future__ import annotations

import numpy as np

from tokenservice.simulate.curves import Curve
from tokenservice.simulate.source_files import drawn, replayed
from tokenservice.simulate.sources import (
    Draw,
    Drawn,
    Marked,
    Reader,
    Seeds,
    Source,
    merged,
    part,
)
from tokenservice.simulate.traffic import Requests
from tokenservice.simulate.workload_spec import Deferrable, DeferrableMode, WorkloadSpec


class Workload:
    """One service's requests. They are asked for in order; `fresh` begins anew.

    `arrived_total` counts those handed out so far.
    """

    def __init__(self, sources: tuple[Source, ...], interactive: float, seeds: Seeds) -> None:
        """`interactive` is the share of the first source that may not wait; of the others all may."""
        self._sources, self._interactive, self._seeds = sources, interactive, seeds
        self._readers = [Reader(source) for source in sources]
        self._until_s = 0.0
        self.arrived_total = 0

    @classmethod
    def build(cls, spec: WorkloadSpec, *, seed: int, service: int) -> Workload:
        """Reads what the spec names. `service` is the place in the scenario. Raises InputError for wrong data."""
        seeds = Seeds(seed, service)
        source: Source = replayed(spec, seeds) if spec.requests is not None else drawn(spec, seeds)
        deferrable = spec.deferrable
        if deferrable is None:
            return cls((source,), 1.0, seeds)
        if deferrable.mode == DeferrableMode.DRAWN:
            return cls((Marked(source, deferrable, seeds),), 1.0 - deferrable.share_of_all_work, seeds)
        return cls((source, _added(source, deferrable, seeds)), 1.0, seeds)

    @property
    def duration_s(self) -> float:
        """Time after which nothing arrives any more."""
        return self._sources[0].length_s

    @property
    def expected_total(self) -> float:
        """Requests expected over the whole duration."""
        return sum(source.expected(0.0, self.duration_s) for source in self._sources)

    def fresh(self) -> Workload:
        """The same requests from the start; files are not read again."""
        return Workload(self._sources, self._interactive, self._seeds)

    def stretch(self, start_s: float, end_s: float) -> Requests:
        """Arrivals in [start_s, end_s). Stretches follow each other; what lies between two of them is skipped.

        Raises ValueError for a stretch that begins before the last one ended.
        """
        if not self._until_s <= start_s <= end_s:
            raise ValueError(f"stretch [{start_s}, {end_s}) does not follow {self._until_s}: ask in order, or fresh()")
        self._until_s = end_s
        found = merged([reader.until(end_s) for reader in self._readers])
        found = part(found, int(np.searchsorted(found.at_s, start_s)), len(found))
        self.arrived_total += len(found)
        return found

    def expected_rate(self, start_s: float, end_s: float) -> float:
        """True mean rate of all requests, per second. A window that reaches beyond the end is moved back inside."""
        return self._rate(start_s, end_s, self._sources, 1.0)

    def expected_interactive_rate(self, start_s: float, end_s: float) -> float:
        """As `expected_rate`, of those that may not wait."""
        return self._rate(start_s, end_s, self._sources[:1], self._interactive)

    def sample_lengths(self, n: int, seed: int) -> list[tuple[int, int]]:
        """(input, output) tokens of n requests."""
        inputs, outputs = self._sources[0].lengths.draw(n, np.random.default_rng(seed))
        return list(zip(inputs.tolist(), outputs.tolist(), strict=True))

    def sample_requests(self, n: int, seed: int) -> list[tuple[int, int, int]]:
        """(input, output, cached) tokens of n requests; none where none comes."""
        columns = self._sources[0].sample(n, np.random.default_rng(seed))
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def mean_lengths(self) -> tuple[float, float]:
        """Mean (input, output) tokens."""
        return self._sources[0].lengths.mean()

    def _rate(self, start_s: float, end_s: float, sources: tuple[Source, ...], share: float) -> float:
        beyond = max(end_s - self.duration_s, 0.0)
        start_s, end_s = max(start_s - beyond, 0.0), end_s - beyond
        return share * sum(source.expected(start_s, end_s) for source in sources) / (end_s - start_s)


def _added(source: Source, deferrable: Deferrable, seeds: Seeds) -> Drawn:
    """As much work on top as makes up the share of all, evenly over the time."""
    share = deferrable.share_of_all_work
    rate = source.expected(0.0, source.length_s) / source.length_s * share / (1 - share)
    return Drawn(
        curve=Curve.through(np.array([0.0, source.length_s]), np.array([rate, rate])),
        cv=1.0,
        lengths=source.lengths,
        seeds=seeds,
        draws=(Draw.ADDED_ARRIVALS, Draw.ADDED_LENGTHS),
        deadline_s=deferrable.deadline_seconds,
    )
