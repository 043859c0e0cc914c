"""The engine contract, asked of the fake engines: what is said of real ones must hold for those that stand in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from e2e.engines.contract import Dialect, EngineCommand
from e2e.engines.fleet import Fleet, FleetOptions
from e2e.engines.server import serve
from tests.e2e_engines.builders import FAST, NEVER_UP, Notes, deleted, pod
from tokenservice.edge.engine_check import Report, Unreachable, check

DIALECTS = pytest.mark.parametrize("dialect", list(Dialect))


class Stand:
    """One engine behind a port of its own."""

    def __init__(self, fleet: Fleet, port: int) -> None:
        self.fleet, self.port = fleet, port

    def put(
        self, dialect: Dialect = Dialect.VLLM, shutdown_timeout: float = 30.0, profile: str = "fast", name: str = "it"
    ) -> str:
        """The address of an engine."""
        command = EngineCommand("chat", max_model_len=4096, shutdown_timeout_seconds=shutdown_timeout)
        self.engine = pod(name, dialect=dialect, command=command, ready_reported=profile == "fast", profile=profile)
        self.fleet.pod_seen(self.engine)
        return f"http://127.0.0.1:{self.port}/pods/team/{name}"

    def stop(self) -> None:
        self.fleet.pod_seen(deleted(self.engine, grace_seconds=60))


@pytest.fixture
async def stand() -> AsyncIterator[Stand]:
    fleet = Fleet(asyncio.get_running_loop(), Notes(), options=FleetOptions(time_scale=6000), wall_clock=time.time)
    fleet.profile_seen("fast", FAST)
    fleet.profile_seen("never up", NEVER_UP)
    runner, port = await serve(fleet, 0)
    yield Stand(fleet, port)
    await runner.cleanup()


def broken(report: Report | Unreachable) -> dict[str, str]:
    assert isinstance(report, Report), report
    return {outcome.name: outcome.seen for outcome in report.outcomes if outcome.kept is False}


@DIALECTS
async def test_fake_engines_keep_the_contract(stand: Stand, dialect: Dialect) -> None:
    report = await check(stand.put(dialect), stop=stand.stop)
    assert broken(report) == {}
    assert isinstance(report, Report)
    assert [outcome.kept for outcome in report.outcomes] == [True] * 8
    assert report.engine == dialect


async def test_an_engine_that_aborts_when_told_to_stop_is_found(stand: Stand) -> None:
    report = await check(stand.put(shutdown_timeout=0.0), stop=stand.stop)
    assert list(broken(report)) == ["graceful stop"]


async def test_without_its_process_the_stop_is_not_tried_and_the_engine_lives(stand: Stand) -> None:
    url = stand.put()
    report = await check(url)
    assert isinstance(report, Report)
    assert report.kept
    assert report.outcomes[-1].kept is None
    assert isinstance(await check(url), Report)


@pytest.mark.parametrize("models", ["[]", '"chat"', '{"data": ["chat"]}', '{"data": [{}]}', '{"data": 1}'])
async def test_a_server_that_lists_models_otherwise_is_no_engine(models: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path == "/metrics":
            return web.Response(text="vllm:x 1")
        return web.Response(text=models, content_type="application/json")

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    async with TestServer(application) as server:
        found = await check(str(server.make_url("/")))
    assert isinstance(found, Unreachable)


async def test_nothing_is_asked_of_what_is_no_engine_or_not_up(stand: Stand) -> None:
    down = stand.put(profile="never up", name="down")
    for url, model in ((stand.put(), "other"), (down, None), ("http://127.0.0.1:1", None)):
        assert isinstance(await check(url, model=model), Unreachable)
