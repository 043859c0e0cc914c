"""The engine simulator against its rules, step by step, and against the closed form of the step model."""

from __future__ import annotations

from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulate.naive_engine import NaiveEngine
from tokenservice.core.step import StepModel
from tokenservice.simulate.engine import Engine, EngineLimits, Event, Finished, FirstToken, Request, RequestId

# Powers of two, so that sums are exact whatever their order and times can be compared with ==.
EXACT = StepModel(alpha_ms=4.0, beta_ms=0.125, kappa_ms=15.625, delta_ms=0.0625)
QWEN3_32B_H100_TP2 = StepModel(alpha_ms=13.96, beta_ms=0.057, kappa_ms=0.054, delta_ms=0.0490)
ROOMY = EngineLimits(max_num_seqs=256, max_num_batched_tokens=8192, kv_capacity_tokens=1_000_000)

limits = st.builds(
    EngineLimits,
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(6, 40),
    kv_capacity_tokens=st.integers(60, 140),
)


@st.composite
def traffic(draw: st.DrawFn, most: int = 14) -> list[Request]:
    """Requests in order of arrival, each small enough for the smallest cache drawn above."""
    now, requests = 0.0, []
    for number in range(draw(st.integers(1, most))):
        now += draw(st.sampled_from([0.0, 0.25, 1.0, 3.5, 20.0, 300.0]))
        prompt = draw(st.integers(1, 40))
        cached = draw(st.integers(0, prompt - 1)) if draw(st.booleans()) else 0
        requests.append(Request(number, now, prompt, draw(st.integers(1, 20)), cached))
    return requests


def run(
    engine: Engine, requests: list[Request], aborts: dict[RequestId, float] | None = None
) -> tuple[list[Event], dict[RequestId, int]]:
    """Play arrivals and aborts in order of time, to the end; events, and the tokens of what was aborted."""
    events: list[Event] = []
    dropped: dict[RequestId, int] = {}
    finished: set[RequestId] = set()

    def keep(more: list[Event]) -> None:
        events.extend(more)
        finished.update(event.request.id for event in more if isinstance(event, Finished))

    moments = [(r.arrived_ms, 0, r) for r in requests]
    moments += [(at, 1, r) for r in requests if (at := (aborts or {}).get(r.id)) is not None and at >= r.arrived_ms]
    for at_ms, is_abort, request in sorted(moments, key=lambda m: m[:2]):
        keep(engine.advance(at_ms))
        if not is_abort:
            engine.submit(request)
        elif request.id not in finished:
            dropped[request.id] = engine.abort(request.id, at_ms)
    while (at := engine.next_event_ms()) is not None:
        keep(engine.advance(at))
    return events, dropped


def by_time(events: list[Event]) -> list[Event]:
    """The order of events of one iteration means nothing."""
    return sorted(events, key=lambda event: (event.at_ms, str(event.request.id), isinstance(event, Finished)))


@given(limits, traffic())
def test_fast_forward_equals_stepping_one_by_one(limits: EngineLimits, requests: list[Request]) -> None:
    naive = NaiveEngine(EXACT, limits, requests)
    assert by_time(run(Engine(EXACT, limits), requests)[0]) == by_time(naive.run())


@given(limits, traffic(), st.dictionaries(st.integers(0, 13), st.integers(0, 400).map(lambda n: n + 0.03125)))
def test_aborts_equal_stepping_one_by_one(
    limits: EngineLimits, requests: list[Request], after: dict[RequestId, float]
) -> None:
    aborts = {r.id: r.arrived_ms + after[r.id] for r in requests if r.id in after}
    naive = NaiveEngine(EXACT, limits, requests, aborts)
    expected = naive.run()
    events, dropped = run(Engine(EXACT, limits), requests, aborts)
    assert by_time(events) == by_time(expected)
    assert dropped == {request: tokens for request, tokens in naive.aborted_tokens.items() if request in dropped}


@given(limits, traffic(), st.lists(st.floats(0, 2000), max_size=20))
def test_looking_in_between_changes_nothing(limits: EngineLimits, requests: list[Request], looks: list[float]) -> None:
    plain, watched = Engine(EXACT, limits), Engine(EXACT, limits)
    for request in requests:
        plain.submit(request)
    events: list[Event] = []
    for at, request in sorted([(r.arrived_ms, r) for r in requests], key=lambda pair: pair[0]):
        for look in sorted(look for look in looks if watched.now_ms < look < at):
            events += watched.advance(look)
            for unfinished in watched.request_ids:
                assert 0 <= watched.tokens_of(unfinished) < requests[int(unfinished)].output_tokens
        watched.submit(request)
    assert [e.at_ms for e in events + watched.advance(1e6)] == pytest.approx([e.at_ms for e in plain.advance(1e6)])


@given(limits, traffic())
def test_tokens_are_conserved_and_the_cache_never_overflows(limits: EngineLimits, requests: list[Request]) -> None:
    engine = Engine(EXACT, limits)
    events: list[Event] = []
    for request in requests:
        engine.submit(request)
    while (at := engine.next_event_ms()) is not None:
        events += engine.advance(at)
        assert 0 <= engine.kv_used_tokens <= limits.kv_capacity_tokens
        assert engine.running <= limits.max_num_seqs
        done = sum(e.request.output_tokens for e in events if isinstance(e, Finished))
        assert engine.generated_tokens == done + sum(engine.tokens_of(r) for r in engine.request_ids)
    assert {e.request.id for e in events if isinstance(e, Finished)} == {r.id for r in requests}
    assert {e.request.id for e in events if isinstance(e, FirstToken)} == {r.id for r in requests}
    assert (engine.kv_used_tokens, engine.running, engine.waiting) == (0, 0, 0)
    assert engine.generated_tokens == sum(r.output_tokens for r in requests)
    assert engine.prompt_tokens == sum(r.input_tokens for r in requests)
    assert all(earlier.at_ms <= later.at_ms for earlier, later in pairwise(events))


