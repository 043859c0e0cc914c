"""What the peers share: one rule a service, memory of a signal, and choices of settings to try.

Nearly every peer looks at one service at a time. Such a peer is a `Rule`: asked with what it may read and the
perfect forecast of its own service, it answers a count, or None to hold. `EachService` keeps one rule a service, so
no peer needs to keep a dictionary, and puts the answer within the service's own bounds, as every peer does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from math import ceil, isfinite
from typing import Any, Protocol

from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.capacity import capacity
from tokenservice.core.model import Missing, ServiceKey
from tokenservice.simulate.policy import FleetView, Policy, ServiceView

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Moment:
    """Now, in seconds, and the true mean rate of this service between two times, requests per second."""

    now: float
    expected: Callable[[float, float], float]


class Rule(Protocol):
    """A peer's way with one service; it remembers in itself what the peer remembers."""

    def wanted(self, seen: ServiceView, at: Moment) -> int | None:
        """Replicas, before the service's bounds; None holds the count."""


@dataclass(slots=True)
class EachService:
    """A policy that treats every service by a rule of its own."""

    name: str
    period_seconds: float
    rule: Callable[[], Rule]
    _rules: dict[ServiceKey, Rule] = field(default_factory=dict)

    def replicas(self, view: FleetView) -> Mapping[ServiceKey, int]:
        """Counts within each service's bounds; services whose rule holds are left out."""
        asked = {key: self._wanted(seen, view) for key, seen in view.services.items()}
        return {key: bounded(count, view.services[key]) for key, count in asked.items() if count is not None}

    def _wanted(self, seen: ServiceView, view: FleetView) -> int | None:
        rule = self._rules.get(seen.key)
        if rule is None:
            rule = self._rules[seen.key] = self.rule()
        return rule.wanted(seen, Moment(view.now, partial(view.expected, seen.key)))


class _Contracted(Protocol):
    """Has a contract: a service as a policy sees it, or as a scenario offers it."""

    @property
    def spec(self) -> TokenServiceSpec: ...


def bounded(count: int, seen: _Contracted) -> int:
    """The count within minReplicas and maxReplicas."""
    scaling = seen.spec.scaling
    return min(max(count, scaling.min_replicas), scaling.max_replicas)


def whole(replicas: float) -> int:
    """The next whole replica, forgiving what floating point adds to a whole one."""
    return ceil(replicas - _ROUNDING)


@dataclass(slots=True)
class Window:
    """Samples of the last `seconds`: those taken later than `now - seconds`."""

    seconds: float
    _samples: deque[tuple[float, float]] = field(default_factory=deque)

    def add(self, now: float, value: float) -> None:
        """Remembers a sample and forgets what is too old."""
        self._samples.append((now, value))
        while self._samples and self._samples[0][0] <= now - self.seconds:
            self._samples.popleft()

    def since(self, start: float) -> list[float]:
        """What was added later than `start`, oldest first."""
        return [value for at, value in self._samples if at > start]

    def mean(self) -> float:
        """Mean of what is remembered. Raises ZeroDivisionError when that is nothing."""
        return sum(value for _, value in self._samples) / len(self._samples)


def batch_at_capacity(seen: ServiceView) -> float:
    """Sequences that one replica runs at the highest rate that its objectives allow, at least 1.

    What a load test of one engine with the service's usual requests tells an operator, once; peers that scale on
    requests are tuned with it. From the closed form, which is not asked for the batch at a simulated lambda*: near its
    pole a percent of rate is a multiple of the batch.
    """
    batch = capacity(seen.variant, seen.usual, seen.targets).batch
    return batch if isfinite(batch) and batch > 1 else 1.0


def kv_at_capacity(seen: ServiceView) -> float:
    """KV use (0 to 1) of one replica at that rate, from the same load test."""
    context = seen.usual.input_tokens + seen.usual.output_tokens / 2
    return min(1.0, batch_at_capacity(seen) * context / seen.variant.kv_capacity_tokens)


def mean_kv_usage(seen: ServiceView) -> float:
    """KV use (0 to 1), mean over the engines that were scraped: `metrics.kv_usage` is that of the fullest."""
    return sum(engine.kv_usage for engine in seen.engines) / max(1, len(seen.engines))


def held_at_router(seen: ServiceView) -> float:
    """Unfinished requests that no engine has yet: the simulated router hands them on while any replica is ready."""
    return 0.0 if seen.ready or isinstance(seen.concurrency, Missing) else seen.concurrency


# --- What can be chosen --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting of a peer: what differs from its published defaults, and how a new policy is made.

    `foresight` says that it is told the true rate of the future.
    """

    label: str
    make: Callable[[], Policy]
    foresight: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A policy that people use, with the settings that it is given a chance with; the published default first."""

    name: str
    scales_on: str
    description: str
    citation: str
    sweep: tuple[Choice, ...]


def choices(
    make: Callable[[Any], Policy], *settings: Any, foresight: Callable[[Any], bool] = lambda _: False
) -> tuple[Choice, ...]:
    """One choice for each setting, a dataclass each, labelled by the fields that differ from the first one's.

    `foresight` says of a setting whether it looks ahead.
    """
    return tuple(
        Choice(_label(setting, settings[0]), partial(make, setting), foresight(setting)) for setting in settings
    )


def _label(setting: Any, published: Any) -> str:
    changed = (
        f"{it.name}={_word(getattr(setting, it.name))}"
        for it in fields(setting)
        if getattr(setting, it.name) != getattr(published, it.name)
    )
    return ", ".join(changed) or "default"


def _word(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
