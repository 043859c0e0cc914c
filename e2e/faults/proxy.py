"""A proxy that does to requests what a test tells it to, in front of an API server or a Prometheus.

An operator comes in by a door of its own, so that what one does is told apart from what others do, and so that one can
be cut off at a moment chosen to the request. A door's `fault` handles a request: it may answer itself, wait, change the
answer of the real server, or break the connection; `stream` does so for the lines of a watch. Both may be exchanged at
any time. Everything else passes through unchanged.

The proxy runs in a thread with an event loop of its own: a test that blocks does not block what it watches.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
from aiohttp import web

from e2e.testbed.processes import free_port

T = TypeVar("T")

_WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding", "date"})
_NO_LIMIT = aiohttp.ClientTimeout(total=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request; `path` is without the query."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def is_write(self) -> bool:
        return self.method in _WRITES

    @property
    def is_watch(self) -> bool:
        return self.query.get("watch") in ("1", "true")

    @property
    def is_list(self) -> bool:
        return self.method == "GET" and not self.is_watch and not self.name

    @property
    def namespace(self) -> str:
        return self._parts[0]

    @property
    def kind(self) -> str:
        """Plural, lower case: `deployments`."""
        return self._parts[1]

    @property
    def name(self) -> str:
        return self._parts[2]

    @property
    def subresource(self) -> str:
        return self._parts[3]

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    @property
    def _parts(self) -> tuple[str, str, str, str]:
        parts = self.path.strip("/").split("/")
        rest = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if len(rest) > 2 and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        kind, name, subresource = [*rest, "", "", ""][:3]
        return namespace, kind, name, subresource

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.method} {self.kind} {where}" + (f"/{self.subresource}" if self.subresource else "")


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes back."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Handled:
    """A request and what the operator was told; status 0: its connection broke."""

    call: Call
    status: int


class Broken(Exception):  # noqa: N818 - raised by faults: the connection breaks without an answer
    """The connection breaks."""


Forward = Callable[[Call], Awaitable[Answer]]
Fault = Callable[[Call, Forward], Awaitable[Answer]]
Lines = AsyncIterator[bytes]
Stream = Callable[[Call, Lines], Lines]


async def straight(call: Call, forward: Forward) -> Answer:
    """No fault."""
    return await forward(call)


def untouched(call: Call, lines: Lines) -> Lines:
    """No fault."""
    return lines


class Door:
    """One way in, on a port of its own."""

    def __init__(self, proxy: Proxy, port: int) -> None:
        self.port = port
        self.fault: Fault = straight
        self.stream: Stream = untouched
        self.handled: list[Handled] = []
        self._proxy = proxy
        self._transports: set[asyncio.Transport] = set()
        self._is_shut = False

    def shut(self) -> None:
        """Cuts off whoever came in here, for good: nothing more passes, nothing more comes back."""
        self._is_shut = True
        self._proxy.soon(self._abort)

    def reset(self) -> None:
        """Breaks all connections; new ones are welcome."""
        self._proxy.soon(self._abort)

    def clear(self) -> None:
        """No faults from now on."""
        self.fault, self.stream = straight, untouched

    def writes(self) -> list[Call]:
        """Writes that were let through or answered, in order, without renewals of the Lease."""
        return [done.call for done in self.handled if done.call.is_write and done.call.kind != "leases"]

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        if self._is_shut or transport is None:
            return _broken(request)
        self._transports.add(transport)
        try:
            call = Call(
                method=request.method,
                path=request.path,
                query=dict(request.query),
                headers={name: value for name, value in request.headers.items() if name.lower() not in _OWN_HEADERS},
                body=await request.read(),
            )
            return await (self._watch(call, request) if call.is_watch else self._once(call, request))
        finally:
            self._transports.discard(transport)

    async def _once(self, call: Call, request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = await self.fault(call, self._proxy.forward)
        except (Broken, aiohttp.ClientError, OSError):
            answer = None
        self.handled.append(Handled(call, answer.status if answer else 0))
        if answer is None or self._is_shut:
            return _broken(request)
        return web.Response(status=answer.status, body=answer.body, headers=dict(answer.headers))

    async def _watch(self, call: Call, request: web.BaseRequest) -> web.StreamResponse:
        response: web.StreamResponse | None = None
        try:
            refused = await self.fault(call, _accepted)
            self.handled.append(Handled(call, refused.status))
            if refused.status != 200:
                return web.Response(status=refused.status, body=refused.body, headers=dict(refused.headers))
            async with self._proxy.opened(call) as upstream:
                if upstream.status != 200:
                    return web.Response(status=upstream.status, body=await upstream.read())
                response = web.StreamResponse(headers={"Content-Type": "application/json"})
                await response.prepare(request)
                async for line in self.stream(call, _lines(upstream)):
                    await response.write(line)
                await response.write_eof()
                return response
        except (Broken, aiohttp.ClientError, OSError):
            return _broken(request)

    def _abort(self) -> None:
        for transport in list(self._transports):
            transport.abort()


class Proxy:
    """In front of one server. `certificate` and `key` are shown to those who come in; without them it speaks HTTP."""

    def __init__(self, server: str, *, certificate: str = "", key: str = "") -> None:
        self.server = server
        self._certificate, self._key = certificate, key
        self._loop = asyncio.new_event_loop()
        self._runners: list[web.ServerRunner] = []
        self._session: aiohttp.ClientSession
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        self.call(self._open())

    def door(self) -> Door:
        """A new way in."""
        door = Door(self, free_port())
        self.call(self._listen(door))
        return door

    def url(self, door: Door) -> str:
        return f"{'https' if self._certificate else 'http'}://127.0.0.1:{door.port}"

    def stop(self) -> None:
        self.call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def call(self, work: Any) -> Any:
        """Runs a coroutine in the proxy's loop and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def soon(self, call: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(call)

    async def forward(self, call: Call) -> Answer:
        """What the real server answers."""
        async with self.opened(call) as response:
            headers = {name: value for name, value in response.headers.items() if name.lower() not in _OWN_HEADERS}
            return Answer(response.status, await response.read(), headers)

    def opened(self, call: Call) -> Any:
        return self._session.request(
            call.method,
            f"{self.server}{call.path}",
            params=call.query,
            headers={**call.headers, "Accept-Encoding": "identity"},
            data=call.body or None,
        )

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _open(self) -> None:
        trusted: ssl.SSLContext | bool = True
        if self._certificate:
            trusted = ssl.create_default_context(cafile=self._certificate)
        connector = aiohttp.TCPConnector(ssl=trusted, limit=0)
        self._session = aiohttp.ClientSession(connector=connector, timeout=_NO_LIMIT, trust_env=False)

    async def _listen(self, door: Door) -> None:
        runner = web.ServerRunner(web.Server(door.handle, access_log=None), handle_signals=False, shutdown_timeout=0.1)
        await runner.setup()
        context = None
        if self._certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate, self._key)
        await web.TCPSite(runner, "127.0.0.1", door.port, ssl_context=context).start()
        self._runners.append(runner)

    async def _close(self) -> None:
        for runner in self._runners:
            with suppress(TimeoutError):
                await asyncio.wait_for(runner.cleanup(), 2)
        await self._session.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await asyncio.sleep(0.25)  # TLS connections need a moment of the loop to end


def _broken(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)  # goes nowhere: the connection is gone


async def _accepted(call: Call) -> Answer:
    return Answer(200)


async def _lines(upstream: aiohttp.ClientResponse) -> Lines:
    """Whole lines, however long."""
    rest = b""
    async for chunk in upstream.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
