"""Events that say why, as `kubectl describe` shows them (events.k8s.io/v1).

The same words about the same object within ten minutes are one Event: the repeats are counted and written as its
series, at most every ten minutes again. So a sentence that holds for hours costs six writes an hour.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from tokenservice.core.model import Event, Json, ObjectKey
from tokenservice.core.names import FIELD_MANAGER
from tokenservice.edge.kube import Patch
from tokenservice.edge.resources import RESOURCES
from tokenservice.errors import Conflict, NotFound

SERIES_SECONDS = 600.0
_NOTE_LIMIT = 1024
_REMEMBERED = 4096


class EventApi(Protocol):
    """What events need of the API server."""

    async def create(self, kind: str, body: Json) -> Json: ...

    async def patch(self, key: ObjectKey, body: Json | list[Json], how: Patch, subresource: str = "") -> Json: ...


@dataclass(slots=True)
class _Series:
    key: ObjectKey
    written_at: float
    count: int = 1


_Identity = tuple[ObjectKey, str, str, str]


def _identity(event: Event) -> _Identity:
    """Of a series. An object that is made anew under a name is another: its owner looks for its own events."""
    return event.regarding, event.uid, str(event.reason), event.message


class Events:
    """Writes events, each once."""

    def __init__(self, api: EventApi, instance: str, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._api = api
        self._instance = instance
        self._wall_clock = wall_clock
        self._series: dict[_Identity, _Series] = {}

    async def emit(self, event: Event) -> None:
        """Writes a new event, or counts a repeat."""
        identity = _identity(event)
        series = self._series.get(identity)
        if series is None:
            self._series[identity] = await self._create(event)
            self._forget()
            return
        series.count += 1
        if self._wall_clock() - series.written_at >= SERIES_SECONDS:
            await self._repeat(event, series)

    async def _create(self, event: Event) -> _Series:
        now = self._wall_clock()
        key = ObjectKey("Event", event.regarding.namespace or "default", _name(event, now))
        with suppress(Conflict):  # written in this window already
            await self._api.create("Event", self._body(event, key, now))
        return _Series(key, now)

    async def _repeat(self, event: Event, series: _Series) -> None:
        now = self._wall_clock()
        patch = {"series": {"count": series.count, "lastObservedTime": _micro(now)}}
        try:
            await self._api.patch(series.key, patch, Patch.MERGE)
            series.written_at = now
        except NotFound:  # events live for an hour
            self._series[_identity(event)] = await self._create(event)

    def _body(self, event: Event, key: ObjectKey, now: float) -> Json:
        resource = RESOURCES[event.regarding.kind]
        return {
            "apiVersion": RESOURCES["Event"].api_version,
            "kind": "Event",
            "metadata": {"namespace": key.namespace, "name": key.name},
            "eventTime": _micro(now),
            "type": event.type,
            "reason": str(event.reason),
            "note": _fit(event.message),
            "action": str(event.reason),
            "reportingController": FIELD_MANAGER,
            "reportingInstance": self._instance,
            "regarding": {
                "apiVersion": resource.api_version,
                "kind": event.regarding.kind,
                "namespace": event.regarding.namespace,
                "name": event.regarding.name,
                "uid": event.uid,
            },
        }

    def _forget(self) -> None:
        while len(self._series) > _REMEMBERED:
            del self._series[next(iter(self._series))]


def _name(event: Event, now: float) -> str:
    """The same within a window, so that neither a lost answer nor a restart writes it twice."""
    window = int(now // SERIES_SECONDS)
    digest = hashlib.sha256(f"{event.uid}/{event.reason}/{event.message}/{window}".encode()).hexdigest()[:16]
    return f"{event.regarding.name}.{digest}"


def _fit(message: str) -> str:
    """At most 1,024 bytes."""
    encoded = message.encode()
    return message if len(encoded) <= _NOTE_LIMIT else encoded[: _NOTE_LIMIT - 3].decode(errors="ignore") + "..."


def _micro(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
