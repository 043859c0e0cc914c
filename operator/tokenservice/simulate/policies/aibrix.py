"""AIBrix's APA: an HPA with its own tolerances and rates on the engines' KV cache.

From vllm-project/aibrix e3e10f9e (v0.7) `pkg/controller/podautoscaler` (defaults in `context/context.go`) and
`samples/autoscaling/apa.yaml` (KV cache usage 0.5, window 30 s, tolerances 0.1 up and 0.2 down). Every 10 s the mean
over pods joins a window of 180 s; outside +-10 % of the target the count follows in proportion, at most doubled or
halved. Cool-down 300 s, as the highest count wanted meanwhile: `stabilizeRecommendation` says it works "similar to K8s
HPA", though it takes the lowest; this shows the peer at its better.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import floor

from tokenservice.core.model import Missing
from tokenservice.simulate.policies.base import (
    EachService,
    Moment,
    Peer,
    Window,
    bounded,
    choices,
    kv_at_capacity,
    mean_kv_usage,
    whole,
)
from tokenservice.simulate.policy import ServiceView

INTERVAL_SECONDS = 10.0
_MOST_CHANGE = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Apa:
    """Target KV usage (0 to 1), tolerances as shares of it, windows in seconds.

    `share` tunes the target for each service: as a share of the usage at which one replica is at its limit.
    """

    target: float = 0.5
    share: float | None = None
    window: float = 180.0
    up_tolerance: float = 0.1
    down_tolerance: float = 0.1
    scale_down_cooldown: float = 300.0


def proportional(ratio: float, replicas: int, setting: Apa) -> int:
    """The count for a smoothed usage over its target."""
    if ratio > 1 + setting.up_tolerance:
        return min(whole(replicas * ratio), whole(replicas * _MOST_CHANGE))
    if ratio < 1 - setting.down_tolerance:
        return max(whole(replicas * ratio), floor(replicas / _MOST_CHANGE))
    return replicas


@dataclass(slots=True)
class _OnKvUsage:
    setting: Apa
    usage: Window = field(init=False)
    recent: Window = field(init=False)

    def __post_init__(self) -> None:
        self.usage = Window(self.setting.window)
        self.recent = Window(self.setting.scale_down_cooldown)

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        """A round without metrics is an error to the controller, which tries again later."""
        if isinstance(seen.metrics, Missing):
            return None
        self.usage.add(at.now, mean_kv_usage(seen))
        ratio = self.usage.mean() / self._target(seen)
        count = bounded(proportional(ratio, seen.replicas, self.setting), seen)
        self.recent.add(at.now, count)
        highest = max([count, *(int(it) for it in self.recent.since(at.now - self.setting.scale_down_cooldown))])
        return count if count > seen.replicas else min(seen.replicas, highest)

    def _target(self, seen: ServiceView) -> float:
        return self.setting.target if self.setting.share is None else self.setting.share * kv_at_capacity(seen)


def apa(setting: Apa) -> EachService:
    return EachService("aibrix-apa", INTERVAL_SECONDS, partial(_OnKvUsage, setting))


PEERS = (
    Peer(
        name="aibrix-apa",
        scales_on="KV cache usage, mean over pods",
        description="proportional with tolerance, at most doubled or halved",
        citation="vllm-project/aibrix e3e10f9e pkg/controller/podautoscaler, samples/autoscaling/apa.yaml",
        sweep=choices(
            apa,
            Apa(),
            Apa(window=30, down_tolerance=0.2),
            Apa(share=0.7, window=30, down_tolerance=0.2),
            Apa(share=0.5, window=30, down_tolerance=0.2),
            Apa(share=0.35, window=30, down_tolerance=0.2),
        ),
    ),
)
