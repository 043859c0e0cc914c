"""Raw JSON in and out of a real API server, with the credentials of a kubeconfig.

Raw because decoding a pod into the client's models costs ten times what the fleet needs from it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from e2e.engines.contract import Json
from e2e.engines.reflector import ApiError, GoneError

WATCH_SECONDS = 290
PAGE_SIZE = 500
CONNECTIONS = 32
_TRANSPORT_ERRORS = (aiohttp.ClientError, TimeoutError, OSError, json.JSONDecodeError)


async def connect(kubeconfig: str, context: str | None = None) -> ApiClient:
    """A client with the kubeconfig's credentials, and room for writes beside the watches."""
    settings = Configuration()
    await config.load_kube_config(  # type: ignore[no-untyped-call]
        config_file=kubeconfig, context=context, client_configuration=settings
    )
    settings.connection_pool_maxsize = CONNECTIONS
    return ApiClient(configuration=settings)


class Api:
    """A `Source` and a `Patcher`. Everything raises ApiError: whatever goes wrong is tried again by who asked."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def get(self, path: str, **query: str) -> Json:
        """One object or list."""
        return await self._exchange("GET", path, query, None, 60)

    async def merge_patch(self, path: str, patch: Json) -> Json:
        """Apply a JSON merge patch."""
        return await self._exchange("PATCH", path, {}, patch, 30)

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
        """(type, object) until the server ends the watch. GoneError when the version is too old, if need be at once."""
        query |= {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            "resourceVersion": resource_version,
        }
        try:
            async with await self._send("GET", path, query, None, WATCH_SECONDS + 30) as response:
                if response.status != 200:
                    _checked(response.status, await response.read())
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise GoneError(410, event["object"].get("message", ""))
                    yield event["type"], event["object"]
        except _TRANSPORT_ERRORS as error:
            raise ApiError(0, repr(error)) from error

    async def _exchange(
        self, method: str, path: str, query: dict[str, str], body: Json | None, timeout_s: float
    ) -> Json:
        try:
            async with await self._send(method, path, query, body, timeout_s) as response:
                return _checked(response.status, await response.read())
        except _TRANSPORT_ERRORS as error:
            raise ApiError(0, repr(error)) from error

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
    if status >= 300:
        raise (GoneError if status == 410 else ApiError)(status, body[:300].decode(errors="replace"))
    parsed: Json = json.loads(body)
    return parsed
