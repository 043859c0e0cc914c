"""A continuous-batching engine on the step model: what vLLM and SGLang do with a queue of requests, without the GPU.

Rules, as in vLLM's V1 scheduler: every iteration gives one token to each decoding sequence, and what is left of the
token budget goes to prefill chunks, first come first served; a request is admitted while a sequence slot is free and
its whole prompt fits in the KV cache; when the cache cannot take the next tokens, the sequence admitted last is
preempted and later recomputed.

Cost is per event, not per iteration. While the batch only decodes, step j of a run takes `first + j * slope` (every
context grows by one token a step), so a whole run up to the next finish, KV shortage or arrival is one sum. Sequences
are never touched while they decode: a sequence that will be done in iteration f has `output - (f - now)` tokens.

Times are milliseconds on the caller's clock and only move forward; nothing here reads a clock.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from math import sqrt
from typing import NamedTuple, Protocol

from tokenservice.core.step import StepModel

RequestId = int | str


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine may hold at once: sequences, tokens in an iteration, tokens in the KV cache."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_capacity_tokens: int

    def __post_init__(self) -> None:
        if not 1 <= self.max_num_seqs <= self.max_num_batched_tokens:
            raise ValueError("needs 1 <= max_num_seqs <= max_num_batched_tokens: each sequence decodes every iteration")


@dataclass(frozen=True, slots=True)
class Request:
    """One generation. `cached_tokens` of the prompt are in the prefix cache already and need no prefill."""

    id: RequestId
    arrived_ms: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0

    def __post_init__(self) -> None:
        if self.input_tokens < 1 or self.output_tokens < 1:
            raise ValueError(f"request {self.id!r}: input and output need at least one token each")
        if not 0 <= self.cached_tokens < self.input_tokens:
            raise ValueError(f"request {self.id!r}: at least one prompt token is computed, so cached < input")

    @property
    def kv_tokens(self) -> int:
        """Most KV tokens it ever holds: the last token produced is never written back."""
        return self.input_tokens + self.output_tokens - 1


class FirstToken(NamedTuple):
    """A request produced its first token. A tuple, because simulations make millions of them."""

    request: Request
    admitted_ms: float
    at_ms: float

    @property
    def ttft_ms(self) -> float:
        return self.at_ms - self.request.arrived_ms


class Finished(NamedTuple):
    """A request produced its last token."""

    request: Request
    admitted_ms: float
    first_token_ms: float
    at_ms: float
    preemptions: int

    @property
    def ttft_ms(self) -> float:
        return self.first_token_ms - self.request.arrived_ms

    @property
    def tpot_ms(self) -> float:
        """(last - first token) / (output - 1); 0 for a single token."""
        return (self.at_ms - self.first_token_ms) / max(1, self.request.output_tokens - 1)


Event = FirstToken | Finished


class StepObserver(Protocol):
    """Told of iterations that were carried out, in runs: step j (from 0) took `first_ms + j * slope_ms`."""

    def ran(self, first_ms: float, slope_ms: float, steps: int, decoding: int, prefill_tokens: int) -> None:
        """`decoding` sequences got one token in each of the `steps`; their gap is the step's duration."""


class _Sequence:
    """A request inside the engine. Mutable, and private to it."""

    __slots__ = (
        "admitted_ms", "computed", "finish_step", "first_token_ms", "heap_order", "preemptions", "prefill_target",
        "produced", "request", "state",
    )  # fmt: skip

    def __init__(self, request: Request) -> None:
        self.request = request
        self.state = _WAITING
        self.computed = 0  # tokens of the prefill target that are in the cache
        self.prefill_target = request.input_tokens  # the prompt, and after a preemption what was produced too
        self.produced = 0  # output tokens; while decoding read `tokens_of`
        self.finish_step = 0
        self.heap_order = 0
        self.admitted_ms = -1.0
        self.first_token_ms = -1.0
        self.preemptions = 0


_WAITING, _PREFILLING, _DECODING, _GONE = range(4)


