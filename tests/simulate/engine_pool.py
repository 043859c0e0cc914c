"""A pool made of `Engine` objects and a router in ten lines of Python: slow, and plain enough to be believed."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isnan

from tokenservice.core.step import StepModel
from tokenservice.simulate.engine import Engine, EngineLimits, Event, Finished, FirstToken, Request


@dataclass(frozen=True, slots=True)
class Call:
    """One request: when it arrives, its lengths, and its deadline or NaN."""

    at_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    deadline_s: float


@dataclass(slots=True)
class _Replica:
    engine: Engine
    weight: float
    routable: bool = False
    unfinished: int = 0


@dataclass(slots=True)
class EnginePool:
    """Every engine is brought to every instant at which anything happens anywhere."""

    fill_to: float = 0.0
    now_ms: float = 0.0
    replicas: dict[int, _Replica] = field(default_factory=dict)
    calls: dict[int, Call] = field(default_factory=dict)
    held: list[int] = field(default_factory=list)
    deferred: list[int] = field(default_factory=list)
    first_token_ms: dict[int, float] = field(default_factory=dict)
    finished_ms: dict[int, float] = field(default_factory=dict)
    unfinished_request_ms: float = 0.0
    preemptions_of_the_gone: int = 0

    def add(self, step: StepModel, limits: EngineLimits, weight: float) -> int:
        slot = next(slot for slot in range(len(self.replicas) + 1) if slot not in self.replicas)
        engine = Engine(step, limits)
        engine.advance(self.now_ms)
        self.replicas[slot] = _Replica(engine, weight)
        return slot

    def open(self, slot: int, routable: bool) -> None:
        self.replicas[slot].routable = routable
        while self.held and (target := self._least_loaded()) is not None:
            self._dispatch(self.held.pop(0), target)

    def fail(self, slot: int) -> list[Call]:
        lost = self.replicas.pop(slot)
        self.preemptions_of_the_gone += lost.engine.preemptions
        ids = [int(number) for number in lost.engine.request_ids]
        return sorted((self.calls[number] for number in ids), key=lambda call: call.at_s)

    def advance(self, calls: list[Call], until_s: float) -> None:
        pending = [(len(self.calls) + index, call) for index, call in enumerate(calls)]
        self.calls.update(pending)
        self._fill()
        while True:
            arrival_ms = pending[0][1].at_s * 1000 if pending else inf
            if arrival_ms > self.now_ms and self.now_ms < until_s * 1000:  # asking engines makes them plan
                at_ms = min(self._next_event_ms(), arrival_ms)
            else:
                at_ms = arrival_ms
            if at_ms > until_s * 1000:
                break
            self._move_to(at_ms)
            while pending and pending[0][1].at_s * 1000 == self.now_ms:
                self._arrive(*pending.pop(0))
        self._move_to(until_s * 1000)

    @property
    def preemptions(self) -> int:
        return self.preemptions_of_the_gone + sum(it.engine.preemptions for it in self.replicas.values())

    @property
    def unfinished(self) -> int:
        return len(self.held) + sum(it.unfinished for it in self.replicas.values())

    def _next_event_ms(self) -> float:
        times = [it.engine.next_event_ms() for it in self.replicas.values()]
        return min((at for at in times if at is not None), default=inf)

    def _move_to(self, at_ms: float) -> None:
        self.unfinished_request_ms += self.unfinished * (at_ms - self.now_ms)
        self.now_ms = at_ms
        finished = [self._note(it, event) for it in self.replicas.values() for event in it.engine.advance(at_ms)]
        if any(finished):
            self._fill()

    def _note(self, replica: _Replica, event: Event) -> bool:
        number = int(event.request.id)
        if isinstance(event, FirstToken):
            self.first_token_ms[number] = event.at_ms
            return False
        assert isinstance(event, Finished)
        self.finished_ms[number] = event.at_ms
        replica.unfinished -= 1
        return True

    def _arrive(self, number: int, call: Call) -> None:
        if not isnan(call.deadline_s):
            self.deferred = sorted([*self.deferred, number], key=lambda it: (self.calls[it].deadline_s, it))
        elif (target := self._least_loaded()) is not None:
            self._dispatch(number, target)
        else:
            self.held.append(number)
        self._fill()

    def _fill(self) -> None:
        while self.deferred and (target := self._least_loaded()) is not None and self._load(target) < self.fill_to:
            self._dispatch(self.deferred.pop(0), target)

    def _load(self, slot: int) -> float:
        return self.replicas[slot].unfinished / self.replicas[slot].weight

    def _least_loaded(self) -> int | None:
        routable = sorted(slot for slot, it in self.replicas.items() if it.routable)
        return min(routable, key=self._load, default=None)

    def _dispatch(self, number: int, slot: int) -> None:
        call, replica = self.calls[number], self.replicas[slot]
        replica.unfinished += 1
        lengths = (call.input_tokens, call.output_tokens, call.cached_tokens)
        replica.engine.submit(Request(number, self.now_ms, *lengths))
