"""What the operator, its probes and clients rely on of an engine, asked of a running one over HTTP.

docs/engine-contract.md says the same in words. Each check sends requests of its own, so a server that is asked should
have nothing else to do: cancelling is judged by the number of requests that run.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tokenservice.edge import promql

Json = dict[str, Any]

ANSWER_SECONDS = 60.0
"""A short answer may take this long; on an accelerator it is well below one second."""

CANCEL_SECONDS = 10.0
"""After the client left, the engine may go on this long."""

PROBE_SECONDS = 5.0
"""What readiness probes of the operator's pods wait."""

LONG_TOKENS = 1024
CROWD = 64
_SHORT_TOKENS = 8
_REFUSALS = (429, 503)


class Engine(StrEnum):
    VLLM = "vllm"
    SGLANG = "sglang"


class Result(StrEnum):
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table. `fix` says what to do where it failed."""

    name: str
    result: Result
    says: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was asked of one server."""

    url: str
    engine: str
    model: str
    checks: tuple[Check, ...]

    @property
    def kept(self) -> bool:
        """Whether nothing failed."""
        return all(check.result is not Result.FAILED for check in self.checks)


class BrokenError(Exception):
    """The contract is broken: what was seen, and the fix."""

    def __init__(self, says: str, fix: str) -> None:
        super().__init__(says)
        self.says, self.fix = says, fix


class NotToldError(Exception):
    """The check could not tell; the message says why."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What came of a streamed answer."""

    events: tuple[Json, ...]
    done: bool

    @property
    def usage(self) -> Json | None:
        return next((event["usage"] for event in reversed(self.events) if event.get("usage")), None)

    @property
    def finish_reason(self) -> str | None:
        reasons = (choice.get("finish_reason") for event in self.events for choice in event.get("choices", ()))
        return next((reason for reason in reasons if reason), None)


Stop = Callable[[], Awaitable[None]]
"""Sends SIGTERM to the engine."""

Gone = Callable[[], Awaitable[bool]]
"""Whether the engine's process has ended."""


async def asked(
    url: str,
    *,
    model: str | None = None,
    engine: Engine | None = None,
    stop: Stop | None = None,
    gone: Gone | None = None,
    exit_seconds: float = 60.0,
) -> Report:
    """Asks everything. `stop`, if given, is the last thing that is done to the server."""
    async with aiohttp.ClientSession() as session:
        server = Server(url.rstrip("/"), session)
        checks = [await _judged("health", server.healthy)]
        if checks[0].result is Result.FAILED:
            return Report(url, str(engine or "unknown"), model or "", tuple(checks))
        server.engine = engine
        steps: list[tuple[str, Callable[[], Awaitable[str]]]] = [
            ("models", lambda: server.models(model)),
            ("completion", server.completion),
            ("chat", server.chat),
            ("stream", server.stream),
            ("metrics", server.metrics_are_there),
            ("usage in streams", server.usage_in_streams),
            ("requests are counted", server.requests_are_counted),
            ("bad input", server.bad_input),
            ("cancel", server.cancel),
            ("overload", server.overload),
        ]
        checks += [await _judged(name, step) for name, step in steps]
        if stop is None or gone is None:
            checks.append(Check("graceful stop", Result.SKIPPED, "needs the process: --pid PID on the same machine"))
        else:
            checks.append(await _judged("graceful stop", lambda: server.graceful_stop(stop, gone, exit_seconds)))
        return Report(url, str(server.engine or "unknown"), server.model, tuple(checks))


async def _judged(name: str, step: Callable[[], Awaitable[str]]) -> Check:
    try:
        return Check(name, Result.OK, await step())
    except BrokenError as error:
        return Check(name, Result.FAILED, error.says, error.fix)
    except NotToldError as error:
        return Check(name, Result.SKIPPED, str(error))
    except TimeoutError:
        return Check(name, Result.FAILED, "no answer in time", "look at the engine's log: it listens but does not work")
    except (aiohttp.ClientError, ConnectionError) as error:
        return Check(name, Result.FAILED, f"the connection broke: {error!r}", "look at the engine's log")


