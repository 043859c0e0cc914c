"""Lifts placement gates that nobody lifted, in every process, leader or not.

A pod is gated in the belief that the planner places it within seconds. When that fails, whatever the reason, any
process of ours lifts the gate after thirty seconds and the scheduler alone decides. Lifting is idempotent and takes
nothing from anyone, so it needs no Lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from tokenservice.core.model import ObjectKey, Pod
from tokenservice.errors import ApiError

_log = logging.getLogger(__name__)

EXPIRY_SECONDS = 30.0
_ROUND_SECONDS = 5.0
_AT_ONCE = 8


class Lifts(Protocol):
    """Places a pod, without a node: lets it serve and lifts its gate."""

    async def place(self, pod: ObjectKey, uid: str, node: str | None) -> tuple[ObjectKey, str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Gatekeeper:
    """Looks at all engine pods every five seconds."""

    pods: Callable[[], Iterable[Pod]]
    lifts: Lifts
    wall_clock: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def run(self) -> None:
        """Rounds, for ever."""
        while True:
            await self.lift(older_than=EXPIRY_SECONDS)
            await self.sleep(_ROUND_SECONDS)

    async def lift(self, *, older_than: float = 0.0) -> None:
        """Lifts every gate of ours that is this old; all of them on the way out."""
        now, slots = self.wall_clock(), asyncio.Semaphore(_AT_ONCE)
        due = [pod for pod in self.pods() if pod.gated and not pod.deleting and now - pod.created_at >= older_than]
        await asyncio.gather(*(self._lift(pod, slots) for pod in due))

    async def _lift(self, pod: Pod, slots: asyncio.Semaphore) -> None:
        try:
            async with slots:
                await self.lifts.place(ObjectKey("Pod", pod.namespace, pod.name), pod.uid, None)
            _log.info("lifted the gate of %s/%s", pod.namespace, pod.name)
        except ApiError as error:
            _log.warning("the gate of %s/%s stays: %s", pod.namespace, pod.name, error)
