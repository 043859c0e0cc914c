"""The load generator: sends each request when it is due to a ready endpoint of its Service, and counts the answers.

Open loop: a late answer delays nothing. Times to first and last token are the engine's own (`engine_times`), so a
busy event loop here or there does not show up as latency; what the client adds is the wait for an endpoint and the
attempts that failed.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from e2e.engines.openai import PROMPT_TOKENS_HEADER
from e2e.load.account import Account, Objectives, Outcome, Result
from e2e.load.endpoints import Endpoints, ServiceKey
from e2e.load.trace import Arrival

ATTEMPTS = 2
_REFUSALS = (404, 429, 502, 503)  # no such pod, full, no process, not ready
_DATA = b"data: "
_DONE = b"data: [DONE]"


@dataclass(frozen=True, slots=True)
class Target:
    """A service as the client knows it: its Kubernetes Service, the model name it serves, and what it promises."""

    service: ServiceKey
    model: str
    objectives: Objectives


class _UnavailableError(Exception):
    """An endpoint did not take the request, so another one may."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome


class _BrokenError(Exception):
    """The connection ended before the answer did, after `delivered` tokens."""

    def __init__(self, delivered: int) -> None:
        self.delivered = delivered


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the engine said of itself: seconds from the request's arrival there to first and last token."""

    delivered: int
    first_token_s: float
    last_token_s: float


@dataclass(frozen=True, slots=True)
class _Try:
    """How the attempts went, the last of them sent at `sent_s`."""

    outcome: Outcome
    pod: str
    attempts: int
    sent_s: float
    delivered: int = 0
    answer: _Answer | None = None


