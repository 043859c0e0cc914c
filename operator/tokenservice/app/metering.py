"""Keeps the last round of metrics at hand, so that a slow Prometheus never holds up a placement."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.model import Missing, Service, ServiceKey
from tokenservice.core.windows import Windows
from tokenservice.edge.prometheus import Answer, Question, Row, nothing

_log = logging.getLogger(__name__)

Facts = tuple[tuple[Service, ...], TokenFleetSpec]
"""Whose metrics are asked for, and by which policy."""

LISTING_SECONDS = 0.1
"""Between looks whether all was listed: what is asked before would be by another policy, of half of the services."""


class MetricsReader(Protocol):
    """Asks Prometheus."""

    async def read(self, question: Question) -> Answer: ...


class Metering:
    """Asks once an interval; `on_round` is told after each."""

    def __init__(
        self,
        reader: MetricsReader,
        *,
        default_address: str | None,
        interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._default_address = default_address
        self._interval = interval_seconds
        self._clock = clock
        self._last: tuple[float, Answer] | None = None

    @property
    def answered(self) -> bool:
        """Whether there was a round, whatever came of it."""
        return self._last is not None

    async def run(self, facts: Callable[[], Facts | None], on_round: Callable[[], None]) -> None:
        """Rounds at a steady pace, for ever; none before there are facts to ask by."""
        while True:
            began = self._clock()
            if (known := facts()) is not None:
                await self.round(*known)
                on_round()
            pause = LISTING_SECONDS if known is None else began + self._interval - self._clock()
            await asyncio.sleep(max(0.0, pause))

    async def round(self, services: Iterable[Service], fleet: TokenFleetSpec) -> None:
        """One round. What was read counts from when it was asked for; where reading fails, all is missing."""
        began, question = self._clock(), self._question(services, fleet)
        try:
            answer = await self._reader.read(question)
        except Exception as error:  # it was to be Missing: without this, one odd answer would end the process each time
            _log.exception("reading metrics failed")
            answer = nothing(question, Missing("NotRead", f"reading failed: {type(error).__name__}: {error}"))
        self._last = (began, answer)

    def answer(self, services: Iterable[Service], fleet: TokenFleetSpec) -> Answer:
        """The last round, or Missing for everyone once it is too old to decide on."""
        missing = Missing("NotRead", "metrics were not read yet")
        if self._last is not None:
            at, answer = self._last
            age, limit = self._clock() - at, fleet.prometheus.staleness_seconds
            if age <= limit:
                return answer
            missing = Missing("Stale", f"metrics were last read {age:.0f} s ago, {limit} s are allowed")
        return nothing(self._question(services, fleet), missing)

    def _question(self, services: Iterable[Service], fleet: TokenFleetSpec) -> Question:
        known = tuple(services)
        return Question(
            address=fleet.prometheus.address or self._default_address,
            services=served_names(known),
            windows=Windows.of(fleet),
            utilization_query=fleet.prometheus.utilization_query,
            adapters=any(it.spec is not None and it.spec.model.runtime_adapters is not None for it in known),
        )


def served_names(services: Iterable[Service]) -> dict[Row, ServiceKey]:
    """Which service the series of a model belong to; of two that claim one name, the older."""
    youngest_first = sorted(services, key=lambda service: (-service.created_at, service.key))
    return {
        (service.key.namespace, service.spec.model.served_name or service.key.name): service.key
        for service in youngest_first
        if service.spec is not None
    }