class Engine:
    """One engine replica in simulated time.

    `submit` and `abort` act at the time given or, if later, at the end of the iteration under way; a request that
    arrives at the very instant an iteration starts is in it unless `next_event_ms` was asked in between.
    Events come out of `advance`, in order of time.
    """

    def __init__(self, model: StepModel, limits: EngineLimits, observer: StepObserver | None = None) -> None:
        self.model = model
        self.limits = limits
        self.preemptions = 0
        self.prompt_tokens = 0
        self._observer = observer
        self._kappa_per_token_ms = model.kappa_ms / 1000
        self._now_ms = 0.0
        self._events: list[Event] = []
        self._by_id: dict[RequestId, _Sequence] = {}
        self._waiting: deque[_Sequence] = deque()
        self._running: dict[RequestId, _Sequence] = {}  # in order of admission
        self._prefilling: dict[RequestId, _Sequence] = {}  # in order of admission
        self._finishing: list[tuple[int, int, _Sequence]] = []  # heap; entries of preempted sequences stay behind
        self._heap_order = 0
        self._step = 0  # iterations carried out
        self._decoding = 0
        self._context_tokens = 0  # KV tokens of the decoding sequences
        self._kv_tokens = 0  # ... and of the prefilling ones, whose whole target is reserved
        self._generated = 0
        # The run under way: `_run_steps` iterations from `_run_start_ms`, none of them finished by `_now_ms`.
        self._run_steps = 0
        self._run_start_ms = 0.0
        self._run_first_ms = 0.0
        self._run_slope_ms = 0.0
        self._run_chunks: list[tuple[_Sequence, int]] = []
        self._run_prefill_tokens = 0

    # -- what it is doing, as of the last `advance`

    @property
    def now_ms(self) -> float:
        return self._now_ms

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def kv_used_tokens(self) -> int:
        return self._kv_tokens

    @property
    def generated_tokens(self) -> int:
        """Output tokens produced so far, those of unfinished and aborted requests included."""
        return self._generated

    @property
    def request_ids(self) -> list[RequestId]:
        """The requests that are waiting or running."""
        return list(self._by_id)

    def tokens_of(self, request_id: RequestId) -> int:
        """Output tokens that an unfinished request has produced. KeyError once it is finished or aborted."""
        sequence = self._by_id[request_id]
        return self._tokens_in_batch(sequence) if sequence.state == _DECODING else sequence.produced

    # -- what happens to it

    def submit(self, request: Request) -> None:
        """Queue a request. ValueError when the KV cache could never hold it, or it arrives in the past."""
        if request.arrived_ms < self._now_ms:
            raise ValueError(f"request {request.id!r} arrives at {request.arrived_ms}, but it is {self._now_ms}")
        if request.kv_tokens > self.limits.kv_capacity_tokens:
            raise ValueError(f"request {request.id!r} needs {request.kv_tokens} KV tokens: more than the cache holds")
        if request.id in self._by_id:
            raise ValueError(f"request {request.id!r} is here already")
        self._advance(request.arrived_ms)
        sequence = self._by_id[request.id] = _Sequence(request)
        self._waiting.append(sequence)
        if len(self._waiting) == 1:  # behind others it changes nothing before they are admitted
            self._end_run_early()

    def abort(self, request_id: RequestId, at_ms: float) -> int:
        """Drop a request and return the tokens it had produced by then. KeyError when it is not here (any more).

        The iteration under way takes its time all the same; the token it computes for this request is not counted.
        """
        self._advance(at_ms)
        tokens = self.tokens_of(request_id)
        sequence = self._by_id.pop(request_id)
        if sequence.state == _WAITING:
            was_head = self._waiting[0] is sequence
            self._waiting.remove(sequence)
            if was_head:  # the next in line may be smaller
                self._end_run_early()
        else:
            self._end_run_early()
            self._leave(sequence)
        sequence.state = _GONE
        return tokens

    def advance(self, until_ms: float) -> list[Event]:
        """Run up to `until_ms` and return what happened since the last call, in order."""
        self._advance(until_ms)
        events, self._events = self._events, []
        return events

    def next_event_ms(self) -> float | None:
        """No event comes before this time unless something is submitted or aborted; None when there is nothing to do.

        Usually the next event's own time, else that of a change in the batch (a chunk done, a preemption).
        """
        if self._events:
            return self._events[0].at_ms
        if self._run_steps == 0 and not self._plan():
            return None
        return self._run_start_ms + self._elapsed_ms(self._run_steps)

    # -- runs of iterations

    def _advance(self, until_ms: float) -> None:
        while self._now_ms < until_ms:
            if self._run_steps == 0 and not self._plan():
                break
            end_ms = self._run_start_ms + self._elapsed_ms(self._run_steps)
            if end_ms > until_ms:
                self._carry_out(self._steps_within(until_ms - self._run_start_ms))
                break
            self._carry_out(self._run_steps)
            self._now_ms = end_ms
        self._now_ms = max(self._now_ms, until_ms)

    def _elapsed_ms(self, steps: int) -> float:
        return steps * self._run_first_ms + self._run_slope_ms * (steps * (steps - 1) / 2)

    def _steps_within(self, elapsed_ms: float) -> int:
        """Whole steps of the run that fit in `elapsed_ms`: the root of a parabola, then exact."""
        if elapsed_ms < self._run_first_ms:
            return 0
        half_slope = self._run_slope_ms / 2
        b = self._run_first_ms - half_slope
        if half_slope > 0:
            steps = int((sqrt(b * b + 4 * half_slope * elapsed_ms) - b) / (2 * half_slope))
        else:
            steps = int(elapsed_ms / b)
        while self._elapsed_ms(steps + 1) <= elapsed_ms:
            steps += 1
        while self._elapsed_ms(steps) > elapsed_ms:
            steps -= 1
        return min(steps, self._run_steps)

    def _end_run_early(self) -> None:
        """Let the iteration under way be the last of this run; one that has not begun is planned anew."""
        if self._run_steps > 1:
            self._run_steps = 1
        if self._run_steps and not self._run_chunks and self._run_start_ms == self._now_ms:
            self._run_steps = 0

    def _plan(self) -> bool:
        """Lay out the next run from here. False when there is nothing to run."""
        preempted = self._make_room()
        chunks = self._schedule_prefill(admit=not preempted)
        decoding = self._decoding
        if not decoding and not chunks:
            return False
        prefill_tokens = 0
        context_tokens = self._context_tokens + decoding
        for sequence, chunk in chunks:
            prefill_tokens += chunk
            context_tokens += sequence.computed  # a chunk reads the KV that is there already
        self._run_chunks = chunks
        self._run_prefill_tokens = prefill_tokens
        self._run_start_ms = self._now_ms
        self._run_first_ms = self.model.step_ms(decoding + len(chunks), context_tokens, prefill_tokens)
        if chunks:
            self._run_steps = 1
            self._run_slope_ms = 0.0
        else:
            room = (self.limits.kv_capacity_tokens - self._kv_tokens) // decoding
            self._run_steps = min(self._next_finish_step() - self._step, room)
            self._run_slope_ms = self._kappa_per_token_ms * decoding
        return True

    def _make_room(self) -> bool:
        """Preempt from the end until the decoding sequences' next tokens fit. True when any had to go."""
        preempted = False
        while self._kv_tokens + self._decoding > self.limits.kv_capacity_tokens:
            self._preempt(next(reversed(self._running.values())))
            preempted = True
        return preempted

    def _preempt(self, sequence: _Sequence) -> None:
        sequence.produced = self.tokens_of(sequence.request.id)
        self._leave(sequence)
        sequence.state = _WAITING
        sequence.prefill_target = sequence.request.input_tokens + sequence.produced
        sequence.preemptions += 1
        self.preemptions += 1
        self._waiting.appendleft(sequence)

    def _schedule_prefill(self, *, admit: bool) -> list[tuple[_Sequence, int]]:
        """Chunks of the next iteration: sequences half way first, then newcomers while they fit."""
        budget = self.limits.max_num_batched_tokens - self._decoding
        chunks: list[tuple[_Sequence, int]] = []
        for sequence in self._prefilling.values():
            if budget == 0:
                return chunks
            chunk = min(budget, sequence.prefill_target - sequence.computed)
            chunks.append((sequence, chunk))
            budget -= chunk
        while admit and budget and self._waiting and self._fits(self._waiting[0]):
            sequence = self._waiting.popleft()
            self._admit(sequence)
            chunk = min(budget, sequence.prefill_target - sequence.computed)
            chunks.append((sequence, chunk))
            budget -= chunk
        return chunks

    def _fits(self, sequence: _Sequence) -> bool:
        if len(self._running) >= self.limits.max_num_seqs:
            return False
        return self._kv_tokens + self._decoding + sequence.prefill_target <= self.limits.kv_capacity_tokens

    def _admit(self, sequence: _Sequence) -> None:
        if sequence.admitted_ms < 0:
            sequence.admitted_ms = self._now_ms
        sequence.state = _PREFILLING
        sequence.computed = sequence.request.cached_tokens
        self._kv_tokens += sequence.prefill_target
        self._running[sequence.request.id] = sequence
        self._prefilling[sequence.request.id] = sequence

    def _leave(self, sequence: _Sequence) -> None:
        """Take a running sequence out of the batch and give its KV back."""
        del self._running[sequence.request.id]
        if sequence.state == _PREFILLING:
            del self._prefilling[sequence.request.id]
            self._kv_tokens -= sequence.prefill_target
        else:
            context = sequence.request.input_tokens + self._tokens_in_batch(sequence) - 1
            self._decoding -= 1
            self._context_tokens -= context
            self._kv_tokens -= context

    def _tokens_in_batch(self, sequence: _Sequence) -> int:
        return sequence.request.output_tokens - (sequence.finish_step - self._step)

    def _next_finish_step(self) -> int:
        while True:
            finish_step, order, sequence = self._finishing[0]
            if sequence.state == _DECODING and sequence.heap_order == order:
                return finish_step
            heappop(self._finishing)

    def _carry_out(self, steps: int) -> None:
        """Make `steps` iterations of the run happen; the time moves with the caller."""
        if steps == 0:
            return
        decoding = self._decoding
        end_ms = self._run_start_ms + self._elapsed_ms(steps)
        if self._observer is not None:
            self._observer.ran(self._run_first_ms, self._run_slope_ms, steps, decoding, self._run_prefill_tokens)
        self._step += steps
        self._generated += steps * decoding
        self._context_tokens += steps * decoding
        self._kv_tokens += steps * decoding
        self._run_start_ms = end_ms
        self._run_first_ms += steps * self._run_slope_ms
        self._run_steps -= steps
        if self._run_chunks:
            for sequence, chunk in self._run_chunks:
                self._prefilled(sequence, chunk, end_ms)
            self._run_chunks = []
            self._run_prefill_tokens = 0
        while self._finishing and self._finishing[0][0] <= self._step:
            _, order, sequence = heappop(self._finishing)
            if sequence.state == _DECODING and sequence.heap_order == order:
                self._finish(sequence, end_ms)

    def _prefilled(self, sequence: _Sequence, chunk: int, at_ms: float) -> None:
        if sequence.state == _GONE:
            return
        sequence.computed += chunk
        if sequence.computed < sequence.prefill_target:
            return
        request = sequence.request
        del self._prefilling[request.id]
        sequence.state = _DECODING
        sequence.finish_step = self._step + request.output_tokens - sequence.produced - 1
        self._heap_order += 1
        sequence.heap_order = self._heap_order
        heappush(self._finishing, (sequence.finish_step, self._heap_order, sequence))
        self._decoding += 1
        self._context_tokens += sequence.prefill_target
        self._generated += 1
        if sequence.first_token_ms < 0:
            sequence.first_token_ms = at_ms
            self.prompt_tokens += request.input_tokens
            self._events.append(FirstToken(request, sequence.admitted_ms, at_ms))

    def _finish(self, sequence: _Sequence, at_ms: float) -> None:
        self._leave(sequence)
        sequence.state = _GONE
        request = sequence.request
        del self._by_id[request.id]
        self._events.append(
            Finished(request, sequence.admitted_ms, sequence.first_token_ms, at_ms, sequence.preemptions)
        )
