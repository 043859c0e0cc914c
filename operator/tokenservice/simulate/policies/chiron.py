"""Chiron's global autoscaler: as many instances as keep the share of busy ones at a level.

From "Hierarchical Autoscaling for Large Language Model Serving with Chiron" (arXiv 2501.08090): interactive
backpressure is the share of instances that run interactive requests, and instances are added or removed to hold it.
No code is published; the level of 0.6 is that of the re-implementation in shashwatj07/SageServe 0b95ca2d
(`arbiter.py`, ChironArbiter), a third is three-fold over-provisioning for bursts.

Its router fills one instance up to the batch that its local autoscaler finds before it uses the next. Ours spreads
requests, where every instance would always be busy, so the busy ones are counted as its router would fill them: at
the batch where one replica is at the limit of its objectives, to which the local autoscaler converges. What the queue
of deferrable requests does (batch backpressure) is not seen through this interface and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tokenservice.core.model import Missing
from tokenservice.simulate.policies.base import EachService, Moment, Peer, batch_at_capacity, choices, whole
from tokenservice.simulate.policy import ServiceView

_INTERVAL_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backpressure:
    """Share of instances (0 to 1) that should be busy."""

    level: float = 0.6


@dataclass(frozen=True, slots=True)
class _Global:
    setting: Backpressure

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        """Up to what holds the level at once, down one at a time."""
        if isinstance(seen.concurrency, Missing):
            return None
        busy = whole(seen.concurrency / batch_at_capacity(seen))
        return max(seen.replicas - 1, whole(busy / self.setting.level))


def chiron(setting: Backpressure) -> EachService:
    return EachService("chiron", _INTERVAL_SECONDS, partial(_Global, setting))


PEERS = (
    Peer(
        name="chiron",
        scales_on="share of instances busy with interactive requests",
        description="global autoscaler on interactive backpressure",
        citation="arXiv 2501.08090; shashwatj07/SageServe 0b95ca2d arbiter.py (ChironArbiter)",
        sweep=choices(
            chiron, Backpressure(), Backpressure(level=1 / 3), Backpressure(level=0.8), Backpressure(level=0.9)
        ),
    ),
)
