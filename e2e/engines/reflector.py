"""Keeping up with an API server, and telling it what the engines do; knows no client library."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from e2e.engines.contract import DRAINED_ANNOTATION, READY_ANNOTATION, EnginePod, Json

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
_HOPELESS = (404, 409, 422)


class ApiError(Exception):
    """The API server said no (`status` is its HTTP status), or could not be reached (0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class GoneError(ApiError):
    """The API server no longer has the history that was asked for (410): list again."""


class Source(Protocol):
    """Lists and watches."""

    async def list(self, path: str, **query: str) -> tuple[list[Json], str]:
        """All items, and the resourceVersion to watch from. Raises ApiError."""

    def watch(self, path: str, resource_version: str, **query: str) -> AsyncIterator[tuple[str, Json]]:
        """(type, object) until the server ends the watch. Raises ApiError."""


class Patcher(Protocol):
    """Writes."""

    async def merge_patch(self, path: str, patch: Json) -> Json:
        """Apply a JSON merge patch. Raises ApiError."""


class Sink(Protocol):
    """Who is told about objects of one kind. Calls must be safe to repeat."""

    def seen(self, item: Json) -> None:
        """Added or changed."""

    def gone(self, item: Json) -> None:
        """Deleted."""

    def listed(self, items: list[Json]) -> None:
        """A fresh list: whatever is not on it is gone."""


async def follow(source: Source, path: str, sink: Sink, **query: str) -> None:
    """Keep `sink` up to date with a resource, for ever: list, watch, and list again whenever history is lost."""
    said = ""
    while True:
        try:
            items, version = await source.list(path, **query)
            sink.listed(items)
            said = ""
            while True:
                version = await _watch_once(source, path, sink, version, query)
        except GoneError:
            log.info("%s: history is gone, listing again", path)
        except ApiError as error:
            if str(error) != said:  # a resource that is not installed yet is worth one line, not one a second
                said = str(error)
                log.info("%s: %s; trying again", path, said.strip())
            await asyncio.sleep(RETRY_SECONDS)


async def _watch_once(source: Source, path: str, sink: Sink, version: str, query: dict[str, str]) -> str:
    async for kind, item in source.watch(path, version, **query):
        version = item["metadata"]["resourceVersion"]
        if kind == "DELETED":
            sink.gone(item)
        elif kind != "BOOKMARK":
            sink.seen(item)
    return version


@dataclass(slots=True)
class PodReports:
    """Writes what engines report onto their pods, in order per pod, until the API server took it or the pod is gone."""

    api: Patcher
    _last: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def ready(self, pod: EnginePod, ready: bool) -> None:
        self._enqueue(pod, READY_ANNOTATION, str(ready).lower())

    def drained(self, pod: EnginePod) -> None:
        self._enqueue(pod, DRAINED_ANNOTATION, "true")

    def _enqueue(self, pod: EnginePod, annotation: str, value: str) -> None:
        path = f"/api/v1/namespaces/{pod.key.namespace}/pods/{pod.key.name}"
        # The uid is a precondition: a new pod of the same name must not inherit the old one's state.
        patch = {"metadata": {"uid": pod.uid, "annotations": {annotation: value}}}
        before = self._last.get(pod.uid)
        task = asyncio.get_running_loop().create_task(self._patch(path, patch, before))
        self._last[pod.uid] = task
        task.add_done_callback(lambda done: self._forget(pod.uid, done))

    def _forget(self, uid: str, task: asyncio.Task[None]) -> None:
        if self._last.get(uid) is task:
            del self._last[uid]

    async def _patch(self, path: str, patch: Json, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        await until_done(lambda: self.api.merge_patch(path, patch))


async def until_done(write: Callable[[], Awaitable[Any]]) -> None:
    """Repeat a write until it worked or can never work (the object is gone or another one)."""
    while True:
        try:
            await write()
            return
        except ApiError as error:
            if error.status in _HOPELESS:
                return
            log.warning("write failed, trying again: %s", error)
        await asyncio.sleep(RETRY_SECONDS)
