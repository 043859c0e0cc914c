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
        """The fleet's, where the peak looks back for two windows of rates at least.

        A new replica's arrivals before its first scrape are in no rate, so demand looks too low for a window of rates
        after each scale-out; a shorter look back would then take the new replicas away again.
        """
        rate = fleet.prometheus.window_seconds
        peak = max(fleet.consolidation.peak_window_seconds, 2 * rate)
        return cls(rate=rate, peak=peak, staleness=fleet.prometheus.staleness_seconds)

    @property
    def mean(self) -> int:
        """Lengths of prompts and answers change slowly and are known only of finished requests."""
        return max(self.peak, 10 * self.rate)

    @property
    def peak_step(self) -> int:
        """Half a window apart nothing is missed; more than 120 points a service are not asked for."""
        return max(self.rate // 2, self.peak // 120, 1)
