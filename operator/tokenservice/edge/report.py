"""Says what was decided: status, events, metrics.

A status is applied server-side under a manager of its own and with the uid that it was made for, so that a resource
deleted and made anew does not inherit it. What cannot be written is tried again by the next plan.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from tokenservice.core.model import Event, Json, ObjectKey, Plan, StatusWrite
from tokenservice.core.names import FIELD_MANAGER, STATUS_MANAGER
from tokenservice.edge.resources import RESOURCES
from tokenservice.errors import ApiError, Conflict, NotFound

_log = logging.getLogger(__name__)

PARALLEL_WRITES = 8


class StatusApi(Protocol):
    """What reporting needs of the API server."""

    async def apply(
        self, manifest: Json, *, manager: str = FIELD_MANAGER, force: bool = True, subresource: str = ""
    ) -> Json: ...


class EventSink(Protocol):
    """Where events go."""

    async def emit(self, event: Event) -> None: ...


class Fence(Protocol):
    """Whether this process may write."""

    def held(self) -> bool: ...


class Reporter:
    """Writes statuses and events."""

    def __init__(
        self, api: StatusApi, events: EventSink, fence: Fence, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._api = api
        self._events = events
        self._fence = fence
        self._wall_clock = wall_clock
        self._slots = asyncio.Semaphore(PARALLEL_WRITES)
        self._written_at: dict[ObjectKey, float] = {}

    @property
    def status_written_at(self) -> Mapping[ObjectKey, float]:
        """When this process last wrote each status; seconds since the epoch."""
        return dict(self._written_at)

    async def report(self, plan: Plan) -> tuple[tuple[ObjectKey, str], ...]:
        """Writes the plan's statuses, then its events; returns the revisions that it wrote."""
        written = await asyncio.gather(*(self._status(status) for status in plan.statuses))
        await asyncio.gather(*(self._event(event) for event in plan.events))
        return tuple(pair for pair in written if pair is not None)

    def forget(self, keys: Iterable[ObjectKey]) -> None:
        """Drops what is remembered of objects other than `keys`."""
        kept = set(keys)
        self._written_at = {key: at for key, at in self._written_at.items() if key in kept}

    async def _status(self, write: StatusWrite) -> tuple[ObjectKey, str] | None:
        async with self._slots:
            if not self._fence.held():
                return None
            try:
                live = await self._api.apply(_manifest(write), manager=STATUS_MANAGER, subresource="status")
            except (Conflict, NotFound):
                return None  # deleted, or deleted and made anew: the next plan sees it
            except ApiError as error:
                _log.warning("status of %s %s/%s: %s", *write.key, error)
                return None
        self._written_at[write.key] = self._wall_clock()
        return write.key, str(live["metadata"]["resourceVersion"])

    async def _event(self, event: Event) -> None:
        async with self._slots:
            if not self._fence.held():
                return
            try:
                await self._events.emit(event)
            except ApiError as error:
                _log.warning("event %s of %s %s/%s: %s", event.reason, *event.regarding, error)


def _manifest(write: StatusWrite) -> Json:
    metadata = {"name": write.key.name, "uid": write.uid}
    if write.key.namespace:
        metadata["namespace"] = write.key.namespace
    return {
        "apiVersion": RESOURCES[write.key.kind].api_version,
        "kind": write.key.kind,
        "metadata": metadata,
        "status": write.status,
    }
