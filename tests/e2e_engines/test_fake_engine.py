"""The life of an engine: cold start, serving, and each engine's own way to go."""

from __future__ import annotations

import re
from typing import Any

import pytest

from e2e.engines.contract import Dialect, EngineCommand, EnginePod
from e2e.engines.fake_engine import FakeEngine, ImpossibleError, State, UnavailableError
from e2e.engines.fleet import Fleet, FleetOptions, StartRule
from tests.e2e_engines.builders import FAST, Listener, ManualTimers, Notes, deleted, pod


class World:
    """A fleet on a clock that the test moves."""

    def __init__(self, time_scale: float = 1.0, spread: float = 0.0) -> None:
        self.timers = ManualTimers()
        self.notes = Notes()
        options = FleetOptions(time_scale, spread)
        self.fleet = Fleet(self.timers, self.notes, options=options, wall_clock=self.timers.time)
        self.fleet.profile_seen("fast", FAST)

    def add(self, engine_pod: EnginePod) -> FakeEngine:
        self.fleet.pod_seen(engine_pod)
        engine = self.fleet.get(engine_pod.key)
        assert engine is not None
        return engine

    def serving(self, engine_pod: EnginePod) -> FakeEngine:
        engine = self.add(engine_pod)
        self.timers.sleep(61)
        assert engine.state == State.SERVING
        self.notes.heard.clear()
        return engine


def ask(engine: FakeEngine, output_tokens: int = 100) -> Listener:
    listener = Listener()
    engine.submit(prompt_tokens=100, output_tokens=output_tokens, cached_tokens=0, stream=listener)
    return listener


def test_an_engine_serves_after_its_cold_start_and_says_so() -> None:
    world = World(time_scale=10)
    engine = world.add(pod())
    world.timers.sleep(5.9)
    with pytest.raises(UnavailableError):
        ask(engine)
    world.timers.sleep(0.2)
    assert ask(engine)
    assert world.notes.heard == [("chat-0", "ready")]


def test_the_leader_of_a_group_is_not_up_before_its_workers_are_there() -> None:
    """As an engine that spans nodes: a leader alone would count as a replica that serves."""
    world = World(time_scale=10)
    group: dict[str, Any] = {"group": "chat/0", "group_size": 3}
    for name in ("chat-0", "chat-0-1"):
        world.fleet.pod_seen(pod(name, serves=name == "chat-0", **group))
    world.fleet.pod_seen(pod("chat-1-1", serves=False, group="chat/1", group_size=3))
    world.timers.sleep(60)
    assert ("chat-0", "ready") not in world.notes.heard
    world.fleet.pod_seen(pod("chat-0-2", serves=False, **group))
    world.timers.sleep(60)
    assert ("chat-0", "ready") in world.notes.heard


def test_cold_starts_are_spread_by_pod_and_always_alike() -> None:
    def ready_after(name: str) -> float:
        world = World(spread=0.2)
        world.add(pod(name))
        while not world.notes.heard:
            world.timers.sleep(0.5)
        return world.timers.now_s - 1000

    times = [ready_after(f"chat-{n}") for n in range(8)]
    assert all(48 <= time <= 72.5 for time in times)
    assert max(times) - min(times) > 5
    assert times[3] == ready_after("chat-3")


def test_tokens_come_in_groups_and_the_times_are_exact() -> None:
    world = World()
    listener = ask(world.serving(pod()), output_tokens=200)
    world.timers.sleep(5)
    assert listener.groups[0] == 1
    assert sum(listener.groups) == 200
    assert len(listener.groups) <= 6
    assert listener.timing is not None
    assert listener.timing.ttft_s * 1000 == pytest.approx(FAST.step.step_ms(1, 0, 100))
    assert listener.timing.tpot_s(200) * 1000 == pytest.approx(FAST.step.step_ms(1, 200, 0), rel=0.01)


DRAINS = {
    "vLLM finishes what it has": (pod(shutdown_timeout=30), 60, [100], 0.6, False),
    "vLLM aborts after its timeout": (pod(shutdown_timeout=2), 60, [5000], 2.0, True),
    "vLLM without a timeout aborts at once": (pod(), 60, [100], 0.0, True),
    "vLLM with nothing to do leaves at once": (pod(shutdown_timeout=30), 60, [], 0.0, False),
    "vLLM is killed when the grace period ends": (pod(shutdown_timeout=300), 3, [5000], 3.0, True),
    "vLLM drains after its preStop hook": (pod(shutdown_timeout=30, prestop_seconds=5.0), 60, [], 5.0, False),
    "SGLang finishes however long it takes": (pod(dialect=Dialect.SGLANG), 600, [5000], 25.0, False),
    "SGLang looks every five seconds": (pod(dialect=Dialect.SGLANG), 600, [100], 5.0, False),
    "SGLang is killed when the grace period ends": (pod(dialect=Dialect.SGLANG), 3, [5000], 3.0, True),
}


