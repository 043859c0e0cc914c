"""The API server: a thin client that speaks raw JSON.

`kubernetes.aio` brings the connection: kubeconfig, ServiceAccount token with renewal, TLS, proxy. Its model objects are
left aside, they cost more than the request. Every error is mapped to `tokenservice.errors`; only 429 is retried here,
because it is the one answer that says nothing was done.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import yaml
from aiohttp.http_exceptions import HttpProcessingError
from kubernetes.aio import client as kubernetes_client
from kubernetes.aio import config as kubernetes_config

from tokenservice.core.model import Json, ObjectKey
from tokenservice.core.names import FIELD_MANAGER
from tokenservice.edge.resources import RESOURCES, path_of
from tokenservice.errors import ApiError, ConfigurationError, Conflict, Forbidden, Gone, Invalid, NotFound, Retryable

_log = logging.getLogger(__name__)

USER_AGENT = "tokenservice-operator"

PAGE_SIZE = 100
"""Objects of one answer. They are parsed whole, and what is kept of them lies scattered among what is not, so that the
memory that a page takes once is not given back."""

_THROTTLE_ATTEMPTS = 4
_THROTTLE_LIMIT_SECONDS = 10.0

WATCH_SECONDS = 300
"""The server ends a watch after this time, and up to as long again, each after its own, so that those that began
together do not all begin anew together; it goes on from where it was."""

UNTOLD_WATCH_SECONDS = 60
"""The same for a kind without bookmarks: it ends before its silence is taken for death."""

SILENCE_SECONDS = 70.0
"""Bookmarks come every minute; a watch that is silent for longer is dead, whatever TCP believes."""

_GOODBYE_SECONDS = 0.1

_LONGEST_LINE = 32 << 20
"""Bytes of an event. An object may have 1.5 MiB where it is stored, and six times as much in JSON that escapes it."""

RECURSION_LIMIT = 12_000
"""The API server takes JSON that is nested 10,000 levels deep, and `metadata.managedFields` may be, whoever creates the
object. Python reads to a depth of 1,000 of its own accord. This deep the parser takes less than 2 MiB of stack, the
least that a thread has where nobody says otherwise."""

_TIMEOUT = aiohttp.ClientTimeout(total=30, connect=10)
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=2 * WATCH_SECONDS + 60, connect=10, sock_read=SILENCE_SECONDS)

Observer = Callable[[str, int], None]
"""Told of every answer: method and status (0: none)."""


class Patch(StrEnum):
    """How a PATCH body is meant."""

    APPLY = "application/apply-patch+yaml"
    MERGE = "application/merge-patch+json"
    STRATEGIC = "application/strategic-merge-patch+json"
    JSON = "application/json-patch+json"


@dataclass(frozen=True, slots=True)
class Page:
    """One chunk of a list, and the revision that the whole list stands for."""

    items: tuple[Json, ...]
    revision: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Json


_BROKEN = (
    *(kubernetes_config.ConfigException, yaml.YAMLError),
    *(OSError, ValueError, LookupError, TypeError, AttributeError),
)
"""What a file shows that is no kubeconfig: its loader takes the form for granted."""


async def connect(kubeconfig: str | None = None, context: str | None = None) -> kubernetes_client.ApiClient:
    """A connection from a kubeconfig, or without one as the pod's own ServiceAccount.

    Raises the process's recursion limit: kopf reads the same objects, in a thread of its own.
    """
    sys.setrecursionlimit(max(sys.getrecursionlimit(), RECURSION_LIMIT))
    configuration = kubernetes_client.Configuration()
    try:
        if kubeconfig:
            _check_that_any_exists(kubeconfig)
            await kubernetes_config.load_kube_config(kubeconfig, context, configuration)  # type: ignore[no-untyped-call]
        else:
            kubernetes_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        # Each watch of a kind in a namespace holds a connection, and the Lease must never wait for one: writes are
        # bounded by who makes them.
        configuration.connection_pool_maxsize = 0
        client = kubernetes_client.ApiClient(configuration)
    except _BROKEN as error:
        where = f"kubeconfig {kubeconfig}" if kubeconfig else "the pod's ServiceAccount (or give --kubeconfig)"
        raise ConfigurationError(f"no way to the API server through {where}: {_what_is_wrong(error)}") from error
    client.user_agent = USER_AGENT
    return client


def _check_that_any_exists(kubeconfig: str) -> None:
    """The loader takes missing files for empty ones, as `kubectl` does with some of several."""
    if not any(Path(file).expanduser().exists() for file in kubeconfig.split(os.pathsep)):
        raise FileNotFoundError("there is no such file")


def _what_is_wrong(error: Exception) -> str:
    formless = isinstance(error, LookupError | TypeError | AttributeError)
    return f"it does not have the form of one ({error})" if formless else str(error) or type(error).__name__


class Kube:
    """Reads and writes of raw objects."""

    def __init__(
        self,
        client: Any,
        *,
        observer: Observer = lambda method, status: None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._observe = observer
        self._sleep = sleep
        self._jitter = jitter

    @property
    def server(self) -> str:
        """Address of the API server."""
        return str(self._client.configuration.host)

    async def close(self) -> None:
        """Closes all connections; TLS takes a moment to say goodbye after aiohttp considers it done."""
        await self._client.close()
        await asyncio.sleep(_GOODBYE_SECONDS)

    async def get(self, key: ObjectKey) -> Json:
        """One object."""
        return await self._json("GET", path_of(key))

    async def find(self, key: ObjectKey) -> Json | None:
        """One object by the right to list its kind; None when it is not there."""
        query = {"fieldSelector": f"metadata.name={key.name}"}
        body = await self._json("GET", RESOURCES[key.kind].path(key.namespace), query)
        return next(iter(_typed(key.kind, body.get("items") or ())), None)

    async def list_pages(self, kind: str, namespace: str = "", *, selector: str = "") -> AsyncIterator[Page]:
        """All objects of a kind, chunk by chunk. Raises Gone when it took longer than the server remembers."""
        token = ""
        while True:
            fields = RESOURCES[kind].fields
            query = {"limit": str(PAGE_SIZE), "labelSelector": selector, "fieldSelector": fields, "continue": token}
            body = await self._json("GET", RESOURCES[kind].path(namespace), query)
            metadata = body["metadata"]
            yield Page(_typed(kind, body.get("items") or ()), str(metadata.get("resourceVersion", "")))
            token = metadata.get("continue") or ""
            if not token:
                return

    @asynccontextmanager
    async def watch(
        self, kind: str, namespace: str = "", *, revision: str, selector: str = ""
    ) -> AsyncIterator[AsyncIterator[WatchEvent]]:
        """Changes after `revision`, until the server ends it; open once entered. Raises Gone for an old revision."""
        resource = RESOURCES[kind]
        seconds = int(WATCH_SECONDS * (1 + self._jitter())) if resource.bookmarked else UNTOLD_WATCH_SECONDS
        query = {
            "watch": "1",
            "resourceVersion": revision,
            "allowWatchBookmarks": "true",
            "labelSelector": selector,
            "fieldSelector": resource.fields,
            "timeoutSeconds": str(seconds),
        }
        response = await self._send("GET", resource.path(namespace), query, limits=_WATCH_TIMEOUT)
        try:
            yield _events(kind, response)
        finally:
            response.close()

    async def create(self, kind: str, body: Json) -> Json:
        """Creates `body`. Raises Conflict when it exists."""
        path = RESOURCES[kind].path(body["metadata"].get("namespace", ""))
        return await self._json("POST", path, {"fieldManager": FIELD_MANAGER}, body)

    async def apply(
        self, manifest: Json, *, manager: str = FIELD_MANAGER, force: bool = True, subresource: str = ""
    ) -> Json:
        """Server-side apply. `metadata.resourceVersion` and `metadata.uid`, when given, are preconditions."""
        query = {"fieldManager": manager, "force": str(force).lower()}
        return await self._json("PATCH", path_of(key_of(manifest), subresource), query, manifest, Patch.APPLY)

    async def patch(self, key: ObjectKey, body: Json | list[Json], how: Patch, subresource: str = "") -> Json:
        """A patch; preconditions go into `body`."""
        return await self._json("PATCH", path_of(key, subresource), {"fieldManager": FIELD_MANAGER}, body, how)

    async def delete(self, key: ObjectKey, *, uid: str, resource_version: str) -> Json:
        """Deletes exactly the object that was seen; its dependents go in the background."""
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": uid, "resourceVersion": resource_version},
        }
        return await self._json("DELETE", path_of(key), {}, body)

    async def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
    ) -> Json:
        response = await self._send(method, path, query or {}, body, content_type)
        try:
            parsed: Json = json.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
            raise Retryable(f"{method} {path}: the answer broke off: {error or type(error).__name__}") from error
        return parsed

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: object = None,
        content_type: str = "application/json",
        *,
        limits: aiohttp.ClientTimeout = _TIMEOUT,
    ) -> Any:
        """A successful answer with its body unread; waits as often and as long as a busy server asks for."""
        for attempt in range(1, _THROTTLE_ATTEMPTS + 1):
            try:
                return await self._try(method, path, query, body, content_type, limits)
            except Retryable as error:
                if error.status != 429 or attempt == _THROTTLE_ATTEMPTS:
                    raise
                pause = min(error.after, _THROTTLE_LIMIT_SECONDS)
                _log.info("%s %s: %s (again in %.0f s)", method, path, error, pause)
                await self._sleep(pause)
        raise AssertionError("unreachable")

    async def _try(
        self, method: str, path: str, query: Mapping[str, str], body: object, content_type: str, limits: Any
    ) -> Any:
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": USER_AGENT}
        try:
            await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            answer = await self._client.rest_client.request(
                method, self._url(path, query), headers=headers, body=body, _request_timeout=limits
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._observe(method, 0)
            raise Retryable(f"{method} {path}: {error or type(error).__name__}") from error
        self._observe(method, answer.status)
        if answer.status < 400:
            return answer.response
        raise await _failure(answer.response)

    def _url(self, path: str, query: Mapping[str, str]) -> str:
        given = {key: value for key, value in query.items() if value}
        return f"{self.server}{path}" + (f"?{urlencode(given)}" if given else "")


def _typed(kind: str, items: Iterable[Json]) -> tuple[Json, ...]:
    """Items of built-in lists do not say what they are; events of a watch do."""
    typed = {"apiVersion": RESOURCES[kind].api_version, "kind": kind}
    return tuple({**typed, **item} for item in items)


async def _events(kind: str, response: aiohttp.ClientResponse) -> AsyncIterator[WatchEvent]:
    try:
        while line := await response.content.readline(max_line_length=_LONGEST_LINE):
            event = json.loads(line)
            if event["type"] == "ERROR":
                raise error_of(int(event["object"].get("code") or 0), event["object"])
            yield WatchEvent(event["type"], event["object"])
    except HttpProcessingError as error:  # it would come again; a list has the object too, and no lines
        raise Gone(f"an event of {kind} is longer than {_LONGEST_LINE >> 20} MiB") from error
    except (aiohttp.ClientError, TimeoutError, ValueError, RecursionError) as error:
        raise Retryable(f"watch of {kind} broke: {error or type(error).__name__}") from error


def key_of(manifest: Json) -> ObjectKey:
    """Identity of a whole object."""
    metadata = manifest["metadata"]
    return ObjectKey(manifest["kind"], metadata.get("namespace", ""), metadata["name"])


async def _failure(response: aiohttp.ClientResponse) -> ApiError:
    try:
        text = await response.text(errors="replace")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return Retryable(f"{response.status} {response.reason}: the answer broke off: {error or type(error).__name__}")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        body = {"message": f"{response.status} {response.reason}: {text[:200]}"}
    return error_of(response.status, body, retry_after=response.headers.get("Retry-After"))


_ERRORS: dict[int, type[ApiError]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    405: Invalid,
    406: Invalid,
    409: Conflict,
    410: Gone,
    413: Invalid,
    415: Invalid,
    422: Invalid,
}


def error_of(status: int, body: Json, *, retry_after: str | None = None) -> ApiError:
    """The exception for a `Status` object."""
    message = str(body.get("message") or f"status {status}")
    reason, details = str(body.get("reason") or ""), body.get("details") or {}
    if status == 422 and (_is_another(details) or _is_bound(details)):
        return Conflict(message, status=status, reason=reason, details=details)
    if status == 403 and _is_going(details):
        return NotFound(message, status=status, reason=reason, details=details)
    if status == 403 and _UNKNOWN_OWNER in message:
        return Retryable(message, status=status, reason=reason, details=details)
    if known := _ERRORS.get(status):
        return known(message, status=status, reason=reason, details=details)
    after = retry_after or details.get("retryAfterSeconds") or (1 if status == 429 else 0)
    return Retryable(message, status=status, reason=reason, details=details, after=_seconds(after))


_UNKNOWN_OWNER = "cannot find RESTMapping"
"""Where owners are checked (OwnerReferencesPermissionEnforcement, as in OpenShift), the API server refuses children of
a kind that came within the last half minute: it looks for new kinds no more often. No right is missing."""


def _is_another(details: Mapping[str, Any]) -> bool:
    """A patch that names the uid of an object made anew since is told that uids are immutable."""
    return any(cause.get("field") == "metadata.uid" for cause in details.get("causes") or ())


def _is_bound(details: Mapping[str, Any]) -> bool:
    """A node may be nominated until there is one: who is too late lost a race, and the pod runs all the same."""
    nominations = (cause for cause in details.get("causes") or () if cause.get("field") == "status.nominatedNodeName")
    return any(cause.get("reason") == "FieldValueForbidden" for cause in nominations)


def _is_going(details: Mapping[str, Any]) -> bool:
    """Nothing can be made in a namespace that is being deleted: no right is missing, and nobody needs to be told."""
    return any(cause.get("reason") == "NamespaceTerminating" for cause in details.get("causes") or ())


def _seconds(text: object) -> float:
    """Retry-After in seconds; its other form, a date, is not used by API servers."""
    try:
        return max(0.0, float(str(text)))
    except ValueError:
        return 1.0