class LoadGenerator:
    """Sends traffic to the engines behind `farm_url`; one instance per phase, its accounts start at zero.

    A request with no ready endpoint waits up to `max_wait_seconds` for one and is missed after that. `on_result` is
    called with every request that is over.
    """

    def __init__(
        self,
        farm_url: str,
        targets: Mapping[str, Target],
        endpoints: Endpoints,
        *,
        max_wait_seconds: float = 10.0,
        on_result: Callable[[Result], None] | None = None,
        seed: int = 0,
    ) -> None:
        self.accounts = {name: Account(target.objectives) for name, target in targets.items()}
        self.worst_lag_s = 0.0
        """How late the generator itself ever was: more than a few 10 ms means that this machine is too slow."""
        self._farm_url = farm_url
        self._targets = targets
        self._endpoints = endpoints
        self._max_wait_seconds = max_wait_seconds
        self._on_result = on_result
        self._random = random.Random(seed)
        self._outstanding: dict[tuple[str, str], int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, arrivals: Sequence[Arrival]) -> None:
        """Send everything, its clock starting now, and return when the last request is over."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=30)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        async with aiohttp.ClientSession(self._farm_url, connector=connector, timeout=timeout) as session:
            try:
                await self._send_all(session, arrivals)
                await asyncio.gather(*self._tasks)
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _send_all(self, session: aiohttp.ClientSession, arrivals: Sequence[Arrival]) -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        for arrival in arrivals:
            due_s = start_s + arrival.at_s
            if (ahead_s := due_s - loop.time()) > 0:
                await asyncio.sleep(ahead_s)
            self.worst_lag_s = max(self.worst_lag_s, loop.time() - due_s)
            task = loop.create_task(self._serve(session, arrival))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, session: aiohttp.ClientSession, arrival: Arrival) -> None:
        loop = asyncio.get_running_loop()
        account = self.accounts[arrival.service]
        arrived_s, arrived_epoch_s = loop.time(), time.time()
        account.count_arrival(arrival.output_tokens, arrived_s)
        tried = await self._try(session, arrival)
        ttft_s = tpot_s = None
        if (answer := tried.answer) is not None:
            ttft_s = tried.sent_s - arrived_s + answer.first_token_s
            tpot_s = (answer.last_token_s - answer.first_token_s) / max(1, answer.delivered - 1)
        result = Result(
            service=arrival.service,
            arrived_epoch_s=arrived_epoch_s,
            outcome=tried.outcome,
            input_tokens=arrival.input_tokens,
            output_tokens=arrival.output_tokens,
            delivered_tokens=tried.delivered,
            attempts=tried.attempts,
            pod=tried.pod,
            ttft_s=ttft_s,
            tpot_s=tpot_s,
            e2e_s=loop.time() - arrived_s,
            met=account.objectives.are_met(ttft_s, tpot_s),
        )
        account.count(result, loop.time())
        if self._on_result is not None:
            self._on_result(result)

    async def _try(self, session: aiohttp.ClientSession, arrival: Arrival) -> _Try:
        target = self._targets[arrival.service]
        so_far = _Try(Outcome.MISSED, "", 0, asyncio.get_running_loop().time())
        while so_far.attempts < ATTEMPTS and (pod := await self._pick(target.service, so_far.pod)) is not None:
            so_far = await self._attempt(session, target, pod, arrival, so_far.attempts + 1)
            if so_far.outcome not in (Outcome.REFUSED, Outcome.FAILED):
                break
        return so_far

    async def _attempt(
        self, session: aiohttp.ClientSession, target: Target, pod: str, arrival: Arrival, number: int
    ) -> _Try:
        key = (target.service.namespace, pod)
        self._outstanding[key] = self._outstanding.get(key, 0) + 1
        sent_s = asyncio.get_running_loop().time()
        try:
            answer = await _ask(session, target, pod, arrival)
        except _UnavailableError as error:
            return _Try(error.outcome, pod, number, sent_s)
        except _BrokenError as error:
            return _Try(Outcome.CUT, pod, number, sent_s, error.delivered)
        finally:
            self._outstanding[key] -= 1
        return _Try(Outcome.OK, pod, number, sent_s, answer.delivered, answer)

    async def _pick(self, service: ServiceKey, tried: str) -> str | None:
        """The less busy of two random ready endpoints, if possible not the one that was tried already."""
        if not self._endpoints.ready(service):
            try:
                await asyncio.wait_for(self._endpoints.wait_ready(service), self._max_wait_seconds)
            except TimeoutError:
                return None
        ready = self._endpoints.ready(service)
        others = [pod for pod in ready if pod != tried] or list(ready)
        if not others:
            return None
        two = self._random.sample(others, 2) if len(others) > 1 else others
        return min(two, key=lambda pod: self._outstanding.get((service.namespace, pod), 0))


async def _ask(session: aiohttp.ClientSession, target: Target, pod: str, arrival: Arrival) -> _Answer:
    """One attempt. Raises _UnavailableError before the engine took the request, _BrokenError afterwards."""
    body = (
        f'{{"model":{json.dumps(target.model)},"prompt":"","max_tokens":{arrival.output_tokens},"ignore_eos":true,'
        f'"stream":true,"stream_options":{{"include_usage":true}}}}'
    )
    headers = {"Content-Type": "application/json", PROMPT_TOKENS_HEADER: str(arrival.input_tokens)}
    path = f"/pods/{target.service.namespace}/{pod}/v1/completions"
    try:
        async with session.post(path, data=body, headers=headers) as response:
            if response.status in _REFUSALS:
                raise _UnavailableError(Outcome.REFUSED)
            if response.status != 200:
                raise _UnavailableError(Outcome.FAILED)
            return await _read(response)
    except aiohttp.ClientConnectorError as error:
        raise _UnavailableError(Outcome.FAILED) from error
    except (aiohttp.ClientError, OSError) as error:
        raise _BrokenError(0) from error


async def _read(response: aiohttp.ClientResponse) -> _Answer:
    delivered = 0
    answer: _Answer | None = None
    rest = b""
    try:
        async for data in response.content.iter_any():
            *events, rest = (rest + data).split(b"\n\n")
            for event in events:
                if event == _DONE:
                    continue
                said = json.loads(event.removeprefix(_DATA))
                delivered += said.get("tokens", 0)
                if (times := said.get("engine_times")) is not None:
                    answer = _Answer(delivered, times["first_token_ms"] / 1000, times["last_token_ms"] / 1000)
    except (aiohttp.ClientError, OSError) as error:
        raise _BrokenError(delivered) from error
    if answer is None:
        raise _BrokenError(delivered)
    return answer
