"""kopf is given our connection, and what its handlers tell reaches us."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass, field, replace
from typing import Any

import kopf
import pytest
from aiohttp import web

from e2e.testbed.processes import free_port
from tokenservice.api import GROUP, VERSION
from tokenservice.app.framework import connection_info, run_kopf
from tokenservice.app.handlers import Hooks, settings
from tokenservice.edge.kube import PAGE_SIZE, RECURSION_LIMIT


@dataclass
class Connection:
    host: str = "https://10.96.0.1:443"
    api_key: dict[str, str] = field(default_factory=dict)
    verify_ssl: bool = True
    ssl_ca_cert: str | None = "/ca.crt"
    cert_file: str | None = None
    key_file: str | None = None


@pytest.mark.parametrize("written", ["bearer abc", "Bearer abc"])
def test_a_token_is_handed_on_with_its_scheme(written: str) -> None:
    info = connection_info(Connection(api_key={"BearerToken": written}))
    assert (info.server, info.ca_path) == ("https://10.96.0.1:443", "/ca.crt")
    assert (info.scheme, info.token, info.insecure) == ("Bearer", "abc", False)


def test_a_client_certificate_is_handed_on() -> None:
    info = connection_info(Connection(cert_file="/tls.crt", key_file="/tls.key", verify_ssl=False))
    assert (info.certificate_path, info.private_key_path) == ("/tls.crt", "/tls.key")
    assert (info.scheme, info.token, info.insecure) == (None, None, True)


def test_kopf_reads_the_first_list_page_by_page() -> None:
    assert settings().watching.chunk_size == PAGE_SIZE


async def discovery(request: web.Request) -> web.Response:
    """An API server with no kinds at all."""
    versions = {"kind": "APIVersions", "versions": ["v1"], "groups": [], "resources": [], "items": [], "metadata": {}}
    return web.json_response(versions)


def make_hooks(server: str, stuck: list[str]) -> Hooks:
    return Hooks(
        mark_dirty=lambda: None,
        connection=lambda: kopf.ConnectionInfo(server=server),
        state=lambda: {"leading": True},
        stuck=lambda: stuck[0] if stuck else None,
    )


async def health(port: int) -> tuple[int, Any]:
    def ask() -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, None
        except OSError:
            return 0, None

    return await asyncio.to_thread(ask)


def service(name: str, depth: int = 0) -> str:
    """Who may create one may also say whom its fields belong to, as deep as the API server takes it."""
    fields = '{"f:a":' * depth + "{}" + "}" * depth
    names = f'"namespace":"team","name":"{name}","uid":"{name}","resourceVersion":"4"'
    return f'{{"metadata":{{{names},"managedFields":[{{"fieldsV1":{fields}}}]}}}}'


def kind_of(plural: str, kind: str, *, namespaced: bool) -> dict[str, Any]:
    verbs = ["list", "watch", "patch"]
    return {"name": plural, "singularName": "", "kind": kind, "namespaced": namespaced, "verbs": verbs}


async def deep_and_plain_services(request: web.Request) -> web.StreamResponse:
    """An API server with our kind, a deep object of it and a plain one in the list, and two more in the watch."""
    versions = [{"version": VERSION}]
    match request.path, "watch" in request.query:
        case "/apis", _:
            return web.json_response(
                {"groups": [{"name": GROUP, "versions": versions, "preferredVersion": versions[0]}]}
            )
        case path, _ if path == f"/apis/{GROUP}/{VERSION}":
            return web.json_response({"resources": [kind_of("tokenservices", "TokenService", namespaced=True)]})
        case "/api/v1", _:
            return web.json_response({"resources": [kind_of("namespaces", "Namespace", namespaced=False)]})
        case _, True:
            response = web.StreamResponse()
            await response.prepare(request)
            for changed in (service("deep", 9_980), service("changed")):
                await response.write(f'{{"type":"MODIFIED","object":{changed}}}\n'.encode())
            await asyncio.sleep(60)
            return response
        case path, _ if path.endswith("/tokenservices"):
            listed = f'{{"metadata":{{"resourceVersion":"5"}},"items":[{service("deep", 9_980)},{service("listed")}]}}'
            return web.Response(text=listed, content_type="application/json")
    return await discovery(request)


async def test_an_object_as_deep_as_the_api_server_takes_hides_no_other_from_kopf(nobody: None) -> None:
    application = web.Application()
    application.add_routes([web.get("/{path:.*}", deep_and_plain_services)])
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    heard, before = list[bool](), sys.getrecursionlimit()
    hooks = replace(make_hooks(f"http://127.0.0.1:{runner.addresses[0][1]}", []), mark_dirty=lambda: heard.append(True))
    sys.setrecursionlimit(RECURSION_LIMIT)
    running = asyncio.create_task(
        run_kopf(hooks, identity="me", namespaces=(), health_address="127.0.0.1", health_port=free_port())
    )
    try:
        async with asyncio.timeout(30):
            while len(heard) < 2 and not running.done():  # noqa: ASYNC110 - nothing tells us
                await asyncio.sleep(0.1)
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await runner.cleanup()
        sys.setrecursionlimit(before)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a name, as in a container: the operator once ended here, from its image only."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    monkeypatch.setattr("getpass.getuser", nameless)


@pytest.mark.parametrize(("stuck", "want"), [([], (200, {"state": {"leading": True}})), (["no pass"], (500, None))])
async def test_health_is_told_and_a_stuck_process_is_unhealthy(
    stuck: list[str], want: tuple[int, Any], nobody: None
) -> None:
    application = web.Application()
    application.add_routes([web.get("/{path:.*}", discovery)])
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server, port = f"http://127.0.0.1:{runner.addresses[0][1]}", free_port()
    running = asyncio.create_task(
        run_kopf(make_hooks(server, stuck), identity="me", namespaces=(), health_address="127.0.0.1", health_port=port)
    )
    try:
        async with asyncio.timeout(30):
            while (answer := await health(port))[0] == 0:  # noqa: ASYNC110 - nothing tells us
                await asyncio.sleep(0.1)
        assert answer == want
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await runner.cleanup()
