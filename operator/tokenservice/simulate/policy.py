"""What a policy may know and what it decides: the border between the simulated fleet and the rules compared on it.

A policy is asked every `period_seconds` how many replicas each service should have. It sees what its real counterpart
could read from Prometheus, and nothing of the future but `expected`, which stands for a perfect forecaster: peers
that publish no forecaster of their own are given that one, so that they are shown at their best. Policies keep what
they remember between calls in themselves; a new one is made for every run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.capacity import Targets, Workload
from tokenservice.core.model import Missing, ServiceKey, ServiceMetrics, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """One Ready engine at the last scrape: sequences running and waiting, and KV use (0 to 1)."""

    running: float
    waiting: float
    kv_usage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """One service at the last scrape.

    `replicas` is the count asked for now, `ready` how many of them serve. `workload` has the lengths of the last
    window, `usual` the means over all of the service's traffic, as a load test uses them. `reference_rate` is lambda*,
    requests per second per replica of `variant` with the usual ones (see `simulate.steady`). `duty_cycle` is the share
    of time (0 to 1) in which an engine had any work, meaned over engines and the window of rates: what
    `DCGM_FI_DEV_GPU_UTIL` reports. `concurrency` counts unfinished requests, those held at the router included,
    averaged since the scrape before the last; Missing until there are two.
    """

    key: ServiceKey
    spec: TokenServiceSpec
    variant: Variant
    targets: Targets
    workload: Workload
    usual: Workload
    reference_rate: float
    replicas: int
    ready: int
    engines: tuple[EngineView, ...]
    metrics: ServiceMetrics | Missing
    duty_cycle: float | Missing
    concurrency: float | Missing
    cold_start_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetView:
    """The fleet at `now` (seconds since the scenario's start).

    `expected(service, start, end)` is the true mean arrival rate, requests per second, between two times.
    """

    now: float
    services: Mapping[ServiceKey, ServiceView]
    expected: Callable[[ServiceKey, float, float], float]


class Policy(Protocol):
    """Counts for the whole fleet, asked for every `period_seconds` of simulated time."""

    name: str
    period_seconds: float

    def replicas(self, view: FleetView) -> Mapping[ServiceKey, int]:
        """The counts wanted now; a service that is left out keeps its count."""
