"""How many tokens per second an engine makes when it always has as many requests as it is given: a closed loop.

Every request that finishes is followed by a new one. That is how offline throughput is measured, and what a server
makes at most.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenservice.core.step import StepModel
from tokenservice.simulate.engine import Engine, EngineLimits, Finished, Request

_WARM_UP_TURNS = 2
"""Answers that every place in the loop gives before counting starts: by then they are out of step."""

_TURNS = 8


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of one engine in a closed loop: output tokens per second, and means over the requests counted."""

    concurrency: int
    tokens_per_second: float
    ttft_seconds: float
    tpot_seconds: float


def closed_loop(
    model: StepModel, limits: EngineLimits, lengths: tuple[tuple[int, int], ...], concurrency: int
) -> Throughput:
    """Runs `concurrency` requests at a time; lengths (input, output) are taken in turn. Deterministic."""
    engine, submitted = Engine(model, limits), concurrency
    finished: list[Finished] = []
    for number in range(concurrency):
        engine.submit(Request(number, 0.0, *lengths[number % len(lengths)]))
    counted_from, wanted = _WARM_UP_TURNS * concurrency, (_WARM_UP_TURNS + _TURNS) * concurrency
    while len(finished) < wanted:
        at = engine.next_event_ms()
        assert at is not None, "a loop is never idle"
        for event in engine.advance(at):
            if isinstance(event, Finished):
                finished.append(event)
                engine.submit(Request(submitted, engine.now_ms, *lengths[submitted % len(lengths)]))
                submitted += 1
    counted = finished[counted_from:]
    seconds = (counted[-1].at_ms - finished[counted_from - 1].at_ms) / 1000
    return Throughput(
        concurrency=concurrency,
        tokens_per_second=sum(one.request.output_tokens for one in counted) / seconds,
        ttft_seconds=sum(one.ttft_ms for one in counted) / len(counted) / 1000,
        tpot_seconds=sum(one.tpot_ms for one in counted) / len(counted) / 1000,
    )
