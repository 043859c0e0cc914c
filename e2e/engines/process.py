"""An engine process at work: requests in, groups of tokens out, on a simulated engine and a real clock.

Nothing here opens a socket. Time comes from `Timers` (an asyncio loop is one) and the outcome of a request goes to
its `Stream`; tests pass plain objects for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from e2e.engines.contract import Profile
from e2e.engines.metrics import EngineMetrics, Load, Timing
from tokenservice.simulate.engine import Engine, EngineLimits, Finished, FirstToken, Request, RequestId

FLUSH_SECONDS = 0.25
"""Tokens travel in groups this far apart: a write per token would cost a core for what a client never looks at."""


class Timer(Protocol):
    """An alarm that can be called off."""

    def cancel(self) -> None: ...


class Timers(Protocol):
    """A clock in seconds with alarms, as of an asyncio event loop."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[..., Any], /, *args: Any) -> Timer: ...


class Stream(Protocol):
    """Who waits for one request's tokens. Called from within the engine; must return at once."""

    def tokens(self, fresh: int) -> None:
        """`fresh` more tokens are there."""

    def finished(self, fresh: int, timing: Timing) -> None:
        """The last `fresh` tokens, with the request's exact times."""

    def cut(self) -> None:
        """The engine is gone: nothing more will come."""


@dataclass(slots=True)
class _Pending:
    request: Request
    arrived_s: float
    stream: Stream
    sent: int = 0


class EngineProcess:
    """One engine process from start to end; a restart is a new one, with new counters.

    The only alarm set is for whatever comes first, the next event or the next group of tokens, so that forty busy
    engines wake the loop a few hundred times a second and idle ones never do. `on_idle` is called whenever the last
    request is over.
    """

    def __init__(
        self,
        profile: Profile,
        limits: EngineLimits,
        metrics: EngineMetrics,
        timers: Timers,
        on_idle: Callable[[], None],
    ) -> None:
        self._timers = timers
        self._metrics = metrics
        self._on_idle = on_idle
        self._engine = Engine(profile.step, limits, metrics)
        self._ids = count()
        self._pending: dict[RequestId, _Pending] = {}
        self._alarm: Timer | None = None
        self._next_flush_s: float | None = None
        self._hung_since_s: float | None = None
        self._hung_s = 0.0
        self._engine.advance(self._engine_ms(timers.time()))

    @property
    def in_flight(self) -> int:
        """Requests that are waiting or running."""
        return len(self._pending)

    def submit(self, *, prompt_tokens: int, output_tokens: int, cached_tokens: int, stream: Stream) -> RequestId:
        """Queue a request that arrives now. ValueError when the KV cache could never hold it."""
        self._catch_up()
        now_s = self._timers.time()
        request = Request(next(self._ids), self._engine.now_ms, prompt_tokens, output_tokens, cached_tokens)
        self._engine.submit(request)
        self._pending[request.id] = _Pending(request, now_s, stream)
        self._set_alarm()
        return request.id

    def abort(self, request_id: RequestId) -> None:
        """The client left. Nothing when the request is already over."""
        if request_id not in self._pending:
            return
        self._catch_up()
        pending = self._pending.pop(request_id, None)
        if pending is None:
            return
        produced = self._engine.abort(request_id, self._engine.now_ms)
        self._metrics.aborted(pending.request, produced)
        self._set_alarm()
        self._tell_idle()

    def stop(self) -> None:
        """The process ends: every stream is cut."""
        self._cancel_alarm()
        pending, self._pending = self._pending, {}
        for one in pending.values():
            one.stream.cut()

    def hang(self) -> None:
        """Iterations stop; the process still answers probes and scrapes."""
        self._catch_up()
        if self._hung_since_s is None:
            self._hung_since_s = self._timers.time()
        self._cancel_alarm()

    def resume(self) -> None:
        """The end of `hang`: everything is late by as long as it lasted."""
        if self._hung_since_s is not None:
            self._hung_s += self._timers.time() - self._hung_since_s
            self._hung_since_s = None
            self._set_alarm()

    def metrics_page(self) -> str:
        """The Prometheus text as of now."""
        self._catch_up()
        engine = self._engine
        return self._metrics.render(
            Load(engine.running, engine.waiting, engine.kv_used_tokens, engine.generated_tokens, engine.preemptions)
        )

    def _engine_ms(self, now_s: float) -> float:
        """The engine's clock: it stands still while the engine hangs."""
        until_s = now_s if self._hung_since_s is None else self._hung_since_s
        return (until_s - self._hung_s) * 1000

    def _wall_s(self, engine_ms: float) -> float:
        return engine_ms / 1000 + self._hung_s

    def _catch_up(self) -> None:
        for event in self._engine.advance(self._engine_ms(self._timers.time())):
            if isinstance(event, FirstToken):
                self._first_token(event)
            else:
                self._finished(event)

    def _first_token(self, event: FirstToken) -> None:
        pending = self._pending[event.request.id]
        self._metrics.first_token(event.request, self._wall_s(event.at_ms) - pending.arrived_s)
        if event.request.output_tokens > 1:
            pending.sent = 1
            pending.stream.tokens(1)
            if self._next_flush_s is None:
                self._next_flush_s = self._timers.time() + FLUSH_SECONDS

    def _finished(self, event: Finished) -> None:
        pending = self._pending.pop(event.request.id)
        timing = Timing(
            pending.arrived_s,
            max(self._wall_s(event.admitted_ms), pending.arrived_s),
            self._wall_s(event.first_token_ms),
            self._wall_s(event.at_ms),
        )
        self._metrics.finished(event.request, timing, event.preemptions)
        pending.stream.finished(event.request.output_tokens - pending.sent, timing)

    def _wake(self) -> None:
        self._alarm = None
        self._catch_up()
        now_s = self._timers.time()
        if self._next_flush_s is not None and now_s >= self._next_flush_s:
            self._flush(now_s)
        self._set_alarm()
        self._tell_idle()

    def _flush(self, now_s: float) -> None:
        for request_id, pending in self._pending.items():
            produced = self._engine.tokens_of(request_id)
            if produced > pending.sent:
                pending.stream.tokens(produced - pending.sent)
                pending.sent = produced
        self._next_flush_s = now_s + FLUSH_SECONDS if self._pending else None

    def _tell_idle(self) -> None:
        if not self._pending:
            self._on_idle()

    def _set_alarm(self) -> None:
        self._cancel_alarm()
        event_ms = None if self._hung_since_s is not None else self._engine.next_event_ms()
        if event_ms is None:
            return
        when_s = self._wall_s(event_ms)
        if self._next_flush_s is not None:
            when_s = min(when_s, self._next_flush_s)
        self._alarm = self._timers.call_at(when_s, self._wake)

    def _cancel_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
