"""Over which times metrics are read, whoever answers: Prometheus, or what stands for it in a simulation."""

from __future__ import annotations

from dataclasses import dataclass

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