@pytest.mark.parametrize(("engine_pod", "grace", "asked", "drained_after", "cut"), DRAINS.values(), ids=DRAINS)
def test_an_engine_goes_as_the_real_one_does(
    engine_pod: EnginePod, grace: float, asked: list[int], drained_after: float, cut: bool
) -> None:
    world = World()
    engine = world.serving(engine_pod)
    listeners = [ask(engine, output_tokens) for output_tokens in asked]
    started_s = world.timers.now_s
    world.fleet.pod_seen(deleted(engine_pod, grace))
    if drained_after and not engine_pod.prestop_seconds:
        with pytest.raises(UnavailableError):
            ask(engine)
    while not world.notes.heard:
        world.timers.sleep(0.1)
        assert world.timers.now_s < started_s + 100
    assert world.timers.now_s - started_s == pytest.approx(drained_after, abs=0.21)
    assert world.notes.heard == [("chat-0", "drained")]
    assert [listener.was_cut for listener in listeners] == [cut] * len(asked)
    assert [listener.timing is None for listener in listeners] == [cut] * len(asked)


def test_requests_are_still_taken_during_the_prestop_hook() -> None:
    world = World()
    engine_pod = pod(shutdown_timeout=30, prestop_seconds=5.0)
    engine = world.serving(engine_pod)
    world.fleet.pod_seen(deleted(engine_pod, 60))
    world.timers.sleep(4)
    assert ask(engine)


def test_a_pod_deleted_while_it_starts_goes_at_once() -> None:
    world = World()
    world.add(pod(shutdown_timeout=30))
    world.fleet.pod_seen(deleted(pod(shutdown_timeout=30), 60))
    assert world.notes.heard == [("chat-0", "drained")]


def test_a_pod_deleted_before_it_ever_ran_is_let_go() -> None:
    world = World()
    world.fleet.pod_seen(deleted(pod(running=False), 60))
    assert world.notes.heard == [("chat-0", "drained")]


def test_a_pod_that_vanishes_takes_its_requests_with_it() -> None:
    world = World()
    listener = ask(world.serving(pod(shutdown_timeout=30)), 5000)
    world.fleet.only_pods(set())
    assert listener.was_cut
    assert world.notes.heard == []
    assert world.fleet.get(pod().key) is None


def test_a_lost_node_kills_its_engines_and_its_return_starts_them_from_cold() -> None:
    world = World()
    here, there = world.serving(pod("chat-0")), world.serving(pod("chat-1", node="node-1"))
    listener = ask(here, 5000)
    world.fleet.node_lost("node-0")
    assert listener.was_cut
    assert (here.state, there.state) == (State.GONE, State.SERVING)
    world.fleet.node_present("node-0")
    assert world.notes.heard == [("chat-0", "not ready")]
    world.timers.sleep(61)
    assert world.notes.heard[-1] == ("chat-0", "ready")


def test_a_pod_deleted_on_a_lost_node_is_let_go_only_when_the_node_is_back() -> None:
    world = World()
    world.serving(pod())
    world.fleet.node_lost("node-0")
    world.fleet.pod_seen(deleted(pod(), 60))
    assert world.notes.heard == []
    world.fleet.node_present("node-0")
    assert world.notes.heard == [("chat-0", "drained")]


def test_a_pod_that_ended_by_itself_is_let_go_once_when_it_is_deleted() -> None:
    world = World()
    engine = world.serving(pod())
    world.fleet.pod_seen(pod(finished=True, running=False))
    assert engine.state == State.GONE
    world.fleet.pod_seen(deleted(pod(finished=True, running=False), 60))
    world.fleet.pod_seen(deleted(pod(finished=True, running=False, drained_reported=True), 60))
    assert world.notes.heard == [("chat-0", "drained")]


def test_a_crash_cuts_requests_resets_counters_and_starts_again() -> None:
    world = World()
    engine = world.serving(pod())
    ask(engine, 10)
    world.timers.sleep(1)
    listener = ask(engine, 5000)
    engine.crash()
    assert listener.was_cut
    assert engine.state == State.STARTING
    world.timers.sleep(61)
    assert world.notes.heard == [("chat-0", "not ready"), ("chat-0", "ready")]
    assert 'vllm:generation_tokens_total{engine="0",model_name="chat"} 0.0' in engine.metrics_page()