@given(limits, traffic())
def test_the_observer_sees_every_iteration_once(limits: EngineLimits, requests: list[Request]) -> None:
    class Tally:
        tokens = prefilled = 0
        busy_ms = 0.0

        def ran(self, first_ms: float, slope_ms: float, steps: int, decoding: int, prefill_tokens: int) -> None:
            self.tokens += steps * decoding
            self.prefilled += prefill_tokens
            self.busy_ms += steps * first_ms + slope_ms * steps * (steps - 1) / 2

    tally = Tally()
    engine = Engine(EXACT, limits, tally)
    now_together = [Request(r.id, 0.0, r.input_tokens, r.output_tokens, r.cached_tokens) for r in requests]
    events, _ = run(engine, now_together)
    assert tally.busy_ms == max(e.at_ms for e in events)
    if engine.preemptions == 0:
        assert tally.tokens == sum(r.output_tokens - 1 for r in requests)
        assert tally.prefilled == sum(r.input_tokens - r.cached_tokens for r in requests)


@pytest.mark.parametrize(
    ("concurrency", "prompt", "output", "cached"),
    [(1, 1000, 200, 0), (16, 1000, 1000, 0), (64, 1000, 250, 0), (64, 1000, 250, 600), (32, 6000, 300, 0)],
)
def test_tpot_of_a_closed_loop_is_the_step_models(concurrency: int, prompt: int, output: int, cached: int) -> None:
    engine = Engine(QWEN3_32B_H100_TP2, ROOMY)
    numbers = count()
    finished: list[Finished] = []
    for index in range(concurrency):  # started apart, so that they do not all prefill at once
        engine.submit(Request(next(numbers), index * 40.0, prompt, output, cached))
    while len(finished) < 12 * concurrency:
        at = engine.next_event_ms()
        assert at is not None
        for event in engine.advance(at):
            if isinstance(event, Finished):
                finished.append(event)
                engine.submit(Request(next(numbers), at, prompt, output, cached))
    steady = finished[3 * concurrency :]
    measured = sum(event.tpot_ms for event in steady) / len(steady)
    expected = QWEN3_32B_H100_TP2.tpot_ms(concurrency, prompt, output, cached / prompt)
    assert measured == pytest.approx(expected, rel=0.04)


def test_a_lone_request_takes_a_prefill_and_then_one_step_a_token() -> None:
    engine = Engine(EXACT, ROOMY)
    engine.submit(Request("a", 10.0, 16, 3))
    first, finished = engine.advance(1000)
    prefill_ms = EXACT.step_ms(1, 0, 16)
    assert first.at_ms == 10 + prefill_ms
    assert finished.at_ms == first.at_ms + EXACT.step_ms(1, 17, 0) + EXACT.step_ms(1, 18, 0)


def test_a_long_prompt_is_prefilled_in_chunks_beside_decoding() -> None:
    engine = Engine(EXACT, EngineLimits(8, 64, 10_000))
    engine.submit(Request("decodes", 0.0, 8, 200))
    engine.advance(50)
    engine.submit(Request("long", 50.0, 630, 1))
    before = engine.tokens_of("decodes")
    while not any(event.request.id == "long" for event in engine.advance(engine.next_event_ms() or 0)):
        pass
    assert engine.tokens_of("decodes") - before == 1 + 10  # 63 tokens of budget are left beside one decode


def test_the_sequence_admitted_last_is_preempted_and_still_gives_every_token() -> None:
    engine = Engine(EXACT, EngineLimits(8, 64, 60))
    events, _ = run(engine, [Request("old", 0.0, 20, 20), Request("new", 0.0, 20, 20)])
    done = {e.request.id: e for e in events if isinstance(e, Finished)}
    assert (done["old"].preemptions, done["new"].preemptions) == (0, 1)
    assert engine.generated_tokens == 40


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("big", 0.0, 90, 12), "more than the cache holds"),
        (Request("twice", 0.0, 5, 5), "is here already"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_at_once(request_: Request, message: str) -> None:
    engine = Engine(EXACT, EngineLimits(8, 64, 100))
    engine.submit(Request("twice", 0.0, 5, 5))
    with pytest.raises(ValueError, match=message):
        engine.submit(request_)


def test_the_past_cannot_be_changed() -> None:
    engine = Engine(EXACT, ROOMY)
    engine.advance(100)
    with pytest.raises(ValueError, match="arrives at 99"):
        engine.submit(Request("late", 99.0, 5, 5))


@settings(max_examples=20)
@given(st.integers(1, 64), st.integers(1, 2000))
def test_cost_does_not_grow_with_the_output(batch: int, output: int) -> None:
    class Runs:
        count = 0

        def ran(self, *_: float) -> None:
            self.count += 1

    runs = Runs()
    engine = Engine(QWEN3_32B_H100_TP2, ROOMY, runs)
    for number in range(batch):
        engine.submit(Request(number, 0.0, 100, output))
    engine.advance(1e9)
    assert runs.count <= 2
