"""SageServe's LT-UA: an hourly target from a forecast, approached only as utilization asks for it.

From the artefact of "SageServe: Optimizing LLM Serving on Cloud Data Centers with Forecast Aware Auto-Scaling" (POMACS
9(3), 2025), shashwatj07/SageServe 0b95ca2d: `global_arbiter.py`, `long_term_allocation.py`, `arbiter.py`. Every hour
an ILP finds the cheapest instances that take the highest minute forecast between 20 and 60 minutes ahead. The change
waits: an instance is added while KV use is above 0.5, and taken away while it is below 0.25, one in 65 s (the
artefact's time to reclaim a spot instance). At the target LT-UA adds one more when the rate seen is five times the
forecast's; its sibling LT-U does when KV use is above 0.9, and LT-I goes to the target at once.

For one region and one kind of accelerator a service the ILP falls apart into one rounding up a service, which is what
runs here. Its ARIMA fits are not published as a rule that could be re-run, so the forecast is the true rate.
Without metrics there is no utilization: it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import inf

from tokenservice.core.model import Missing, ServiceMetrics
from tokenservice.simulate.policies.base import EachService, Moment, Peer, choices, kv_at_capacity, mean_kv_usage, whole
from tokenservice.simulate.policy import ServiceView

_HOUR, _MINUTE = 3600.0, 60.0
_ARBITER_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LongTerm:
    """KV use (0 to 1) that lets the count grow, shrink, and grow beyond the target; seconds between two changes.

    `tuned` measures KV use as a share of what one replica has at the limit of its objectives. `headroom` raises the
    forecast, `surprise` is the ratio of rates that breaks the target.
    """

    grow: float = 0.5
    shrink: float = 0.25
    guard: float = inf
    surprise: float = 5.0
    tuned: bool = False
    headroom: float = 0.0
    pause: float = 65.0
    first_minute: int = 20


@dataclass(slots=True)
class _Arbiter:
    setting: LongTerm
    planned_at: float = -inf
    changed_at: float = -inf
    target: int = 0

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        if at.now - self.planned_at >= _HOUR and seen.reference_rate > 0:
            self.target, self.planned_at = self._allocation(seen, at), at.now
        if isinstance(seen.metrics, Missing) or at.now - self.changed_at < self.setting.pause or not self.target:
            return None
        count = self._stepped(seen, seen.metrics, at)
        if count != seen.replicas:
            self.changed_at = at.now
        return count

    def _allocation(self, seen: ServiceView, at: Moment) -> int:
        starts = (at.now + minute * _MINUTE for minute in range(self.setting.first_minute, 60))
        peak = max(at.expected(start, start + _MINUTE) for start in starts)
        return max(1, whole(peak * (1 + self.setting.headroom) / seen.reference_rate))

    def _stepped(self, seen: ServiceView, metrics: ServiceMetrics, at: Moment) -> int:
        setting = self.setting
        use = mean_kv_usage(seen) / (kv_at_capacity(seen) if setting.tuned else 1.0)
        if self.target > seen.replicas and use > setting.grow:
            return self.target if setting.pause == 0 else seen.replicas + 1
        if self.target < seen.replicas and use < setting.shrink:
            return self.target if setting.pause == 0 else seen.replicas - 1
        surprised = metrics.requests_per_second > setting.surprise * at.expected(at.now, at.now + _MINUTE)
        if self.target == seen.replicas and (surprised or use > setting.guard):
            return seen.replicas + 1
        return seen.replicas


def sageserve(setting: LongTerm) -> EachService:
    return EachService("sageserve-lt-ua", _ARBITER_SECONDS, partial(_Arbiter, setting))


PEERS = (
    Peer(
        name="sageserve-lt-ua",
        scales_on="hourly forecast, KV use and forecast misses",
        description="hourly target on a perfect forecast, approached by utilization",
        citation="SageServe, POMACS 9(3) 2025, doi:10.1145/3771576; shashwatj07/SageServe 0b95ca2d arbiter.py",
        sweep=choices(
            sageserve,
            LongTerm(),
            LongTerm(tuned=True, guard=0.9),
            LongTerm(tuned=True, guard=0.9, headroom=0.3, first_minute=0),
            LongTerm(grow=-1, shrink=inf, pause=0, first_minute=0),
            LongTerm(grow=-1, shrink=inf, pause=0, first_minute=0, headroom=0.3),
            foresight=lambda _: True,
        ),
    ),
)
