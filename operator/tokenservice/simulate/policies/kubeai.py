"""KubeAI: a long mean of active requests.

From substratusai/kubeai f442a2cd `internal/modelautoscaler/autoscaler.go`, defaults of `internal/config/system.go` and
of the Model type: every 10 s the sum of active requests joins a mean over 10 minutes; the count is that over
`targetRequests` (100), up at once, down once `scaleDownDelaySeconds` (30) of lower answers in a row were let pass
(`internal/modelclient/scale.go`: three are, the fourth counts).

Active requests are counted in its own proxy, so they never go missing with the engines' metrics.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from tokenservice.core.model import Missing
from tokenservice.simulate.policies.base import EachService, Moment, Peer, Window, batch_at_capacity, choices, whole
from tokenservice.simulate.policy import ServiceView

INTERVAL_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeAI:
    """Active requests per replica, or `share` of what one runs at the limit of its objectives; seconds otherwise."""

    target: float = 100.0
    share: float | None = None
    window: float = 600.0
    scale_down_delay: float = 30.0

    def target_requests(self, seen: ServiceView) -> float:
        return self.target if self.share is None else self.share * batch_at_capacity(seen)


@dataclass(slots=True)
class _OnActiveRequests:
    setting: KubeAI
    active: Window = field(init=False)
    lower_in_a_row: int = 0

    def __post_init__(self) -> None:
        self.active = Window(self.setting.window)

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        if isinstance(seen.concurrency, Missing):
            return None
        self.active.add(at.now, seen.concurrency)
        wanted = whole(self.active.mean() / self.setting.target_requests(seen))
        self.lower_in_a_row = self.lower_in_a_row + 1 if wanted < seen.replicas else 0
        if wanted < seen.replicas and self.lower_in_a_row <= whole(self.setting.scale_down_delay / INTERVAL_SECONDS):
            return None
        return wanted


def kubeai(setting: KubeAI) -> EachService:
    return EachService("kubeai", INTERVAL_SECONDS, partial(_OnActiveRequests, setting))


PEERS = (
    Peer(
        name="kubeai",
        scales_on="active requests in its proxy, mean of 10 min",
        description="moving mean of active requests over a target, up at once, down after a delay",
        citation="substratusai/kubeai f442a2cd internal/modelautoscaler/autoscaler.go",
        sweep=choices(
            kubeai,
            KubeAI(),
            KubeAI(share=0.7),
            KubeAI(share=0.7, window=60),
            KubeAI(share=0.5, window=60),
            KubeAI(share=0.5, window=60, scale_down_delay=300),
        ),
    ),
)