def test_a_hang_makes_everything_late_by_as_long_as_it_lasts() -> None:
    world = World()
    engine = world.serving(pod())
    listener = ask(engine, 100)
    world.timers.sleep(0.1)
    engine.hang()
    late = ask(engine, 1)
    world.timers.sleep(30)
    assert listener.timing is None
    engine.resume()
    world.timers.sleep(1)
    assert listener.timing is not None
    assert listener.timing.e2e_s == pytest.approx(30 + 0.1 + 0.32, abs=0.2)
    assert late.timing is not None
    assert late.timing.ttft_s == pytest.approx(30, abs=0.1)


def test_start_rules_slow_down_and_fail_the_starts_they_name() -> None:
    world = World()
    world.fleet.set_start_rules([StartRule(service="chat", slow_factor=2), StartRule("other", fails=True)])
    world.add(pod("slow"))
    failing = world.add(pod("fails", key=type(pod().key)("other", "fails"), service="code"))
    world.timers.sleep(119)
    assert world.notes.heard == []
    world.timers.sleep(2)
    assert world.notes.heard == [("slow", "ready")]
    world.fleet.set_start_rules([])
    world.timers.sleep(60)
    assert failing.state == State.SERVING


def test_an_engine_waits_for_its_profile() -> None:
    world = World()
    world.fleet.pod_seen(pod(profile="later"))
    assert world.fleet.get(pod().key) is None
    world.fleet.profile_seen("later", FAST)
    assert world.fleet.get(pod().key) is not None


def test_a_pod_that_names_no_profile_gets_the_default() -> None:
    world = World()
    world.fleet = Fleet(
        world.timers, world.notes, options=FleetOptions(default_profile="fast"), wall_clock=world.timers.time
    )
    world.fleet.pod_seen(pod(profile=""))
    world.fleet.profile_seen("fast", FAST)
    assert world.fleet.get(pod().key) is not None


@pytest.mark.parametrize("dialect", Dialect)
def test_histogram_bounds_come_from_the_command_line(dialect: Dialect) -> None:
    command = EngineCommand("chat", ttft_bounds=(0.3, 1.0), token_gap_bounds=(0.004, 0.03))
    world = World()
    engine = world.serving(pod(dialect=dialect, command=command))
    ask(engine, 50)
    world.timers.sleep(5)
    page = engine.metrics_page()
    for name, bounds in (
        ("time_to_first_token_seconds", ["0.3", "1.0", "+Inf"]),
        ("inter_token_latency_seconds", ["0.004", "0.03", "+Inf"]),
        ("request_time_per_output_token_seconds", ["0.004", "0.03", "+Inf"]),
    ):
        assert re.findall(rf':{name}_bucket{{.*le="([^"]+)"', page) == bounds


def test_an_engine_that_was_ready_before_the_fleet_started_serves_at_once() -> None:
    world = World()
    assert world.add(pod(ready_reported=True)).state == State.SERVING
    assert world.notes.heard == []


def test_seeing_the_same_pod_again_changes_nothing() -> None:
    world = World()
    engine = world.serving(pod())
    world.fleet.pod_seen(pod(ready_reported=True))
    assert world.fleet.get(pod().key) is engine
    assert world.notes.heard == []


def test_a_client_that_leaves_frees_its_place() -> None:
    world = World()
    engine = world.serving(pod())
    listener = Listener()
    request = engine.submit(prompt_tokens=10, output_tokens=5000, cached_tokens=0, stream=listener)
    world.timers.sleep(1)
    engine.abort(request)
    engine.abort(request)
    assert engine.in_flight == 0
    assert 'finished_reason="abort",model_name="chat"} 1.0' in engine.metrics_page()
    world.timers.sleep(60)
    assert listener.timing is None


def test_what_exceeds_the_context_is_refused() -> None:
    with pytest.raises(ImpossibleError, match="maximum context length is 32768"):
        World().serving(pod()).submit(prompt_tokens=32000, output_tokens=1000, cached_tokens=0, stream=Listener())


def test_only_engines_that_listen_are_scraped() -> None:
    world = World()
    world.serving(pod("works for another", serves=False))
    world.serving(pod("serves"))
    draining = world.serving(pod("drains", shutdown_timeout=30))
    ask(draining, 5000)
    world.fleet.pod_seen(deleted(pod("drains", shutdown_timeout=30), 60))
    world.add(pod("starts"))
    assert [key.name for key in world.fleet.scrape_targets()] == ["serves", "drains"]
