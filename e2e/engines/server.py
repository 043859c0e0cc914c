"""The fleet over HTTP: one port, a pod's engine under `/pods/NAMESPACE/POD`, discovery, and hooks for tests.

A pod that starts or drains answers 503. For one whose process is gone the port answers 502, as a proxy in front of
a closed port does; connections that were open when it went are dropped without a word.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import deque
from dataclasses import replace
from itertools import count

from aiohttp import web

from e2e.engines.contract import PodKey
from e2e.engines.fake_engine import FakeEngine, ImpossibleError, State, UnavailableError
from e2e.engines.fleet import Fleet, StartRule
from e2e.engines.loaders import add_hub
from e2e.engines.metrics import Timing
from e2e.engines.openai import Answer, Ask, BadRequestError, error_body, models_body, read_ask

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
JSON_TYPE = "application/json"
FLEET = web.AppKey("fleet", Fleet)
_EVENT_STREAM = {"Content-Type": "text/event-stream; charset=utf-8"}
_CLOSE = {"Connection": "close"}
_answer_ids = count(1)


class Mailbox:
    """A `Stream` that a handler can await: the engine fills it, the handler empties it."""

    __slots__ = ("_items", "_waiter")

    def __init__(self) -> None:
        self._items: deque[int | tuple[int, Timing] | None] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def tokens(self, fresh: int) -> None:
        self._put(fresh)

    def finished(self, fresh: int, timing: Timing) -> None:
        self._put((fresh, timing))

    def cut(self) -> None:
        self._put(None)

    async def get(self) -> int | tuple[int, Timing] | None:
        """Fresh tokens, or the last ones with the times, or None when the engine is gone."""
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._items.popleft()

    def _put(self, item: int | tuple[int, Timing] | None) -> None:
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def make_app(fleet: Fleet, port: int) -> web.Application:
    """The application; `port` is what discovery tells Prometheus."""
    app = web.Application()
    app[FLEET] = fleet
    pod = "/pods/{namespace}/{pod}"
    app.router.add_post(pod + "/v1/completions", _completions)
    app.router.add_post(pod + "/v1/chat/completions", _chat)
    for prefix in ("/v1", ""):  # vLLM's paths and SGLang's
        app.router.add_post(pod + prefix + "/load_lora_adapter", _load_adapter)
        app.router.add_post(pod + prefix + "/unload_lora_adapter", _unload_adapter)
    app.router.add_get(pod + "/metrics", _metrics)
    app.router.add_get(pod + "/adapters/metrics", _adapter_metrics)
    app.router.add_get(pod + "/health", _health)
    app.router.add_get(pod + "/v1/models", _models)

    async def discovery(request: web.Request) -> web.Response:
        return web.json_response(scrape_config(request.app[FLEET], port))

    add_hub(app)
    app.router.add_get("/sd", discovery)
    app.router.add_get("/admin/engines", _list_engines)
    app.router.add_put("/admin/starts", _put_start_rules)
    app.router.add_post("/admin" + pod + "/{action}", _act)
    return app


async def serve(fleet: Fleet, port: int) -> tuple[web.AppRunner, int]:
    """Listen on the loopback address; port 0 takes a free one. Returns the runner to clean up, and the port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    bound = int(listener.getsockname()[1])
    runner = web.AppRunner(make_app(fleet, bound), handler_cancellation=True, access_log=None, keepalive_timeout=75)
    await runner.setup()
    await web.SockSite(runner, listener, backlog=1024).start()
    return runner, bound


def scrape_config(fleet: Fleet, port: int) -> list[dict[str, object]]:
    """Prometheus HTTP service discovery: one target per engine that listens, and one per loader of adapters."""
    pages = [(key, "metrics") for key in fleet.scrape_targets()]
    pages += [(key, "adapters/metrics") for key in fleet.adapter_pages]
    return [
        {
            "targets": [f"127.0.0.1:{port}"],
            "labels": {
                "__metrics_path__": f"/pods/{key.namespace}/{key.name}/{page}",
                "namespace": key.namespace,
                "pod": key.name,
            },
        }
        for key, page in pages
    ]


# -- what an engine serves


def _engine_of(request: web.Request) -> FakeEngine:
    """The engine that the path names. 404 for an unknown pod, 502 for a dead process."""
    key = PodKey(request.match_info["namespace"], request.match_info["pod"])
    engine = request.app[FLEET].get(key)
    if engine is None:
        text = error_body(404, "no such engine pod").decode()
        raise web.HTTPNotFound(text=text, content_type=JSON_TYPE, headers=_CLOSE)
    if engine.state == State.GONE:
        raise web.HTTPBadGateway(text="connection refused", headers=_CLOSE)
    return engine


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
    raise asyncio.CancelledError


def _unavailable(message: str) -> web.Response:
    return web.Response(status=503, body=error_body(503, message), content_type=JSON_TYPE, headers=_CLOSE)


async def _completions(request: web.Request) -> web.StreamResponse:
    return await _generate(request, is_chat=False)


async def _chat(request: web.Request) -> web.StreamResponse:
    return await _generate(request, is_chat=True)


