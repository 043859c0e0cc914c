"""What a request must keep to count: its service's latency targets, and the share of requests that has to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Latency targets in seconds and the share of requests (0 to 1) that must meet both."""

    ttft_seconds: float
    tpot_seconds: float
    attainment: float = 0.99
