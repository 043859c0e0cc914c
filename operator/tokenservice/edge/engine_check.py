"""Whether a server keeps what the operator counts on: the engine contract, asked of a running engine.

Each check sends real requests and looks at what a client, a kubelet or Prometheus would see. They run one after the
other, on an engine that nobody else uses meanwhile; docs/engine-contract.md says why each of them matters.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tokenservice.edge import promql

Json = dict[str, Any]

_PATIENCE_SECONDS = 15.0
"""How long a figure may take to show what happened; engines count once a step, and log once in a while."""

_POLL_SECONDS = 0.25

_TYPES: tuple[tuple[str, tuple[promql.Dialects, ...]], ...] = (
    ("gauge", (promql.RUNNING, promql.WAITING, promql.KV_USAGE)),
    ("counter", (promql.PROMPT_TOKENS, promql.OUTPUT_TOKENS, promql.CACHED_TOKENS, promql.LOOKED_UP_TOKENS)),
    ("histogram", (promql.PROMPT_LENGTH, promql.OUTPUT_LENGTH, promql.TTFT, promql.TPOT)),
)
"""Every family that a round of PromQL reads, by the type that its functions need."""

_LATE = (promql.CACHED_TOKENS,)
"""SGLang shows it once something was found in the cache."""


class Broken(Exception):  # noqa: N818 - says what was found, as a Problem does
    """The contract is not kept: what was seen, and what to do."""

    def __init__(self, seen: str, fix: str) -> None:
        super().__init__(seen)
        self.seen, self.fix = seen, fix


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one check found; `kept` is None where it could not be tried."""

    name: str
    kept: bool | None
    seen: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """The engine under test. `stop` tells it to end as a kubelet would; without it that is not tried."""

    url: str
    session: aiohttp.ClientSession
    dialect: str
    model: str
    longest: int | None
    requests_at_once: int = 64
    stop: Callable[[], None] | None = None

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.text()

    async def post(self, body: Json | str, path: str = "/v1/completions") -> tuple[int, str]:
        data = body if isinstance(body, str) else json.dumps({"model": self.model, **body})
        async with self.session.post(
            self.url + path, data=data, headers={"Content-Type": "application/json"}
        ) as response:
            return response.status, await response.text()

    async def events(self, body: Json) -> AsyncGenerator[str]:
        """The data of each server-sent event of a streamed completion, the end mark included."""
        whole = json.dumps({"model": self.model, "stream": True, **body})
        async with self.session.post(
            self.url + "/v1/completions", data=whole, headers={"Content-Type": "application/json"}
        ) as response:
            if response.status != 200:
                said = (await response.text())[:200]
                raise Broken(f"a streamed completion was answered {response.status}: {said}", "see the engine's log")
            async for line in response.content:
                if line.startswith(b"data:"):
                    yield line.removeprefix(b"data:").strip().decode()

    async def samples(self) -> dict[str, float]:
        """Metrics by name, summed over their series."""
        _, page = await self.get("/metrics")
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found

    def named(self, figure: promql.Dialects) -> str:
        """`vllm:num_requests_running`."""
        return self.names(figure)[0]

    def names(self, figure: promql.Dialects) -> tuple[str, ...]:
        """All that it may be called, the name of today first."""
        names = (figure.vllm,) if self.dialect == "vllm" else filter(None, (figure.sglang, figure.before))
        return tuple(f"{self.dialect}:{name}" for name in names)


