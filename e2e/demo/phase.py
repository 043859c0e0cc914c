"""One phase: the same traffic sent through, every second sampled, every request on the books."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.live import Live

from e2e.demo.account import NodeSpan, Outcome
from e2e.demo.scenario import Example
from e2e.demo.table import table
from e2e.demo.watching import Moment, Store, clock, moment
from e2e.load.account import Result
from e2e.load.client import LoadGenerator
from e2e.load.endpoints import Endpoints
from e2e.load.trace import Arrival
from e2e.testbed.nodes import Span
from tokenservice.catalogue import accelerator_classes

LINE_SECONDS = 10


@dataclass
class Phase:
    """What a phase left behind. `started` and `measured_from` are seconds since the epoch."""

    name: str
    started: float
    measured_from: float
    ended: float = 0.0
    results: list[Result] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    worst_lag_seconds: float = 0.0

    @property
    def outcomes(self) -> list[Outcome]:
        """Requests that arrived in the measured part."""
        return [
            Outcome(
                service=result.service,
                arrived_at=result.arrived_epoch_s,
                input_tokens=result.input_tokens,
                output_tokens=result.output_tokens,
                met=result.met,
                delivered_tokens=result.delivered_tokens,
            )
            for result in self.results
            if self.measured_from <= result.arrived_epoch_s < self.ended
        ]

    @property
    def measured_moments(self) -> list[Moment]:
        return [moment for moment in self.moments if self.measured_from <= moment.held.at < self.ended]

    def node_spans(self) -> list[NodeSpan]:
        """Every node's time on the bill within the measured part."""
        classes = accelerator_classes()
        found = []
        for span in self.spans:
            start = max(span.requested_at, self.measured_from)
            end = min(span.released_at or self.ended, self.ended)
            spec = classes[span.template.accelerator]
            if end > start:
                found.append(
                    NodeSpan(
                        accelerators=span.template.count,
                        price_per_hour=spec.price_per_hour,
                        idle_watts=spec.idle_watts,
                        busy_watts=spec.busy_watts,
                        start=start,
                        end=end,
                    )
                )
        return found


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What all phases share."""

    console: Console
    farm_url: str
    services: Mapping[str, Example]
    endpoints: Endpoints
    pods: Store
    token_services: Store
    spans: Sequence[Span]
    warm_up_seconds: float
    measured_seconds: float


async def run(stage: Stage, name: str, arrivals: Sequence[Arrival]) -> Phase:
    """Sends the traffic and watches; returns when the last request is over."""
    now = clock()
    phase = Phase(name=name, started=now, measured_from=now + stage.warm_up_seconds)
    phase.ended = phase.measured_from + stage.measured_seconds
    targets = {key: example.target for key, example in stage.services.items()}
    generator = LoadGenerator(stage.farm_url, targets, stage.endpoints, on_result=phase.results.append)
    watcher = asyncio.create_task(_watch(stage, phase, generator))
    try:
        await generator.run(arrivals)
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
    phase.spans = [replace(span) for span in stage.spans]  # they live on
    phase.worst_lag_seconds = generator.worst_lag_s
    return phase


async def _watch(stage: Stage, phase: Phase, generator: LoadGenerator) -> None:
    """A table that lives on a terminal; elsewhere a line now and then."""
    with Live(console=stage.console, refresh_per_second=1, auto_refresh=stage.console.is_terminal) as live:
        while True:
            now = clock()
            phase.moments.append(moment(stage.pods.items.values(), stage.spans, now))
            statuses = {name: item.get("status", {}) for (_, name), item in stage.token_services.items.items()}
            seconds = asyncio.get_running_loop().time()
            live.update(table(_title(phase, now), generator.accounts, statuses, phase.moments[-1], seconds))
            if not stage.console.is_terminal and len(phase.moments) % LINE_SECONDS == 1:
                stage.console.print(_title(phase, now))
            await asyncio.sleep(1)


def _title(phase: Phase, now: float) -> str:
    part = "warm-up, not counted" if now < phase.measured_from else "measured"
    return f"{phase.name}: {now - phase.started:.0f} of {phase.ended - phase.started:.0f} s, {part}"
