"""The fleet's view of a real API server: raw-JSON list and watch, and the two annotations it writes.

Raw JSON because decoding a pod into the client's models costs ten times what the fleet needs from it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.exceptions import ApiException

from e2e.engines.contract import DRAINED_ANNOTATION, READY_ANNOTATION, EnginePod, Json

log = logging.getLogger(__name__)

WATCH_SECONDS = 290
RETRY_SECONDS = 1.0
PAGE_SIZE = 500
_TRANSPORT_ERRORS = (aiohttp.ClientError, TimeoutError, OSError, ApiException, json.JSONDecodeError)


class GoneError(Exception):
    """The API server no longer has the history a watch asked for (410): list again."""


class Sink(Protocol):
    """Who is told about objects of one kind. Calls must be safe to repeat."""

    def seen(self, item: Json) -> None:
        """Added or changed."""

    def gone(self, item: Json) -> None:
        """Deleted."""

    def listed(self, items: list[Json]) -> None:
        """A fresh list: whatever is not on it is gone."""


class Api:
    """Raw JSON in and out of an API server, with the credentials of a Kubernetes client."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def get(self, path: str, **query: str) -> Json:
        """One object or list. ApiException when the server says no."""
        async with await self._send("GET", path, query, None, 60) as response:
            return _checked(response.status, await response.read())

    async def merge_patch(self, path: str, patch: Json) -> Json:
        """Apply a JSON merge patch."""
        async with await self._send("PATCH", path, {}, patch, 30) as response:
            return _checked(response.status, await response.read())

    async def list(self, path: str, **query: str) -> tuple[list[Json], str]:
        """All items, in pages, and the resourceVersion to watch from."""
        items: list[Json] = []
        token = ""
        while True:
            page = await self.get(path, limit=str(PAGE_SIZE), **({"continue": token} if token else {}), **query)
            items += page["items"]
            token = page["metadata"].get("continue", "")
            if not token:
                return items, page["metadata"]["resourceVersion"]

    async def watch(self, path: str, resource_version: str, **query: str) -> AsyncIterator[tuple[str, Json]]:
        """(type, object) until the server ends the watch. GoneError when the version is too old."""
        query |= {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            "resourceVersion": resource_version,
        }
        async with await self._send("GET", path, query, None, WATCH_SECONDS + 30) as response:
            if response.status != 200:
                _checked(response.status, await response.read())
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise GoneError(event["object"].get("message", ""))
                yield event["type"], event["object"]

    async def _send(
        self, method: str, path: str, query: dict[str, str], body: Json | None, timeout_s: float
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        _, url, sent_headers, sent_body, _ = await self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        reply = await self._client.call_api(
            method, url, sent_headers, sent_body, _request_timeout=timeout_s, _preload_content=False
        )
        response: aiohttp.ClientResponse = reply.response
        return response


def _checked(status: int, body: bytes) -> Json:
    if status == 410:
        raise GoneError(body[:200].decode(errors="replace"))
    if status >= 300:
        raise ApiException(status=status, reason=body[:300].decode(errors="replace"))
    parsed: Json = json.loads(body)
    return parsed


async def follow(api: Api, path: str, sink: Sink, **query: str) -> None:
    """Keep `sink` up to date with a resource, for ever: list, watch, and list again whenever history is lost."""
    while True:
        try:
            items, version = await api.list(path, **query)
            sink.listed(items)
            while True:
                version = await _watch_once(api, path, sink, version, query)
        except GoneError:
            log.info("%s: history is gone, listing again", path)
        except _TRANSPORT_ERRORS as error:
            log.info("%s: %s, listing again", path, error)
            await asyncio.sleep(RETRY_SECONDS)


async def _watch_once(api: Api, path: str, sink: Sink, version: str, query: dict[str, str]) -> str:
    async for kind, item in api.watch(path, version, **query):
        version = item["metadata"]["resourceVersion"]
        if kind == "DELETED":
            sink.gone(item)
        elif kind != "BOOKMARK":
            sink.seen(item)
    return version


@dataclass(slots=True)
class PodReports:
    """Writes what engines report onto their pods, in order per pod, until the API server took it or the pod is gone."""

    api: Api
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
        except ApiException as error:
            if error.status in (404, 409, 422):
                return
            log.warning("write failed, trying again: %s", error)
        except (*_TRANSPORT_ERRORS, GoneError) as error:
            log.warning("write failed, trying again: %s", error)
        await asyncio.sleep(RETRY_SECONDS)
