"""Over which times metrics are read, whoever answers: Prometheus, or what stands for it in a simulation."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tokenservice.api.token_fleet import TokenFleetSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Seconds: of rates, of the peak, of means, and from which age a sample is stale."""

    rate: int
    peak: int
    staleness: int

    @classmethod
    def of(cls, fleet: TokenFleetSpec) -> Windows:
        """What a fleet's policy asks for."""
        return cls(
            rate=fleet.prometheus.window_seconds,
            peak=fleet.consolidation.peak_window_seconds,
            staleness=fleet.prometheus.staleness_seconds,
        )

    @property
    def mean(self) -> int:
        """Lengths of prompts and answers change slowly and are known only of finished requests."""
        return max(self.peak, 10 * self.rate)

    @property
    def peak_step(self) -> int:
        """Half a window apart nothing is missed; more than 120 points a service are not asked for."""
        return max(self.rate // 2, self.peak // 120, 1)


_MOST = 4096


@dataclass(slots=True)
class Highest:
    """The highest of the values of a window that ends with the last one.

    Of those that were not reached again since, falling from the oldest on, one can still become it: no other is kept.
    """

    _kept: deque[tuple[float, float]] = field(default_factory=deque)

    def push(self, at: float, value: float, window: float) -> None:
        """One more value, at a time in seconds, and what is older than the window goes."""
        while self._kept and self._kept[-1][1] <= value:
            self._kept.pop()
        self._kept.append((at, value))
        while self._kept[0][0] < at - window or len(self._kept) > _MOST:
            self._kept.popleft()

    @property
    def value(self) -> float:
        """0 before the first."""
        return self._kept[0][1] if self._kept else 0.0

    def __len__(self) -> int:
        return len(self._kept)
