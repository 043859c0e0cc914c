"""The fleet over HTTP, as clients, Prometheus and tests see it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from e2e.engines.contract import Dialect, EngineCommand
from e2e.engines.fake_engine import FakeEngine, State
from e2e.engines.fleet import Fleet, FleetOptions
from e2e.engines.server import serve
from tests.e2e_engines.builders import FAST, NEVER_UP, Notes, deleted, pod, until

COMPLETIONS = "/pods/team/chat-0/v1/completions"


class Site:
    """A fleet of real-time engines behind a real port."""

    def __init__(self, fleet: Fleet, session: aiohttp.ClientSession, port: int) -> None:
        self.fleet, self.session, self.port = fleet, session, port

    @property
    def engine(self) -> FakeEngine:
        engine = self.fleet.get(pod().key)
        assert engine is not None
        return engine

    async def post(self, path: str, headers: dict[str, str] | None = None, **body: Any) -> tuple[int, Any]:
        async with self.session.post(path, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        async with self.session.post(path, json={"stream": True, **body}) as response:
            assert response.headers["Content-Type"].startswith("text/event-stream")
            events = (await response.text()).split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]

    async def metrics(self, path: str = "/pods/team/chat-0/metrics") -> dict[str, float]:
        async with self.session.get(path) as response:
            page = await response.text()
        return {s.name: s.value for family in text_string_to_metric_families(page) for s in family.samples}


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    options = FleetOptions(time_scale=6000)  # a cold start of 10 ms
    fleet = Fleet(asyncio.get_running_loop(), Notes(), options=options, wall_clock=time.time)
    fleet.profile_seen("fast", FAST)
    fleet.profile_seen("never up", NEVER_UP)
    runner, port = await serve(fleet, 0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        fleet.pod_seen(pod(shutdown_timeout=30, ready_reported=True))
        yield Site(fleet, session, port)
    await runner.cleanup()


async def test_a_completion_comes_whole(site: Site) -> None:
    status, answer = await site.post(COMPLETIONS, model="chat", prompt=[1, 2, 3, 4, 5], max_tokens=20)
    assert status == 200
    assert answer["object"] == "text_completion"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 25, "completion_tokens": 20}
    assert answer["engine_times"]["first_token_ms"] == pytest.approx(FAST.step.step_ms(1, 0, 5), abs=0.1)


async def test_a_completion_comes_streamed(site: Site) -> None:
    events = await site.stream(COMPLETIONS, prompt="x" * 396, max_tokens=120, stream_options={"include_usage": True})
    *groups, usage = events
    assert sum(group["tokens"] for group in groups) == 120
    assert sum(group["choices"][0]["text"].count("t") for group in groups) == 120
    assert groups[0]["tokens"] == 1
    assert len(groups) >= 2
    assert [group["choices"][0]["finish_reason"] for group in groups] == [None] * (len(groups) - 1) + ["length"]
    assert usage["usage"]["completion_tokens"] == 120
    assert usage["usage"]["prompt_tokens"] == 100
    times = usage["engine_times"]
    assert (times["last_token_ms"] - times["first_token_ms"]) / 119 == pytest.approx(4.05, rel=0.01)


async def test_without_usage_the_times_are_in_the_last_group(site: Site) -> None:
    events = await site.stream(COMPLETIONS, prompt="hello", max_tokens=1)
    assert len(events) == 1
    assert events[0]["engine_times"]["first_token_ms"] == events[0]["engine_times"]["last_token_ms"]


async def test_a_server_can_be_told_to_send_usage_always(site: Site) -> None:
    site.fleet.pod_seen(pod("meters", ready_reported=True, command=EngineCommand("chat", forces_usage=True)))
    events = await site.stream("/pods/team/meters/v1/completions", prompt="hello", max_tokens=3)
    assert events[-1]["usage"]["completion_tokens"] == 3


async def test_without_prefix_caching_nothing_is_cached(site: Site) -> None:
    command = EngineCommand("chat", caches_prefixes=False)
    site.fleet.pod_seen(pod("forgets", ready_reported=True, command=command))
    headers = {"x-prompt-tokens": "300", "x-cached-tokens": "100"}
    _, answer = await site.post("/pods/team/forgets/v1/completions", headers=headers, prompt="", max_tokens=2)
    assert "prompt_tokens_details" not in answer["usage"]
    assert (await site.metrics("/pods/team/forgets/metrics"))["vllm:prefix_cache_hits_total"] == 0


async def test_a_chat_comes_both_ways(site: Site) -> None:
    path, messages = "/pods/team/chat-0/v1/chat/completions", [{"role": "user", "content": "hello"}]
    status, answer = await site.post(path, messages=messages, max_completion_tokens=3)
    assert (status, answer["object"]) == (200, "chat.completion")
    assert answer["choices"][0]["message"]["content"] == " t t t"
    events = await site.stream(path, messages=messages, max_tokens=3)
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == " t t t"


async def test_a_prompt_can_be_claimed_instead_of_sent(site: Site) -> None:
    headers = {"x-prompt-tokens": "3000", "x-cached-tokens": "1000"}
    _, answer = await site.post(COMPLETIONS, headers=headers, prompt="", max_tokens=2)
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 1000}
    measured = await site.metrics()
    assert (measured["vllm:prompt_tokens_total"], measured["vllm:prefix_cache_hits_total"]) == (3000, 1000)


REFUSED = {
    "too long": ({"prompt": "x", "max_tokens": 40_000}, 400, "maximum context length"),
    "no tokens": ({"prompt": "x", "max_tokens": 0}, 400, "at least 1"),
    "no prompt": ({"max_tokens": 5}, 400, "cannot read"),
    "odd prompt": ({"prompt": {}, "max_tokens": 5}, 400, "must be a string"),
    "another model": ({"prompt": "x", "model": "other"}, 404, "does not exist"),
}


@pytest.mark.parametrize(("body", "status", "message"), REFUSED.values(), ids=REFUSED)
async def test_what_an_engine_would_refuse_is_refused(
    site: Site, body: dict[str, Any], status: int, message: str
) -> None:
    got, answer = await site.post(COMPLETIONS, **body)
    assert got == status
    assert message in answer["error"]["message"]


async def test_an_engine_that_starts_or_drains_answers_503(site: Site) -> None:
    site.fleet.pod_seen(pod("starts", profile="never up"))
    assert (await site.post("/pods/team/starts/v1/completions", prompt="x"))[0] == 503
    drains = pod("chat-0", shutdown_timeout=30)
    in_flight = asyncio.create_task(site.post(COMPLETIONS, prompt="x", max_tokens=100))
    await until(lambda: site.engine.in_flight == 1)
    site.fleet.pod_seen(deleted(drains, 60))
    assert (await site.post(COMPLETIONS, prompt="x"))[0] == 503
    async with site.session.get("/pods/team/chat-0/health") as response:
        assert response.status == 503
    assert (await in_flight)[0] == 200
    async with site.session.post(COMPLETIONS, json={"prompt": "x"}) as response:
        assert response.status == 502


async def test_a_killed_engine_drops_its_connections(site: Site) -> None:
    waits = asyncio.create_task(site.post(COMPLETIONS, prompt="x", max_tokens=2000))
    streams = asyncio.create_task(site.stream(COMPLETIONS, prompt="x", max_tokens=2000))
    await until(lambda: site.engine.in_flight == 2)
    site.fleet.pod_gone(pod().key)
    for task in (waits, streams):
        with pytest.raises(aiohttp.ClientError):
            await asyncio.wait_for(task, 10)
    assert (await site.post(COMPLETIONS, prompt="x"))[0] == 404


async def test_a_client_that_hangs_up_is_aborted(site: Site) -> None:
    asking = asyncio.create_task(site.stream(COMPLETIONS, prompt="x", max_tokens=5000))
    await until(lambda: site.engine.in_flight == 1)
    asking.cancel()
    await until(lambda: site.engine.in_flight == 0)
    async with site.session.get("/pods/team/chat-0/metrics") as response:
        assert 'finished_reason="abort",model_name="chat"} 1.0' in await response.text()


async def test_prometheus_finds_every_engine_that_listens(site: Site) -> None:
    site.fleet.pod_seen(pod("starts", profile="never up"))
    site.fleet.pod_seen(pod("chat-1", dialect=Dialect.SGLANG, ready_reported=True))
    async with site.session.get("/sd") as response:
        targets = await response.json()
    assert targets == [
        {
            "targets": [f"127.0.0.1:{site.port}"],
            "labels": {
                "__metrics_path__": f"/pods/team/{name}/metrics",
                "namespace": "team",
                "pod": name,
            },
        }
        for name in ("chat-0", "chat-1")
    ]
    measured = await site.metrics(targets[1]["labels"]["__metrics_path__"])
    assert measured["sglang:max_total_num_tokens"] == 100_000


async def test_models_and_health(site: Site) -> None:
    async with site.session.get("/pods/team/chat-0/v1/models") as response:
        (card,) = (await response.json())["data"]
    assert (card["id"], card["max_model_len"]) == ("chat", 32768)
    async with site.session.get("/pods/team/chat-0/health") as response:
        assert response.status == 200


async def test_hooks_crash_fail_starts_and_hang(site: Site) -> None:
    async with site.session.put("/admin/starts", json=[{"service": "chat", "fails": True}]) as response:
        assert await response.json() == {"rules": 1}
    assert await site.post("/admin/pods/team/chat-0/crash") == (200, {"state": "starting"})
    await asyncio.sleep(0.03)
    async with site.session.get("/admin/engines") as response:
        (shown,) = await response.json()
    assert (shown["pod"], shown["state"], shown["inFlight"]) == ("chat-0", "starting", 0)
    async with site.session.put("/admin/starts", json=[]):
        await until(lambda: site.engine.state == State.SERVING)
    await site.post("/admin/pods/team/chat-0/hang")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(site.post(COMPLETIONS, prompt="x", max_tokens=1), 0.1)
    await site.post("/admin/pods/team/chat-0/resume")
    assert (await site.post(COMPLETIONS, prompt="x", max_tokens=1))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/admin/pods/team/chat-0/sing", 404),
        ("POST", "/admin/pods/team/never-was/crash", 404),
        ("PUT", "/admin/starts", 400),
    ],
)
async def test_hooks_say_when_they_make_no_sense(site: Site, method: str, path: str, status: int) -> None:
    async with site.session.request(method, path, data="{") as response:
        assert response.status == status
