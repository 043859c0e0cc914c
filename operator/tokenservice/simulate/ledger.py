"""What existed and what it was held for: the lower line of utilization, in accelerator-seconds.

Every accelerator of every node counts from the node's start request to its release. What replicas hold is split by
whether they serve, load or drain; what they do not hold is on nodes in use (fragmentation) or on nodes that are
empty or still starting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tokenservice.core.model import Accelerator
from tokenservice.core.utilization import Waterfall


@dataclass(slots=True)
class Held:
    """Accelerator-seconds by what they were held for."""

    ready: float = 0.0
    starting: float = 0.0
    draining: float = 0.0
    free_on_used_nodes: float = 0.0
    on_empty_nodes: float = 0.0

    @property
    def existing(self) -> float:
        """All of them."""
        return self.ready + self.starting + self.draining + self.free_on_used_nodes + self.on_empty_nodes


def split(utilization: float, misses: float, held: Held) -> Waterfall:
    """The waterfall of accelerator time that was held so, of which these shares were worked well and in vain.

    What Ready replicas held beyond the work done is headroom, the trough included. Missed requests may be worth more
    than what was spent on them (a refused one took nothing): they count up to what is left, never below zero.
    """
    existing = held.existing or 1.0
    spare = (held.starting + held.draining + held.free_on_used_nodes + held.on_empty_nodes) / existing
    misses = max(0.0, misses + min(0.0, 1 - utilization - misses - spare))
    return Waterfall(
        utilization=utilization,
        slo_misses=misses,
        headroom=1 - utilization - misses - spare,
        cold_start=held.starting / existing,
        draining=held.draining / existing,
        fragmentation=held.free_on_used_nodes / existing,
        idle_nodes=held.on_empty_nodes / existing,
    )


@dataclass(slots=True)
class Span:
    """A node's time on the bill, in seconds of the scenario; `end` is None while it exists."""

    accelerator: Accelerator
    accelerators: int
    start: float
    end: float | None = None

    def accelerator_hours(self, until: float) -> float:
        """What was billed by `until`."""
        return (min(until, until if self.end is None else self.end) - self.start) * self.accelerators / 3600


@dataclass
class Ledger:
    """Adds up as time passes."""

    held: Held = field(default_factory=Held)
    spans: dict[str, Span] = field(default_factory=dict)
    nodes_started: int = 0
    _closed: list[Span] = field(default_factory=list)

    def node_ordered(self, name: str, accelerator: Accelerator, accelerators: int, at: float) -> None:
        """A node is on the bill from here."""
        self.nodes_started += 1
        self.spans[name] = Span(accelerator, accelerators, at)

    def node_gone(self, name: str, at: float) -> None:
        """It no longer is."""
        span = self.spans.pop(name)
        span.end = at
        self._closed.append(span)

    @property
    def accelerators(self) -> int:
        """On the bill now."""
        return sum(span.accelerators for span in self.spans.values())

    def lasted(self, seconds: float, held: Mapping[str, list[int]]) -> None:
        """For so long the nodes held so many accelerators of (ready, starting, draining) replicas."""
        total = self.held
        for name, span in self.spans.items():
            ready, starting, draining = held.get(name, (0, 0, 0))
            used = ready + starting + draining
            total.ready += seconds * ready
            total.starting += seconds * starting
            total.draining += seconds * draining
            if used:
                total.free_on_used_nodes += seconds * (span.accelerators - used)
            else:
                total.on_empty_nodes += seconds * span.accelerators

    def every_span(self) -> list[Span]:
        """All nodes that ever were."""
        return [*self._closed, *self.spans.values()]

    def dollars(self, until: float) -> float:
        """What they cost, by their classes' price per hour."""
        return sum(span.accelerator_hours(until) * span.accelerator.spec.price_per_hour for span in self.every_span())

    def accelerator_hours(self, until: float) -> float:
        """Accelerator-hours that existed."""
        return sum(span.accelerator_hours(until) for span in self.every_span())