class Server:
    """One engine's server."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url, session
        self.engine: Engine | None = None
        self.model = ""
        self._longest = LONG_TOKENS

    # -- the checks, each a sentence or an error

    async def healthy(self) -> str:
        """The three probes."""
        fix = "answer GET /health with 200 once the model is loaded, and with 503 or nothing before"
        try:
            status, _ = await self._get("/health", PROBE_SECONDS)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BrokenError(f"GET /health: {error!r}", fix) from error
        if status != 200:
            raise BrokenError(f"GET /health: {status}", fix)
        return "GET /health: 200"

    async def models(self, wanted: str | None) -> str:
        """Names that requests use."""
        fix = "serve the model under the name that requests use: --served-model-name"
        status, body = await self._get("/v1/models", PROBE_SECONDS)
        cards = _parsed(body).get("data") if status == 200 else None
        if not isinstance(cards, list) or not cards:
            raise BrokenError(f"GET /v1/models: {status}, no list of models", fix)
        named = {str(card.get("id")): card for card in cards}
        if wanted is not None and wanted not in named:
            raise BrokenError(f"{wanted} is not served, but {', '.join(sorted(named))}", fix)
        self.model = wanted or str(cards[0].get("id"))
        limit = named[self.model].get("max_model_len")
        self._longest = min(LONG_TOKENS, int(limit) // 2) if limit else LONG_TOKENS
        return f"serves {', '.join(sorted(named))}"

    async def completion(self) -> str:
        """A whole answer with its usage."""
        return _whole(await self._post("/v1/completions", **self._ask(_SHORT_TOKENS)), "text")

    async def chat(self) -> str:
        """A whole answer of a chat."""
        words = {**self._ask(_SHORT_TOKENS), "messages": [{"role": "user", "content": "Say something."}]}
        del words["prompt"]
        return _whole(await self._post("/v1/chat/completions", **words), "message")

    async def stream(self) -> str:
        """Server-sent events, one JSON object each, and the end mark."""
        fix = "stream as OpenAI does: `data: {JSON}` events, a finish_reason in the last choice, then `data: [DONE]`"
        found = await self._streamed(stream_options={"include_usage": True})
        if not found.done or found.finish_reason is None:
            raise BrokenError(f"{len(found.events)} events, finish_reason {found.finish_reason}, no end mark", fix)
        if found.usage is None or found.usage.get("completion_tokens") != _SHORT_TOKENS:
            raise BrokenError(f"usage at the end: {found.usage}", "send usage in the last event when it is asked for")
        return f"{len(found.events)} events, usage, end mark"

    async def usage_in_streams(self) -> str:
        """Usage of requests that did not ask for it: whoever meters sees every token."""
        if self.engine is Engine.SGLANG:
            raise NotToldError("SGLang sends usage only when it is asked for")
        found = await self._streamed()
        if found.usage is None:
            raise BrokenError(
                "no usage in a stream that did not ask for it", "start vLLM with --enable-force-include-usage"
            )
        return "usage comes unasked"

    async def metrics_are_there(self) -> str:
        """What decisions rest on, by name and type."""
        page = await self._page()
        if self.engine is None:
            spoken = [engine for engine in Engine if any(name.startswith(f"{engine}:") for name in page)]
            if len(spoken) != 1:
                fix = "export the engine's metrics at /metrics; SGLang: --enable-metrics"
                raise BrokenError(f"metrics of {len(spoken)} engines at /metrics", fix)
            self.engine = spoken[0]
        wanted = names(self.engine)
        wrong = [
            f"{name} is {page.get(name, 'absent')}, not {kind}"
            for name, kind in wanted.items()
            if page.get(name) != kind
        ]
        if wrong:
            fix = "use the version that docs/engines.md names, with its metrics switched on"
            raise BrokenError("; ".join(wrong), fix)
        return f"{len(wanted)} families of {self.engine}, by name and type"

    async def requests_are_counted(self) -> str:
        """First tokens and output tokens rise with requests, under the name of the model."""
        before = await self._counted()
        await self._post("/v1/completions", **self._ask(_SHORT_TOKENS))
        after = await self._until(lambda now: now[1] >= before[1] + _SHORT_TOKENS, self._counted, PROBE_SECONDS)
        if after[0] <= before[0] or after[1] < before[1] + _SHORT_TOKENS:
            says = f"one request of {_SHORT_TOKENS} tokens: first tokens {before[0]:g} -> {after[0]:g}, "
            says += f"output tokens {before[1]:g} -> {after[1]:g}, model_name {self.model}"
            raise BrokenError(says, "count every request under model_name, the name that requests use")
        return f"one request: {after[0] - before[0]:g} first token, {after[1] - before[1]:g} output tokens"

    async def bad_input(self) -> str:
        """Mistakes of clients are told to them, and harm nobody else."""
        sane = self._ask(_SHORT_TOKENS)
        tried = {
            "no JSON": await self._status("/v1/completions", data="{"),
            "unknown model": await self._status("/v1/completions", json={**sane, "model": "no/such-model"}),
            "no tokens asked for": await self._status("/v1/completions", json={**sane, "max_tokens": -1}),
            "beyond the context": await self._status("/v1/completions", json={**sane, "max_tokens": 10**9}),
            "no such path": await self._status("/v1/no-such-path", json=sane),
        }
        wrong = [f"{what}: {status}" for what, status in tried.items() if not 400 <= status < 500]
        if self.engine is Engine.SGLANG:  # it serves whatever it has, and shortens what is too long
            wrong = [one for one in wrong if not one.startswith(("unknown model", "beyond the context"))]
        if wrong:
            raise BrokenError("; ".join(wrong), "answer what a client did wrong with 400 to 499")
        await self.healthy()
        return ", ".join(f"{what}: {status}" for what, status in tried.items())

    async def cancel(self) -> str:
        """A client that leaves frees its place in the batch."""
        before = await self._running()
        async with self._session.post(
            self._url + "/v1/completions", json=self._ask(self._longest, stream=True)
        ) as response:
            await response.content.readany()
            running = await self._running()
            if running <= before:
                raise NotToldError(f"the answer of {self._longest} tokens was over before it could be cancelled")
        started = time.monotonic()
        left = await self._until(lambda now: now <= before, self._running, CANCEL_SECONDS)
        if left > before:
            fix = "abort a request when its connection closes"
            raise BrokenError(f"{left:g} requests still run {CANCEL_SECONDS:g} s after their client left", fix)
        return f"over {time.monotonic() - started:.1f} s after its client left"

    async def overload(self) -> str:
        """More requests than run at once: each is answered or refused, none is dropped."""
        asks = (self._status("/v1/completions", json=self._ask(_SHORT_TOKENS)) for _ in range(CROWD))
        answers = await asyncio.gather(*asks, return_exceptions=True)
        statuses = [answer for answer in answers if isinstance(answer, int)]
        answered = sum(status == 200 for status in statuses)
        refused = sum(status in _REFUSALS for status in statuses)
        if answered + refused < CROWD or not answered:
            says = f"of {CROWD} requests at once {answered} were answered, {refused} refused, the others lost"
            raise BrokenError(says, "queue what does not fit, or refuse it with 429 or 503")
        await self.healthy()
        return f"{CROWD} at once: {answered} answered, {refused} refused"

    async def graceful_stop(self, stop: Stop, gone: Gone, exit_seconds: float) -> str:
        """SIGTERM: what runs finishes, then the process ends."""
        fix = "finish what runs at SIGTERM; vLLM: --shutdown-timeout SECONDS"
        ask = self._ask(self._longest, stream=True, stream_options={"include_usage": True})
        async with self._session.post(self._url + "/v1/completions", json=ask) as response:
            first = await response.content.readany()
            if b"[DONE]" in first:
                raise NotToldError(f"the answer of {self._longest} tokens was over before the engine was stopped")
            await stop()
            try:
                found = _events(first + await response.read())
            except (aiohttp.ClientError, ConnectionError) as error:
                raise BrokenError(f"SIGTERM cut an answer that was on its way: {error!r}", fix) from error
        tokens = (found.usage or {}).get("completion_tokens")
        if not found.done or tokens != self._longest:
            raise BrokenError(f"SIGTERM ended an answer after {tokens} of {self._longest} tokens", fix)
        if not await self._until(bool, gone, exit_seconds):
            raise BrokenError(
                f"still there {exit_seconds:g} s after its last answer", "exit when nothing runs any more"
            )
        return f"an answer of {tokens} tokens finished after SIGTERM, then the process ended"

    # -- requests

    def _ask(self, tokens: int, **further: Any) -> Json:
        return {
            "model": self.model,
            "prompt": "The quick brown fox",
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            **further,
        }

    async def _get(self, path: str, seconds: float) -> tuple[int, str]:
        async with asyncio.timeout(seconds), self._session.get(self._url + path) as response:
            return response.status, await response.text()

    async def _post(self, path: str, **body: Any) -> Json:
        async with asyncio.timeout(ANSWER_SECONDS), self._session.post(self._url + path, json=body) as response:
            text = await response.text()
        if response.status != 200:
            raise BrokenError(f"POST {path}: {response.status} {text[:200]}", f"answer POST {path} as OpenAI does")
        return _parsed(text)

    async def _status(self, path: str, **given: Any) -> int:
        headers = {"Content-Type": "application/json"}
        async with (
            asyncio.timeout(ANSWER_SECONDS),
            self._session.post(self._url + path, headers=headers, **given) as response,
        ):
            await response.read()
            return response.status

    async def _streamed(self, **further: Any) -> Stream:
        ask = self._ask(_SHORT_TOKENS, stream=True, **further)
        async with (
            asyncio.timeout(ANSWER_SECONDS),
            self._session.post(self._url + "/v1/completions", json=ask) as response,
        ):
            kind = response.headers.get("Content-Type", "")
            if not kind.startswith("text/event-stream"):
                raise BrokenError(f"a stream came as {kind}", "stream as text/event-stream")
            return _events(await response.read())

    # -- metrics

    async def _page(self) -> dict[str, str]:
        """Type of each family, by the name that its samples have in queries."""
        return {_full_name(family.name, family.type): family.type for family in await self._families()}

    async def _families(self) -> list[Any]:
        status, text = await self._get("/metrics", PROBE_SECONDS)
        if status != 200:
            fix = "export metrics at /metrics; SGLang: --enable-metrics"
            raise BrokenError(f"GET /metrics: {status}", fix)
        return list(text_string_to_metric_families(text))

    async def _sum(self, *samples: str) -> float:
        return sum(
            float(sample.value)
            for family in await self._families()
            for sample in family.samples
            if sample.name in samples and sample.labels.get("model_name") == self.model
        )

    async def _running(self) -> float:
        return await self._sum(f"vllm:{promql.RUNNING.vllm}", f"sglang:{promql.RUNNING.sglang}")

    async def _counted(self) -> tuple[float, float]:
        """First tokens and output tokens so far."""
        first = await self._sum(f"vllm:{promql.TTFT.vllm}_count", f"sglang:{promql.TTFT.sglang}_count")
        return first, await self._sum(f"vllm:{promql.OUTPUT_TOKENS.vllm}", f"sglang:{promql.OUTPUT_TOKENS.sglang}")

    async def _until(self, what: Callable[[Any], bool], look: Callable[[], Awaitable[Any]], seconds: float) -> Any:
        """The first look that is as wanted, or the last one in time."""
        end = time.monotonic() + seconds
        while not what(seen := await look()) and time.monotonic() < end:  # noqa: ASYNC110 - a server has no events
            await asyncio.sleep(0.1)
        return seen


def names(engine: Engine) -> dict[str, str]:
    """Families that the operator's queries read, and their types."""
    kinds = {
        promql.RUNNING: "gauge",
        promql.WAITING: "gauge",
        promql.KV_USAGE: "gauge",
        promql.PROMPT_TOKENS: "counter",
        promql.OUTPUT_TOKENS: "counter",
        promql.CACHED_TOKENS: "counter",
        promql.LOOKED_UP_TOKENS: "counter",
        promql.PROMPT_LENGTH: "histogram",
        promql.OUTPUT_LENGTH: "histogram",
        promql.TTFT: "histogram",
        promql.TPOT: "histogram",
    }
    if engine is Engine.SGLANG:
        del kinds[promql.CACHED_TOKENS]  # it shows itself with the first hit, and not before
    return {f"{engine}:{getattr(dialect, engine.value)}": kind for dialect, kind in kinds.items()}


