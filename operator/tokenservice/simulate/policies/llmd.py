"""llm-d's SLO-aware scaling, the strongest of the simple ones: percentiles against their targets, through an HPA.

From llm-d/llm-d `guides/workload-autoscaling/README.slo-aware.md` and its manifests. Every 15 s the worse of P90 TTFT
and P90 TPOT over their targets, at most 2, is averaged over 45 s. Above 0.55 the count grows in proportion, discounted
by the share of replicas that are ready yet; below 0.40 it shrinks in proportion. Up at most the larger of 100 % and 4
pods a minute after 30 s, down one pod in 120 s after 180 s. As printed, the discount can ask for less than there is in
the middle of a scale-up, which only the down window hides: here it never does. The percentiles are those of a minute,
which is put together from the shorter windows that a scenario's Prometheus is asked for.

No observations count as a signal of zero, as the recording rule says; missing metrics hold the count.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial
from math import floor
from statistics import fmean

from tokenservice.core.capacity import Targets
from tokenservice.core.histogram import Buckets, quantile
from tokenservice.core.model import Missing, ServiceMetrics
from tokenservice.simulate.policies.base import EachService, Moment, Peer, Window, choices, whole
from tokenservice.simulate.policies.hpa import SYNC_SECONDS, Behaviour, Hpa, Rate, average_value
from tokenservice.simulate.policy import ServiceView

_BEHAVIOUR = Behaviour(
    up_window=30,
    up=Rate(period_seconds=60, pods=4, percent=100),
    down_window=180,
    down=Rate(period_seconds=120, pods=1),
)
_MOST = 2.0
_SMOOTHED_SECONDS = 45.0
_RATED_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SloAware:
    """Signals (latency over target) above and below which it scales, and the percentile that is looked at."""

    up: float = 0.55
    down: float = 0.40
    fraction: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.down < self.up:
            raise ValueError("down must lie between 0 and up: lower down or raise up")


def signal(minute: Collection[ServiceMetrics], targets: Targets, fraction: float) -> float:
    """The worse of the two latencies at that percentile over its target, at most 2; 0 without observations.

    `minute` holds what was read in the last minute, each of the time since the one before.
    """
    ttft = _ratio(_together([it.ttft_buckets for it in minute]), fraction, targets.ttft_seconds)
    return min(_MOST, max(ttft, _ratio(_together([it.tpot_buckets for it in minute]), fraction, targets.tpot_seconds)))


def desired(level: float, replicas: int, ready: int, setting: SloAware) -> int:
    """The count that the recording rules print for a smoothed signal."""
    if level > setting.up:
        there = ready / replicas if 0 < ready < replicas else 1.0
        return max(replicas, replicas + whole(replicas * (level * there / setting.up - 1)))
    if level < setting.down:
        return replicas - floor(replicas * (1 - level / setting.down) + 1e-9)
    return replicas


def _together(windows: Collection[Buckets]) -> Buckets:
    """Observations per second over all of them, bucket by bucket."""
    return tuple(
        (buckets[0][0], fmean(rate for _, rate in buckets)) for buckets in zip(*filter(None, windows), strict=True)
    )


def _ratio(buckets: Buckets, fraction: float, target: float) -> float:
    found = quantile(buckets, fraction) if buckets else 0.0
    return 0.0 if isinstance(found, Missing) else found / target


@dataclass(slots=True)
class _OnLatency:
    setting: SloAware
    minute: deque[ServiceMetrics] = field(default_factory=lambda: deque(maxlen=round(_RATED_SECONDS / SYNC_SECONDS)))
    levels: Window = field(default_factory=lambda: Window(_SMOOTHED_SECONDS))
    hpa: Hpa = field(default_factory=lambda: Hpa(_BEHAVIOUR))

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        if isinstance(seen.metrics, Missing):
            return None
        self.minute.append(seen.metrics)
        self.levels.add(at.now, signal(self.minute, seen.targets, self.setting.fraction))
        count = desired(self.levels.mean(), seen.replicas, seen.ready, self.setting)
        return self.hpa.decide(at.now, seen, average_value(count, 1.0, seen.replicas))


def slo_aware(setting: SloAware) -> EachService:
    return EachService("llm-d-slo-aware", SYNC_SECONDS, partial(_OnLatency, setting))


PEERS = (
    Peer(
        name="llm-d-slo-aware",
        scales_on="P90 TTFT and TPOT over their targets",
        description="proportional band on the smoothed latency signal, through KEDA and HPA",
        citation="llm-d/llm-d guides/workload-autoscaling/README.slo-aware.md; llm-d-autoscaling PR #1376",
        sweep=choices(
            slo_aware,
            SloAware(),
            SloAware(up=0.7, down=0.5),
            SloAware(up=0.4, down=0.25),
            SloAware(up=0.7, down=0.5, fraction=0.99),
            SloAware(up=0.9, down=0.7, fraction=0.99),
        ),
    ),
)