async def _generate(request: web.Request, *, is_chat: bool) -> web.StreamResponse:
    body = await request.read()
    engine = _engine_of(request)
    mailbox = Mailbox()
    try:
        ask = read_ask(body, request.headers, is_chat=is_chat)
        command = engine.pod.command
        ask = replace(
            ask,
            includes_usage=ask.includes_usage or command.forces_usage,
            cached_tokens=ask.cached_tokens if command.caches_prefixes else 0,
        )
        output_tokens = ask.output_tokens or max(1, engine.max_model_len - ask.prompt_tokens)
        model = command.model_name
        if ask.model and ask.model != model and ask.model not in engine.adapters:
            message = f"The model `{ask.model}` does not exist."
            return web.Response(status=404, body=error_body(404, message), content_type=JSON_TYPE)
        request_id = engine.submit(
            prompt_tokens=ask.prompt_tokens,
            output_tokens=output_tokens,
            cached_tokens=ask.cached_tokens,
            stream=mailbox,
        )
    except UnavailableError as error:
        return _unavailable(str(error))
    except (BadRequestError, ImpossibleError) as error:
        return web.Response(status=400, body=error_body(400, str(error)), content_type=JSON_TYPE)
    answer = Answer(ask, f"{next(_answer_ids):x}", int(time.time()), model)
    try:
        return await _answer(request, ask, answer, output_tokens, mailbox)
    finally:
        engine.abort(request_id)  # when the client left; nothing once it is finished


async def _answer(
    request: web.Request, ask: Ask, answer: Answer, output_tokens: int, mailbox: Mailbox
) -> web.StreamResponse:
    response: web.StreamResponse | None = None
    while True:
        item = await mailbox.get()
        if item is None:
            _hang_up(request)
        if not ask.is_streamed:
            if isinstance(item, tuple):
                return web.Response(body=answer.whole(output_tokens, item[1]), content_type=JSON_TYPE)
            continue
        if response is None:
            response = web.StreamResponse(headers=_EVENT_STREAM)
            await response.prepare(request)
        if isinstance(item, tuple):
            await response.write(answer.last_chunks(item[0], output_tokens, item[1]))
            await response.write_eof()
            return response
        assert item is not None
        await response.write(answer.chunk(item))


async def _metrics(request: web.Request) -> web.Response:
    engine = _engine_of(request)
    if not engine.listens:
        raise web.HTTPBadGateway(text="connection refused", headers=_CLOSE)
    return web.Response(body=engine.metrics_page().encode(), headers={"Content-Type": METRICS_TYPE})


async def _adapter_metrics(request: web.Request) -> web.Response:
    key = PodKey(request.match_info["namespace"], request.match_info["pod"])
    page = request.app[FLEET].adapter_pages.get(key)
    if page is None:
        raise web.HTTPBadGateway(text="connection refused", headers=_CLOSE)
    return web.Response(body=page.encode(), headers={"Content-Type": METRICS_TYPE})


async def _health(request: web.Request) -> web.Response:
    engine = _engine_of(request)
    return web.Response() if engine.state == State.SERVING else _unavailable(f"the engine is {engine.state}")


async def _models(request: web.Request) -> web.Response:
    engine = _engine_of(request)
    if engine.state != State.SERVING:
        return _unavailable(f"the engine is {engine.state}")
    body = models_body(engine.pod.command.model_name, int(time.time()), engine.max_model_len, engine.adapters)
    return web.Response(body=body, content_type=JSON_TYPE)


async def _load_adapter(request: web.Request) -> web.Response:
    engine, body = _engine_of(request), await request.json()
    if engine.state != State.SERVING:
        return _unavailable(f"the engine is {engine.state}")
    try:
        engine.load_adapter(body["lora_name"], body["lora_path"], in_place=bool(body.get("load_inplace")))
    except ImpossibleError as error:
        return web.Response(status=400, body=error_body(400, str(error)), content_type=JSON_TYPE)
    return web.Response(text="Success")


async def _unload_adapter(request: web.Request) -> web.Response:
    engine, body = _engine_of(request), await request.json()
    if engine.adapters.pop(body["lora_name"], None) is None:
        message = f"The lora adapter '{body['lora_name']}' cannot be found."
        return web.Response(status=404, body=error_body(404, message), content_type=JSON_TYPE)
    return web.Response(text="Success")


# -- what tests do


async def _list_engines(request: web.Request) -> web.Response:
    engines = [
        {
            "namespace": engine.pod.key.namespace,
            "pod": engine.pod.key.name,
            "service": engine.pod.service,
            "variant": engine.pod.variant,
            "node": engine.pod.node,
            "state": str(engine.state),
            "inFlight": engine.in_flight,
        }
        for engine in request.app[FLEET]
    ]
    return web.json_response(engines)


async def _put_start_rules(request: web.Request) -> web.Response:
    """Body: a list of {namespace, service, slowFactor, fails, stepFactor}, each key optional; [] ends all trouble."""
    try:
        rules = [
            StartRule(
                str(rule.get("namespace", "")),
                str(rule.get("service", "")),
                float(rule.get("slowFactor", 1.0)),
                bool(rule.get("fails", False)),
                float(rule.get("stepFactor", 1.0)),
            )
            for rule in json.loads(await request.read())
        ]
    except (ValueError, TypeError, AttributeError) as error:
        raise web.HTTPBadRequest(text=f"cannot read the rules: {error!r}") from error
    request.app[FLEET].set_start_rules(rules)
    return web.json_response({"rules": len(rules)})


async def _act(request: web.Request) -> web.Response:
    engine = _engine_of(request)
    actions = {"crash": engine.crash, "hang": engine.hang, "resume": engine.resume}
    action = actions.get(request.match_info["action"])
    if action is None:
        raise web.HTTPNotFound(text=f"no such action; there are {', '.join(actions)}")
    action()
    return web.json_response({"state": str(engine.state)})