def _full_name(family: str, kind: str) -> str:
    """The parser takes `_total` off counters."""
    return f"{family}_total" if kind == "counter" else family


def _whole(answer: Json, content: str) -> str:
    fix = "answer with choices[0], its finish_reason, and usage of prompt_tokens, completion_tokens and total_tokens"
    choice = (answer.get("choices") or [{}])[0]
    usage = answer.get("usage") or {}
    counts = [int(usage.get(name, -1)) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    if content not in choice or not choice.get("finish_reason") or min(counts) < 0:
        raise BrokenError(f"choice {sorted(choice)}, usage {usage}", fix)
    if counts[0] + counts[1] != counts[2] or counts[1] != _SHORT_TOKENS:
        raise BrokenError(f"{_SHORT_TOKENS} tokens were asked for, usage says {usage}", fix)
    return f"{counts[0]} tokens in, {counts[1]} out"


def _events(body: bytes) -> Stream:
    lines = [line.removeprefix("data:").strip() for line in body.decode().splitlines() if line.startswith("data:")]
    return Stream(tuple(_parsed(line) for line in lines if line != "[DONE]"), "[DONE]" in lines[-1:])


def _parsed(text: str) -> Json:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BrokenError(f"no JSON: {text[:100]!r}", "answer with JSON") from error
    return found if isinstance(found, dict) else {}
