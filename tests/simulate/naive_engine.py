"""The engine's rules the slow way, one iteration and one sequence at a time: what the fast one must equal."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenservice.core.step import StepModel
from tokenservice.simulate.engine import EngineLimits, Event, Finished, FirstToken, Request, RequestId


@dataclass
class _Sequence:
    request: Request
    computed: int = 0
    produced: int = 0
    target: int = 0
    admitted_ms: float = -1.0
    first_token_ms: float = -1.0
    preemptions: int = 0

    @property
    def decodes(self) -> bool:
        return self.computed >= self.target

    @property
    def kv(self) -> int:
        return max(self.target, self.request.input_tokens + self.produced - 1)


@dataclass
class NaiveEngine:
    """`requests` in order of arrival; `aborts` maps ids to times."""

    model: StepModel
    limits: EngineLimits
    requests: list[Request]
    aborts: dict[RequestId, float] = field(default_factory=dict)
    most_kv: int = 0
    aborted_tokens: dict[RequestId, int] = field(default_factory=dict)

    def run(self) -> list[Event]:
        """Everything until the queue is empty."""
        now, events = 0.0, list[Event]()
        arriving = list(self.requests)
        waiting: list[_Sequence] = []
        running: list[_Sequence] = []
        while arriving or waiting or running:
            while arriving and arriving[0].arrived_ms <= now:
                request = arriving.pop(0)
                waiting.append(_Sequence(request, target=request.input_tokens))
            self._drop_aborted(now, waiting, running)
            chunks = self._schedule(now, waiting, running)
            if not running:
                if not arriving:
                    break
                now = max(now, arriving[0].arrived_ms)
                continue
            now = self._iterate(now, waiting, running, chunks, events)
        return events

    def _drop_aborted(self, now: float, *queues: list[_Sequence]) -> None:
        for queue in queues:
            for sequence in [s for s in queue if self.aborts.get(s.request.id, now + 1) <= now]:
                queue.remove(sequence)
                self.aborted_tokens.setdefault(sequence.request.id, sequence.produced)

    def _schedule(self, now: float, waiting: list[_Sequence], running: list[_Sequence]) -> list[tuple[_Sequence, int]]:
        def used() -> int:
            return sum(s.kv + s.decodes for s in running)

        preempted = False
        while used() > self.limits.kv_capacity_tokens:
            victim = running.pop()
            victim.preemptions += 1
            victim.computed, victim.target = 0, victim.request.input_tokens + victim.produced
            waiting.insert(0, victim)
            preempted = True
        budget = self.limits.max_num_batched_tokens - sum(s.decodes for s in running)
        chunks = []
        for sequence in [s for s in running if not s.decodes]:
            chunk = min(budget, sequence.target - sequence.computed)
            if chunk:
                chunks.append((sequence, chunk))
            budget -= chunk
        while waiting and budget and not preempted and len(running) < self.limits.max_num_seqs:
            if used() + waiting[0].target > self.limits.kv_capacity_tokens:
                break
            sequence = waiting.pop(0)
            if sequence.admitted_ms < 0:
                sequence.admitted_ms = now
            sequence.computed = sequence.request.cached_tokens
            running.append(sequence)
            chunk = min(budget, sequence.target - sequence.computed)
            chunks.append((sequence, chunk))
            budget -= chunk
        return chunks

    def _iterate(
        self,
        now: float,
        waiting: list[_Sequence],
        running: list[_Sequence],
        chunks: list[tuple[_Sequence, int]],
        events: list[Event],
    ) -> float:
        decoding = [s for s in running if s.decodes]
        context = sum(s.kv + 1 for s in decoding) + sum(s.computed for s, _ in chunks)
        end = now + self.model.step_ms(len(decoding) + len(chunks), context, sum(chunk for _, chunk in chunks))
        self.most_kv = max(self.most_kv, sum(s.kv + s.decodes for s in running))
        for sequence in [*waiting, *running]:  # aborts take effect before the tokens of this iteration
            if now < self.aborts.get(sequence.request.id, end) < end:
                self.aborted_tokens[sequence.request.id] = sequence.produced
        for sequence, chunk in chunks:
            sequence.computed += chunk
        for sequence in [s for s in running if s.decodes]:
            if sequence.request.id in self.aborted_tokens:
                continue
            sequence.produced += 1
            if sequence.first_token_ms < 0:
                sequence.first_token_ms = end
                events.append(FirstToken(sequence.request, sequence.admitted_ms, end))
            if sequence.produced == sequence.request.output_tokens:
                running.remove(sequence)
                events.append(
                    Finished(sequence.request, sequence.admitted_ms, sequence.first_token_ms, end, sequence.preemptions)
                )
        return end
