"""What was delivered for the accelerators that existed: SLO-goodput utilization and what it leaves out.

`U = work of requests within both objectives / accelerators that existed`, where a request is worth the
accelerator-seconds that it takes on its service's reference variant at capacity. Engines export TTFT and TPOT apart,
so live the share within both is only known to lie in an interval, and U with it; the lower end is the one to quote.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokenservice.core.capacity import Capacity
from tokenservice.core.model import Missing, Reason, Variant


@dataclass(frozen=True, slots=True)
class Interval:
    """A share that is known to lie between two bounds, each 0 to 1 for shares of requests."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One service's contribution: finished requests per second, accelerator-seconds each, share within both SLOs."""

    requests_per_second: float
    work_per_request: float
    attainment: Interval

    @property
    def work(self) -> float:
        """Accelerators' worth of requests, within the objectives or not."""
        return self.requests_per_second * self.work_per_request


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Every accelerator of the fleet, counted once; those that other tenants hold are not the fleet's.

    `ready`, `starting` and `draining` are held by replicas; the free ones are on nodes in use or on empty nodes.
    """

    ready: int = 0
    starting: int = 0
    draining: int = 0
    free_on_used_nodes: int = 0
    free_on_empty_nodes: int = 0

    @property
    def existing(self) -> int:
        return self.held + self.free_on_used_nodes + self.free_on_empty_nodes

    @property
    def held(self) -> int:
        return self.ready + self.starting + self.draining


@dataclass(frozen=True, slots=True, kw_only=True)
class Waterfall:
    """Where accelerator time goes; the parts add up to 1."""

    utilization: float
    slo_misses: float
    headroom: float
    cold_start: float
    draining: float
    fragmentation: float
    idle_nodes: float


def joint_attainment(ttft: float | Missing, tpot: float | Missing) -> Interval | Missing:
    """Share of requests within both objectives, from the shares within each."""
    if isinstance(ttft, Missing):
        return ttft
    if isinstance(tpot, Missing):
        return tpot
    return Interval(max(0.0, ttft + tpot - 1.0), min(ttft, tpot))


def work_per_request(variant: Variant, capacity: Capacity) -> float | Missing:
    """Accelerator-seconds that a mean request is worth on this variant, from `accelerators / capacity`."""
    if capacity.requests_per_second <= 0:
        return Missing(Reason.OBJECTIVES_UNREACHABLE, "no request is served within the objectives")
    return variant.accelerators / capacity.requests_per_second


def service_utilization(requests_per_second: float, able_per_second: float) -> float | Missing:
    """Demand as a share of what the ready replicas take within the objectives; above 1 when they are too few."""
    if able_per_second <= 0:
        return Missing(Reason.UNKNOWN, "no replica serves")
    return requests_per_second / able_per_second


def fleet_utilization(served: Iterable[Served], counts: Counts) -> Interval | Missing:
    """Goodput work per existing accelerator, at both ends of the attainments; at most the share that serves."""
    if counts.existing <= 0:
        return Missing(Reason.UNKNOWN, "the fleet has no accelerators")
    every = tuple(served)
    low = sum(one.work * one.attainment.low for one in every)
    high = sum(one.work * one.attainment.high for one in every)
    serving = counts.ready + counts.draining
    return Interval(min(low, serving) / counts.existing, min(high, serving) / counts.existing)


def waterfall(served: Iterable[Served], counts: Counts) -> Waterfall | Missing:
    """Splits the fleet's accelerators by what they do, at the lower end of the attainments.

    Replicas that serve may be worth less than their requests (overload, or an engine that beats its profile): good
    work then counts up to what serves, missed work up to the rest, and no headroom is left.
    """
    every = tuple(served)
    if counts.existing <= 0:
        return Missing(Reason.UNKNOWN, "the fleet has no accelerators")
    work = [(one.work, one.attainment.low) for one in every]
    good = min(sum([each * met for each, met in work]), counts.ready + counts.draining)
    missed = min(sum([each * (1 - met) for each, met in work]), counts.ready + counts.draining - good)
    serving = good + missed
    headroom = max(0.0, counts.ready - serving)
    draining = counts.draining - max(0.0, serving - counts.ready)
    return Waterfall(
        utilization=good / counts.existing,
        headroom=headroom / counts.existing,
        cold_start=counts.starting / counts.existing,
        draining=draining / counts.existing,
        fragmentation=counts.free_on_used_nodes / counts.existing,
        idle_nodes=counts.free_on_empty_nodes / counts.existing,
        slo_misses=missed / counts.existing,
    )


def dollars_per_million_tokens(dollars_per_hour: float, output_tokens_per_second: float) -> float | Missing:
    """Cost of a million output tokens; Missing while none are made."""
    if output_tokens_per_second <= 0:
        return Missing(Reason.UNKNOWN, "no output was produced")
    return dollars_per_hour / 3600 / output_tokens_per_second * 1e6


def watts(accelerators: float, busy_share: float, idle_watts: float, busy_watts: float) -> float:
    """Estimated power of accelerators that are busy for a share of the time, linear between the class's two figures."""
    busy = min(max(busy_share, 0.0), 1.0)
    return accelerators * (idle_watts + (busy_watts - idle_watts) * busy)


def joules_per_token(watts: float, output_tokens_per_second: float) -> float | Missing:
    """Estimated energy of an output token; Missing while none are made."""
    if output_tokens_per_second <= 0:
        return Missing(Reason.UNKNOWN, "no output was produced")
    return watts / output_tokens_per_second
