"""The books of the load generator against servers that answer, refuse, or go in the middle of an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from e2e.real.load import Load, Phase, Question, ask

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/completions", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def stream(request: web.Request, *events: bytes) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for event in events:
        await response.write(b"data: " + event + b"\n\n")
    return response


async def asked(handler: Handler) -> Phase:
    phase = Phase("a phase")
    async with serving(handler) as url, aiohttp.ClientSession() as session:
        await ask(session, Question(url=url, model="tiny"), 1, phase)
    return phase


def books(phase: Phase) -> dict[str, int]:
    return {"answered": phase.answered, "failed": phase.failed, "cut": phase.cut}


TOKEN = b'{"choices": [{"text": "a"}]}'


async def test_an_answer_that_ends_with_its_last_event_is_answered() -> None:
    async def whole(request: web.Request) -> web.StreamResponse:
        return await stream(request, TOKEN, TOKEN, b"[DONE]")

    phase = await asked(whole)
    assert books(phase) == {"answered": 1, "failed": 0, "cut": 0}
    assert phase.tokens == 2
    assert len(phase.first_token_seconds) == 1


async def test_a_stream_that_ends_early_is_cut_even_if_the_connection_closed_politely() -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        return await stream(request, TOKEN)

    assert books(await asked(half)) == {"answered": 0, "failed": 0, "cut": 1}


async def test_a_connection_that_breaks_between_tokens_is_cut() -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = await stream(request, TOKEN)
        assert request.transport is not None
        request.transport.abort()
        return response

    assert books(await asked(broken)) == {"answered": 0, "failed": 0, "cut": 1}


async def test_an_error_the_engine_reports_inside_the_stream_is_no_answer() -> None:
    async def aborted(request: web.Request) -> web.StreamResponse:
        return await stream(request, TOKEN, b'{"error": {"message": "engine is shutting down"}}', b"[DONE]")

    assert books(await asked(aborted)) == {"answered": 0, "failed": 0, "cut": 1}


@pytest.mark.parametrize("status", [404, 429, 500, 503])
async def test_a_refusal_is_failed(status: int) -> None:
    async def refused(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text="no")

    phase = await asked(refused)
    assert books(phase) == {"answered": 0, "failed": 1, "cut": 0}
    assert str(status) in phase.errors[0]


async def test_no_server_is_failed() -> None:
    phase = Phase("a phase")
    async with aiohttp.ClientSession() as session:
        await ask(session, Question(url="http://127.0.0.1:1", model="tiny"), 1, phase)
    assert books(phase) == {"answered": 0, "failed": 1, "cut": 0}


async def test_a_load_that_is_abandoned_waits_for_no_answer() -> None:
    reached, over = asyncio.Event(), asyncio.Event()

    async def never(_request: web.Request) -> web.StreamResponse:
        reached.set()
        await over.wait()
        return web.Response()

    async with serving(never) as url:
        load = Load(Question(url=url, model="tiny"))
        load.start("steady", 50.0)
        await reached.wait()
        began = time.monotonic()
        await asyncio.to_thread(load.abandon)
        over.set()
    assert time.monotonic() - began < 30


def test_prompts_differ_from_their_first_block_on() -> None:
    question = Question(url="", model="tiny")
    assert len({question.body(number) for number in range(100)}) == 100


def test_answers_are_longer_while_few_are_under_way() -> None:
    question = Question(url="", model="tiny", output_tokens=256, busy=4, longer_tokens=896)
    assert [question.among(others).output_tokens for others in (0, 3, 4, 50)] == [896, 896, 256, 256]
    assert Question(url="", model="tiny").among(0).output_tokens == 256


async def test_a_server_with_little_to_do_is_asked_for_long_answers() -> None:
    lengths: list[int] = []
    over = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        lengths.append((await request.json())["max_tokens"])
        if len(lengths) == 4:
            over.set()
        await over.wait()
        return await stream(request, TOKEN, b"[DONE]")

    async with serving(slow) as url:
        load = Load(Question(url=url, model="tiny", output_tokens=16, busy=2, longer_tokens=64))
        load.start("steady", 50.0)
        await over.wait()
        await asyncio.to_thread(load.stop)
    assert lengths[:4] == [64, 64, 16, 16]
