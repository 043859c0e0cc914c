"""`tokenservice engine check`, against fake engines, broken ones, and a real vLLM where there is one."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from e2e.engines.contract import Dialect, EngineCommand
from e2e.engines.fake_engine import State
from e2e.engines.fleet import Fleet, FleetOptions
from e2e.engines.server import make_app, serve
from tests.e2e_engines.builders import FAST, Notes, deleted, pod
from tokenservice.cli.main import app
from tokenservice.core.step import StepModel
from tokenservice.edge.engine_contract import Engine, Report, Result, asked

STEADY = replace(FAST, step=StepModel(2.0, 0.01, 0.0, 0.001))
"""2 ms a token: an answer of a thousand tokens is long enough to be cancelled."""

FORCED = EngineCommand(model_name="chat", shutdown_timeout_seconds=60.0, forces_usage=True)
REAL = os.environ.get("TAAS_VLLM_URL", "")


class Site:
    """One fake engine, and ways to spoil its answers."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.pod = pod()
        self.url = ""
        self.spoilt: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = {}

    def runs(self, dialect: Dialect = Dialect.VLLM, command: EngineCommand = FORCED) -> Site:
        self.pod = pod(dialect=dialect, command=command, ready_reported=True)
        self.fleet.pod_seen(self.pod)
        return self

    async def check(self, **given: Any) -> dict[str, Result]:
        return results(await asked(self.url, **given))

    async def stop(self) -> None:
        self.fleet.pod_seen(deleted(self.pod, 300))

    async def gone(self) -> bool:
        engine = self.fleet.get(self.pod.key)
        return engine is None or engine.state == State.GONE


def results(report: Report) -> dict[str, Result]:
    return {check.name: check.result for check in report.checks}


def failed(found: dict[str, Result]) -> set[str]:
    return {name for name, result in found.items() if result is Result.FAILED}


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    fleet = Fleet(asyncio.get_running_loop(), Notes(), options=FleetOptions(time_scale=1), wall_clock=time.time)
    fleet.profile_seen("fast", STEADY)
    found = Site(fleet)

    @web.middleware
    async def spoil(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        path = request.path.removeprefix("/pods/team/chat-0")
        return await found.spoilt.get(path, handler)(request)

    application = make_app(fleet, 0)
    application.middlewares.append(spoil)
    runner, port = await serve(fleet, 0, application)
    found.url = f"http://127.0.0.1:{port}/pods/team/chat-0"
    yield found
    await runner.cleanup()


@pytest.mark.parametrize("dialect", Dialect)
async def test_the_fake_engines_keep_the_contract(site: Site, dialect: Dialect) -> None:
    site.runs(dialect)
    report = await asked(site.url, stop=site.stop, gone=site.gone)
    assert report.kept, [check for check in report.checks if check.result is Result.FAILED]
    assert (report.engine, report.model) == (dialect.value, "chat")
    skipped = {check.name for check in report.checks if check.result is Result.SKIPPED}
    assert skipped == ({"usage in streams"} if dialect is Dialect.SGLANG else set())


async def test_a_vllm_that_aborts_at_sigterm_is_found(site: Site) -> None:
    site.runs(command=replace(FORCED, shutdown_timeout_seconds=0.0))
    found = await site.check(stop=site.stop, gone=site.gone)
    assert failed(found) == {"graceful stop"}


async def test_a_vllm_that_sends_usage_only_when_asked_is_found(site: Site) -> None:
    site.runs(command=replace(FORCED, forces_usage=False))
    assert failed(await site.check()) == {"usage in streams"}


async def test_another_name_than_was_asked_for_is_found(site: Site) -> None:
    site.runs()
    report = await asked(site.url, model="other")
    (models,) = [check for check in report.checks if check.name == "models"]
    assert models.result is Result.FAILED
    assert "other is not served, but chat" in models.says
    assert "--served-model-name" in models.fix


async def test_metrics_of_the_other_engine_are_found(site: Site) -> None:
    site.runs()
    assert "metrics" in failed(await site.check(engine=Engine.SGLANG))


async def test_a_metric_of_another_type_is_named(site: Site) -> None:
    site.runs()
    engine = site.fleet.get(site.pod.key)
    assert engine is not None

    async def spoilt(request: web.Request) -> web.Response:
        text = engine.metrics_page().replace("# TYPE vllm:num_requests_running gauge", "")
        return web.Response(text=text)

    site.spoilt["/metrics"] = spoilt
    report = await asked(site.url)
    (metrics,) = [check for check in report.checks if check.name == "metrics"]
    assert metrics.says == "vllm:num_requests_running is unknown, not gauge"


async def test_an_engine_that_answers_mistakes_with_500_is_found(site: Site) -> None:
    site.runs()

    async def spoilt(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if body.get("max_tokens", 1) < 0:
            return web.Response(status=500)
        return web.json_response({}, status=400)

    site.spoilt["/v1/completions"] = spoilt
    assert "bad input" in failed(await site.check())


async def test_an_engine_that_goes_on_after_its_client_left_is_found(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenservice.edge.engine_contract.CANCEL_SECONDS", 0.3)
    site.runs()
    engine = site.fleet.get(site.pod.key)
    assert engine is not None
    monkeypatch.setattr(engine, "abort", lambda request_id: None)
    assert failed(await site.check()) == {"cancel"}


async def test_where_nothing_answers_nothing_else_is_asked() -> None:
    report = await asked("http://127.0.0.1:9")
    assert results(report) == {"health": Result.FAILED}


def test_the_command_says_it_in_json_and_by_its_exit_code() -> None:
    result = CliRunner().invoke(app, ["engine", "check", "http://127.0.0.1:9", "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["kept"] is False
    assert found["checks"][0]["name"] == "health"
    assert "once the model is loaded" in found["checks"][0]["fix"]


@pytest.mark.skipif(not REAL, reason="needs a running vLLM in TAAS_VLLM_URL")
async def test_a_real_vllm_keeps_the_contract() -> None:
    report = await asked(REAL, engine=Engine.VLLM)
    assert report.kept, [check for check in report.checks if check.result is Result.FAILED]
