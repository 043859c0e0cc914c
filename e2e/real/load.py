"""Real requests at a steady rate, and the books: what became of each, by the phase in which it was sent.

Open loop: a late answer delays nothing. Every request is a streamed completion over a connection of its own to the
Service's cluster address, so kube-proxy chooses the replica and nothing here knows of pods. Nothing is tried twice.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

import aiohttp

from e2e.load.account import Account, Objectives, Outcome, Result

REQUEST_SECONDS = 300.0
_DATA = b"data: "
_DONE = b"data: [DONE]"


@dataclass(slots=True)
class Phase:
    """Requests sent while the phase lasted, in the books of every load here; each ends, some after the phase.

    Answered, failed (no token came: refused, an error status, or no answer in time), or cut (tokens came and ended
    early).
    """

    name: str
    account: Account = field(default_factory=lambda: Account(_ANY))
    seconds: float = 0.0
    first_token_seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        return self.account.arrived

    @property
    def answered(self) -> int:
        return self.account.outcomes[Outcome.OK]

    @property
    def failed(self) -> int:
        return self.account.outcomes[Outcome.FAILED]

    @property
    def cut(self) -> int:
        return self.account.outcomes[Outcome.CUT]

    @property
    def tokens(self) -> int:
        return self.account.delivered_output_tokens

    @property
    def in_flight(self) -> int:
        return self.account.in_flight

    @property
    def lost(self) -> int:
        return self.account.finished - self.answered


_ANY = Objectives(inf, inf)
"""How fast an answer comes is not promised here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked: a prompt of so many bytes (a token each), and the length of the answer.

    While fewer than `busy` requests are under way, `longer_tokens` are asked for: no engine stands idle on a machine
    that has nothing else to do, and one that is slow with other work is asked for no more.
    """

    url: str
    model: str
    prompt_tokens: int = 64
    output_tokens: int = 256
    busy: int = 0
    longer_tokens: int = 0

    def among(self, in_flight: int) -> Question:
        """The same, of the length that is right beside so many others."""
        return replace(self, output_tokens=self.longer_tokens) if in_flight < self.busy else self

    def body(self, number: int) -> bytes:
        """Prompts differ from the first token on, so that no cache answers for the engine."""
        prompt = f"{number:08} " + "x" * (self.prompt_tokens - 9)
        asked: dict[str, Any] = {"model": self.model, "prompt": prompt, "max_tokens": self.output_tokens}
        return json.dumps(asked | {"ignore_eos": True, "temperature": 0, "stream": True}).encode()


class Load:
    """A thread that sends; phase, rate and question may be changed while it runs."""

    def __init__(self, question: Question) -> None:
        self.phases: list[Phase] = []
        self.rate = 0.0
        """Requests a second; 0 sends nothing."""
        self.question = question
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="load", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._began = 0.0
        self._stopping = False
        self._sending: Future[None] | None = None

    def start(self, name: str, rate: float) -> None:
        """The first phase."""
        self.phase(name, rate)
        self._thread.start()
        self._sending = asyncio.run_coroutine_threadsafe(self._send(), self._loop)

    def phase(self, name: str, rate: float) -> Phase:
        """What is sent from now on counts there."""
        now = time.monotonic()
        if self.phases:
            self.phases[-1].seconds = now - self._began
        self._began, self.rate = now, rate
        self.phases.append(Phase(name))
        return self.phases[-1]

    def stop(self) -> None:
        """Sends nothing more, and waits for what is under way."""
        self._stopping = True
        self.phases[-1].seconds = time.monotonic() - self._began
        if self._sending is not None:
            self._sending.result(timeout=REQUEST_SECONDS + 60)
        self._end()

    def abandon(self) -> None:
        """Sends nothing more and waits for nothing; the books are worth nothing then."""
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop).result(timeout=10)
        self._end()

    async def _cancel(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _send(self) -> None:
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=10)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            due = self._loop.time()
            for number in itertools.count():
                if self._stopping:
                    break
                if self.rate > 0:
                    self._launch(session, number)
                due = max(due + 1.0 / (self.rate or 10.0), self._loop.time() - 1.0)
                await asyncio.sleep(max(0.0, due - self._loop.time()))
            await asyncio.gather(*self._tasks)

    def _launch(self, session: aiohttp.ClientSession, number: int) -> None:
        phase, question = self.phases[-1], self.question.among(len(self._tasks))
        phase.account.count_arrival(question.output_tokens, self._loop.time())
        task = self._loop.create_task(ask(session, question, number, phase))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def ask(session: aiohttp.ClientSession, question: Question, number: int, phase: Phase) -> None:
    """One request, from its connection to its last token, entered in the phase's books."""
    arrived, began, tokens, first, outcome = time.time(), time.monotonic(), 0, None, Outcome.OK
    try:
        async for _ in _events(session, question, number):
            tokens += 1
            if first is None:
                first = time.monotonic() - began
                phase.first_token_seconds.append(first)
        if tokens == 0:
            raise aiohttp.ClientError("an answer without a token")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        phase.errors.append(f"request {number} after {time.monotonic() - began:.1f} s, {tokens} events: {error!r}")
        outcome = Outcome.CUT if tokens else Outcome.FAILED
    phase.account.count(
        Result(
            service=question.model,
            arrived_epoch_s=arrived,
            outcome=outcome,
            input_tokens=question.prompt_tokens,
            output_tokens=question.output_tokens,
            delivered_tokens=tokens,
            attempts=1,
            pod="",
            ttft_s=first,
            tpot_s=None,
            e2e_s=time.monotonic() - began,
            met=outcome is Outcome.OK,
        ),
        time.monotonic(),
    )


async def _events(session: aiohttp.ClientSession, question: Question, number: int) -> AsyncIterator[Any]:
    """The events of an answer that carry tokens. Raises ClientError where it is refused or ends early."""
    async with session.post(f"{question.url}/v1/completions", data=question.body(number), headers=_JSON) as answer:
        if answer.status != 200:
            raise aiohttp.ClientError(f"status {answer.status}: {(await answer.text())[:200]}")
        async for line in answer.content:
            if line.startswith(_DONE):
                return
            if line.startswith(_DATA):
                event = json.loads(line[len(_DATA) :])
                if "error" in event:
                    raise aiohttp.ClientError(f"the engine says: {event['error']}")
                if event.get("choices"):
                    yield event
        raise aiohttp.ClientError("the stream ended without its last event")


_JSON = {"Content-Type": "application/json"}