Check = Callable[[Subject], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Why nothing could be asked."""

    message: str


@dataclass(slots=True)
class Report:
    """All outcomes, in order."""

    engine: str = ""
    model: str = ""
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        return all(outcome.kept is not False for outcome in self.outcomes)


async def check(
    url: str,
    *,
    model: str | None = None,
    stop: Callable[[], None] | None = None,
    requests_at_once: int = 64,
    told: Callable[[Outcome], None] = lambda _: None,
) -> Report | Unreachable:
    """Asks everything of the engine at `url`; `told` hears each outcome as it is found."""
    limit = aiohttp.ClientTimeout(total=300, connect=10)
    async with aiohttp.ClientSession(timeout=limit, connector=aiohttp.TCPConnector(limit=0)) as session:
        found = await _subject(url.rstrip("/"), session, model)
        if isinstance(found, Unreachable):
            return found
        report = Report(found.dialect, found.model)
        subject = Subject(
            found.url, session, found.dialect, found.model, found.longest, requests_at_once=requests_at_once, stop=stop
        )
        for name, asked in CHECKS:
            outcome = await _outcome(name, asked, subject)
            report.outcomes.append(outcome)
            told(outcome)
        return report


async def _subject(url: str, session: aiohttp.ClientSession, model: str | None) -> Subject | Unreachable:
    try:
        async with session.get(url + "/metrics") as response:
            page = await response.text()
        async with session.get(url + "/v1/models") as response:
            longest = {card["id"]: card.get("max_model_len") for card in (await response.json())["data"]}
    except aiohttp.ClientConnectorError as error:
        return Unreachable(f"{url} cannot be reached: {error.strerror or error.os_error}")
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        return Unreachable(f"{url}: no engine answers /metrics and /v1/models there ({error!r})")
    dialect = next((name for name in ("vllm", "sglang") if f"{name}:" in page), None)
    if dialect is None:
        return Unreachable(f"{url}/metrics has neither vllm: nor sglang: metrics; SGLang needs --enable-metrics")
    served = next((name for name in longest if model in (None, name)), None)
    if served is None:
        return Unreachable(f"{url} serves {', '.join(longest) or 'no model'}, and not {model or 'any'}: see --model")
    return Subject(url, session, dialect, served, longest[served])


async def _outcome(name: str, asked: Check, subject: Subject) -> Outcome:
    try:
        return Outcome(name, True, await asked(subject))
    except Broken as broken:
        return Outcome(name, False, broken.seen, broken.fix)
    except NotTried as reason:
        return Outcome(name, None, str(reason))
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, IndexError) as error:
        return Outcome(name, False, f"the exchange broke off: {error!r}", "see the engine's log")


class NotTried(Exception):  # noqa: N818
    """A check that needs what was not given."""


# --- The checks ----------------------------------------------------------------------------------------------------


async def health(subject: Subject) -> str:
    """Probes ask /health; 200 means that requests may come."""
    status, _ = await subject.get("/health")
    if status != 200:
        raise Broken(f"/health answers {status}", "all three probes ask /health; it must be 200 once requests may come")
    return "200"


async def metric_names(subject: Subject) -> str:
    """Whatever the operator's queries read is there, by name and type."""
    await subject.post({"prompt": "warm", "max_tokens": 2})
    _, page = await subject.get("/metrics")
    types = {family.name: family.type for family in text_string_to_metric_families(page)}
    wrong = []
    for kind, figures in _TYPES:
        for figure in figures:
            names = subject.names(figure)
            seen = next(
                filter(None, (types.get(name) or types.get(name.removesuffix("_total")) for name in names)), None
            )
            fine = seen == kind or (seen is None and figure in _LATE)
            wrong += [] if fine else [f"{names[0]} is {seen or 'absent'}, not a {kind}"]
    if wrong:
        fix = "metering would be blind to these: use a version of the engine that has them (docs/engines.md, Metrics)"
        raise Broken("; ".join(dict.fromkeys(wrong)), fix)
    return f"{sum(len(figures) for _, figures in _TYPES)} families"


async def completion(subject: Subject) -> str:
    """A whole answer carries its usage, and the metrics count the same tokens."""
    before = await subject.samples()
    status, said = await subject.post({"prompt": "one two three four", "max_tokens": 16, "ignore_eos": True})
    if status != 200:
        raise Broken(f"a completion was answered {status}: {said[:200]}", "see the engine's log")
    usage = json.loads(said)["usage"]
    if usage["completion_tokens"] != 16:
        raise Broken(f"{usage['completion_tokens']} tokens came, 16 were asked for", "ignore_eos must be obeyed")
    grown = {promql.PROMPT_TOKENS: usage["prompt_tokens"], promql.OUTPUT_TOKENS: 16}
    for figure, tokens in grown.items():
        name = subject.named(figure)
        seen = await _grown(subject, name, before.get(name, 0.0), tokens)
        if seen != tokens:
            raise Broken(
                f"{name} grew by {seen:g}, the answer says {tokens}", "is the engine used by others meanwhile?"
            )
    return f"usage {usage['prompt_tokens']} + 16, counted alike"


async def stream(subject: Subject) -> str:
    """A streamed answer comes in pieces, and ends with usage and the end mark."""
    body = {"prompt": "one two", "max_tokens": 24, "ignore_eos": True, "stream_options": {"include_usage": True}}
    events = [event async for event in subject.events(body)]
    if not events or events[-1] != "[DONE]":
        raise Broken("a stream ended without `data: [DONE]`", "clients take such an answer for cut")
    pieces = [json.loads(event) for event in events[:-1]]
    usages = [piece["usage"] for piece in pieces if piece.get("usage")]
    if not usages or usages[-1]["completion_tokens"] != 24:
        raise Broken("a stream with include_usage has no usage at its end", "tokens could not be metered by clients")
    if len(pieces) < 3:
        raise Broken(f"24 tokens came in {len(pieces)} pieces", "answers are held back: is something buffering?")
    return f"{len(pieces)} pieces, usage, [DONE]"


async def cancel(subject: Subject) -> str:
    """A client that hangs up frees its place."""
    body = {"prompt": "one", "max_tokens": _long(subject), "ignore_eos": True}
    running = subject.named(promql.RUNNING)
    async with aclosing(subject.events(body)) as events:
        async for _ in events:
            break
    left = await _until(subject, running, lambda value: value == 0)
    if left != 0:
        raise Broken(f"{running} is {left:g} after the only client left", "requests of clients that left keep running")
    return f"{running} is 0 again"


async def bad_input(subject: Subject) -> str:
    """Nonsense is answered 4xx with a message, and harms nothing."""
    cases: dict[str, Json | str] = {
        "broken JSON": "{",
        "max_tokens -1": {"prompt": "x", "max_tokens": -1},
        "no prompt": {"max_tokens": 1},
    }
    if subject.longest is not None:
        cases["a prompt beyond the context"] = {"prompt": [1] * (subject.longest + 1), "max_tokens": 1}
    for name, body in cases.items():
        status, said = await subject.post(body)
        if not 400 <= status < 500:
            raise Broken(f"{name} was answered {status}", "what a client did wrong must be a 4xx, or it will try again")
        if not said.strip():
            raise Broken(f"{name} was answered {status} without a word", "an error must say what was wrong")
    await health(subject)
    return f"{len(cases)} kinds, each 4xx with a message"


async def overload(subject: Subject) -> str:
    """More requests than usual are all answered: served, or refused with 429 or 503."""
    body: Json = {"prompt": "one two three", "max_tokens": 8, "ignore_eos": True}
    answers = await asyncio.gather(*(subject.post(body) for _ in range(subject.requests_at_once)))
    odd = sorted({status for status, _ in answers} - {200, 429, 503})
    if odd:
        raise Broken(f"answers were {', '.join(map(str, odd))}", "too much load must be 429 or 503, or wait")
    served = sum(status == 200 for status, _ in answers)
    waiting = subject.named(promql.WAITING)
    if (left := await _until(subject, waiting, lambda value: value == 0)) != 0:
        raise Broken(f"{waiting} is {left:g} when nothing is asked", "scaling would see a queue that is not there")
    return f"{served} of {subject.requests_at_once} at once served, none lost"


async def stop(subject: Subject) -> str:
    """Told to stop, it finishes what it has and takes nothing new."""
    if subject.stop is None:
        raise NotTried("needs the engine's process (--pid)")
    body = {"prompt": "one", "max_tokens": _long(subject), "ignore_eos": True}
    last, count = "", 0
    async for event in subject.events(body):
        if count == 0:
            subject.stop()
        last, count = event, count + 1
    if last != "[DONE]":
        raise Broken(f"a stream was cut after {count} pieces", "vLLM needs --shutdown-timeout above 0")
    if not await _gone(subject):
        raise Broken("it still takes requests after it was told to stop", "its pod would be killed with what it took")
    return f"the stream that ran came to its end ({count} pieces); nothing new is taken"


CHECKS: tuple[tuple[str, Check], ...] = (
    ("health", health),
    ("metrics", metric_names),
    ("completion", completion),
    ("stream", stream),
    ("cancel", cancel),
    ("bad input", bad_input),
    ("overload", overload),
    ("graceful stop", stop),  # last: nothing answers after it
)


# --- How they look -------------------------------------------------------------------------------------------------


def _long(subject: Subject) -> int:
    """Tokens that take a while, within the context."""
    return min(1000, (subject.longest or 1024) // 2)


async def _grown(subject: Subject, name: str, before: float, wanted: float) -> float:
    return await _until(subject, name, lambda value: value - before >= wanted) - before


async def _until(subject: Subject, name: str, enough: Callable[[float], bool]) -> float:
    """A figure once it is `enough`, else as it is when patience ends."""
    until = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
    while True:
        value = (await subject.samples()).get(name, 0.0)
        if enough(value) or asyncio.get_running_loop().time() > until:
            return value
        await asyncio.sleep(_POLL_SECONDS)


async def _gone(subject: Subject) -> bool:
    """Whether a new request is refused before patience ends."""
    until = asyncio.get_running_loop().time() + _PATIENCE_SECONDS
    while asyncio.get_running_loop().time() < until:
        try:
            status, _ = await subject.post({"prompt": "one", "max_tokens": 1})
        except aiohttp.ClientError:
            return True
        if status in (502, 503):
            return True
        await asyncio.sleep(_POLL_SECONDS)
    return False
