"""Pods, profiles and a clock to order."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from e2e.engines.contract import Deletion, Dialect, EngineCommand, EnginePod, PodKey, Profile
from e2e.engines.metrics import Timing
from tokenservice.core.step import StepModel

DATA = Path(__file__).parents[3] / "shared" / "data"

FAST = Profile(StepModel(4.0, 0.05, 0.02, 0.01), kv_capacity_tokens=100_000, cold_start_seconds=60.0)
NEVER_UP = replace(FAST, cold_start_seconds=1e9)


def pod(
    name: str = "chat-0",
    *,
    dialect: Dialect = Dialect.VLLM,
    shutdown_timeout: float = 0.0,
    **changes: Any,
) -> EnginePod:
    """A Running engine pod."""
    standard = EnginePod(
        key=PodKey("team", name),
        uid=f"uid-{name}",
        service="chat",
        variant="h100",
        dialect=dialect,
        profile="fast",
        command=EngineCommand(model_name="chat", shutdown_timeout_seconds=shutdown_timeout),
        node="node-0",
        running=True,
    )
    return replace(standard, **changes)


def deleted(engine_pod: EnginePod, grace_seconds: float) -> EnginePod:
    """The same pod, told to go."""
    return replace(engine_pod, deletion=Deletion(grace_seconds, float("inf")))


async def until(what: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Wait for something that a busy machine may take its time for."""
    async with asyncio.timeout(seconds):
        while not what():  # noqa: ASYNC110 - what is waited for has no event to offer
            await asyncio.sleep(0.005)


class _Alarm:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualTimers:
    """A clock that moves when told to, and rings what falls due on the way."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._order = count()
        self._alarms: list[tuple[float, int, _Alarm]] = []

    def time(self) -> float:
        return self.now_s

    def call_at(self, when: float, callback: Callable[..., Any], /, *args: Any) -> _Alarm:
        alarm = _Alarm(lambda: callback(*args))
        heapq.heappush(self._alarms, (when, next(self._order), alarm))
        return alarm

    def sleep(self, seconds: float) -> None:
        until = self.now_s + seconds
        while self._alarms and self._alarms[0][0] <= until:
            when, _, alarm = heapq.heappop(self._alarms)
            self.now_s = max(self.now_s, when)
            if alarm.callback is not None:
                alarm.callback()
        self.now_s = until


@dataclass
class Notes:
    """`Reports` that remember."""

    heard: list[tuple[str, str]] = field(default_factory=list)

    def ready(self, pod: EnginePod, ready: bool) -> None:
        self.heard.append((pod.key.name, "ready" if ready else "not ready"))

    def drained(self, pod: EnginePod) -> None:
        self.heard.append((pod.key.name, "drained"))


@dataclass
class Listener:
    """A `Stream` that remembers."""

    groups: list[int] = field(default_factory=list)
    timing: Timing | None = None
    was_cut: bool = False

    def tokens(self, fresh: int) -> None:
        self.groups.append(fresh)

    def finished(self, fresh: int, timing: Timing) -> None:
        self.groups.append(fresh)
        self.timing = timing

    def cut(self) -> None:
        self.was_cut = True
