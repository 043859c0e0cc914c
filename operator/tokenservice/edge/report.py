"""Says what was decided: status, events, metrics.

A status is applied server-side under a manager of its own, on exactly the revision that was last seen: the API server
does not check uids when a status is applied, and a resource that was deleted and made anew must not inherit one. What
cannot be written is tried again by the next plan. Nor does a pass wait long for what it says: when a thousand services
start, pods wait for their place meanwhile. Statuses that are left come with the next plan, newer then; events are kept.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from tokenservice.core.model import Event, Json, ObjectKey, Plan, StatusWrite
from tokenservice.core.names import FIELD_MANAGER, STATUS_MANAGER
from tokenservice.edge.resources import RESOURCES
from tokenservice.edge.store import Version
from tokenservice.errors import ApiError, Conflict, NotFound, Retryable

_log = logging.getLogger(__name__)

PARALLEL_WRITES = 8
PARALLEL_EVENTS = 2
PATIENCE_SECONDS = 2.0
LATE_SECONDS = 10.0
"""For so long a pass waits for the answer to one write: where one namespace's answers late, no other waits for it."""

_KEPT_EVENTS = 4096


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


class Versions(Protocol):
    """Which object was last seen under a name."""

    def version(self, key: ObjectKey) -> Version | None: ...


class Reporter:
    """Writes statuses and events."""

    def __init__(
        self,
        api: StatusApi,
        events: EventSink,
        fence: Fence,
        versions: Versions,
        *,
        again: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`again` is told when something was left."""
        self._api = api
        self._events = events
        self._fence = fence
        self._versions = versions
        self._again = again
        self._clock = clock
        self._wall_clock = wall_clock
        self._slots = asyncio.Semaphore(PARALLEL_WRITES)
        self._event_slots = asyncio.Semaphore(PARALLEL_EVENTS)
        self._written_at: dict[ObjectKey, float] = {}
        self._tried_at: dict[ObjectKey, float] = {}
        self._late: dict[ObjectKey, asyncio.Task[Json]] = {}
        self._untold: deque[Event] = deque(maxlen=_KEPT_EVENTS)
        self._left = False

    def status_written_at(self) -> Mapping[ObjectKey, float]:
        """When this process last wrote each status, of objects that still exist; seconds since the epoch."""
        self._written_at = {key: at for key, at in self._written_at.items() if self._versions.version(key) is not None}
        return dict(self._written_at)

    async def report(self, plan: Plan) -> tuple[tuple[ObjectKey, str], ...]:
        """Writes statuses, those tried longest ago first, and events; returns the revisions that it wrote."""
        until = self._clock() + PATIENCE_SECONDS
        events = [*self._untold, *plan.events]
        self._untold.clear()
        self._left = False
        known = {write.key for write in plan.statuses}
        self._tried_at = {key: at for key, at in self._tried_at.items() if key in known}
        statuses = sorted(plan.statuses, key=lambda write: self._tried_at.get(write.key, -math.inf))
        written, _ = await asyncio.gather(
            asyncio.gather(*(self._status(status, until) for status in statuses)),
            asyncio.gather(*(self._event(event, until) for event in events)),
        )
        if self._left:
            self._again()
        return tuple(pair for pair in written if pair is not None)

    def _too_late(self, until: float) -> bool:
        late = self._clock() > until
        self._left |= late
        return late

    async def _status(self, write: StatusWrite, until: float) -> tuple[ObjectKey, str] | None:
        async with self._slots:
            if self._too_late(until):
                return None
            seen = self._versions.version(write.key)
            if seen is None or seen.uid != write.uid or write.key in self._late or not self._fence.held():
                return None
            self._tried_at[write.key] = self._clock()
            try:
                live = await self._answer(write.key, _manifest(write, seen))
            except (Conflict, NotFound):
                return None  # changed or deleted meanwhile: the next plan sees it
            except ApiError as error:
                _log.warning("status of %s %s/%s: %s", *write.key, error)
                return None
            except Exception:  # a fault of ours that one object shows: the others are told
                _log.exception("status of %s %s/%s", *write.key)
                return None
        self._written_at[write.key] = self._wall_clock()
        return write.key, str(live["metadata"]["resourceVersion"])

    async def _answer(self, key: ObjectKey, manifest: Json) -> Json:
        """Raises Retryable when there is none in time; the status is not written again until there is."""
        applying = self._api.apply(manifest, manager=STATUS_MANAGER, subresource="status")
        task = asyncio.ensure_future(applying)
        try:
            return await asyncio.wait_for(asyncio.shield(task), LATE_SECONDS)
        except TimeoutError:
            self._late[key] = task
            task.add_done_callback(lambda done: (self._late.pop(key, None), done.cancelled() or done.exception()))
            raise Retryable(f"the API server did not answer within {LATE_SECONDS:.0f} s") from None
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def _event(self, event: Event, until: float) -> None:
        async with self._event_slots:
            if self._too_late(until):
                self._untold.append(event)
                return
            if not self._fence.held():
                return
            try:
                async with asyncio.timeout(LATE_SECONDS):
                    await self._events.emit(event)
            except NotFound:
                return  # its namespace is going, and nobody is left to be told
            except (ApiError, TimeoutError) as error:
                _log.warning("event %s of %s %s/%s: %s", event.reason, *event.regarding, error)
            except Exception:  # likewise
                _log.exception("event %s of %s %s/%s", event.reason, *event.regarding)


def _manifest(write: StatusWrite, seen: Version) -> Json:
    metadata = {"name": write.key.name, "resourceVersion": seen.revision}
    if write.key.namespace:
        metadata["namespace"] = write.key.namespace
    return {
        "apiVersion": RESOURCES[write.key.kind].api_version,
        "kind": write.key.kind,
        "metadata": metadata,
        "status": write.status,
    }
