"""Knative's pod autoscaler (KPA) on concurrency, as KServe runs it for serverless services.

From knative/serving `pkg/autoscaler/scaling/autoscaler.go`, defaults of `config/core/configmaps/autoscaler.yaml`: a
stable window of 60 s, a panic window of 10 % of it, panic at 200 % of the ready pods' capacity, 70 % of a concurrency
of 100 as the target, at most x1000 up and /2 down a tick, ticks of 2 s, no scale-down delay. An autoscaler that is new
to more than one pod begins in panic (`newAutoscaler`): it keeps what there is until it has seen a stable window.

Requests that the activator holds count, so the metric never goes missing with the engines' own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import ceil, floor

from tokenservice.core.model import Missing
from tokenservice.simulate.policies.base import EachService, Moment, Peer, Window, batch_at_capacity, choices, whole
from tokenservice.simulate.policy import ServiceView

TICK_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kpa:
    """Settings of config-autoscaler. `concurrency` None takes what one replica runs at the limit of its objectives."""

    concurrency: float | None = 100.0
    utilization: float = 0.7
    stable_window: float = 60.0
    panic_share: float = 0.1
    panic_threshold: float = 2.0
    most_up: float = 1000.0
    most_down: float = 2.0
    scale_down_delay: float = 0.0

    def target(self, seen: ServiceView) -> float:
        """Unfinished requests per replica."""
        return self.utilization * (batch_at_capacity(seen) if self.concurrency is None else self.concurrency)


@dataclass(slots=True)
class _OnConcurrency:
    setting: Kpa
    stable: Window = field(init=False)
    panic: Window = field(init=False)
    delayed: Window = field(init=False)
    panicked_at: float | None = None
    most_in_panic: int = 0
    began: bool = False

    def __post_init__(self) -> None:
        self.stable = Window(self.setting.stable_window)
        self.panic = Window(self.setting.stable_window * self.setting.panic_share)
        self.delayed = Window(self.setting.scale_down_delay)

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        """The highest of what was wanted within the delay."""
        self._begin(at.now, seen.ready)
        if isinstance(seen.concurrency, Missing):
            return None
        count = self._wanted_now(seen, seen.concurrency, at)
        self.delayed.add(at.now, count)
        return max([count, *(int(it) for it in self.delayed.since(at.now - self.setting.scale_down_delay))])

    def _begin(self, now: float, ready: int) -> None:
        if not self.began:
            self.began, self.most_in_panic = True, ready
            self.panicked_at = now if ready > 1 else None

    def _wanted_now(self, seen: ServiceView, concurrency: float, at: Moment) -> int:
        target, ready = self.setting.target(seen), max(1, seen.ready)
        self.stable.add(at.now, concurrency)
        self.panic.add(at.now, concurrency)
        hasty = whole(self.panic.mean() / target)
        self._watch(at.now, hasty / ready >= self.setting.panic_threshold)
        calm = self._limited(whole(self.stable.mean() / target), ready)
        if self.panicked_at is None:
            return calm
        self.most_in_panic = max(self.most_in_panic, calm, self._limited(hasty, ready))
        return self.most_in_panic

    def _watch(self, now: float, over: bool) -> None:
        """Panic starts and is renewed while over the threshold, and ends a stable window after the last time."""
        if over:
            self.panicked_at = now
        elif self.panicked_at is not None and self.panicked_at + self.setting.stable_window < now:
            self.panicked_at, self.most_in_panic = None, 0

    def _limited(self, wanted: int, ready: int) -> int:
        return min(max(wanted, floor(ready / self.setting.most_down)), ceil(self.setting.most_up * ready))


def knative(setting: Kpa) -> EachService:
    return EachService("knative-kpa", TICK_SECONDS, partial(_OnConcurrency, setting))


PEERS = (
    Peer(
        name="knative-kpa",
        scales_on="unfinished requests, the activator's included",
        description="stable and panic windows over concurrency per ready pod",
        citation="knative/serving pkg/autoscaler/scaling/autoscaler.go, config/core/configmaps/autoscaler.yaml",
        sweep=choices(
            knative,
            Kpa(),
            Kpa(concurrency=None),
            Kpa(concurrency=None, scale_down_delay=300),
            Kpa(concurrency=None, utilization=0.5, scale_down_delay=300),
            Kpa(concurrency=None, utilization=0.85, scale_down_delay=300),
        ),
    ),
)
