"""The load generator against real fake engines, and its books against theirs."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from e2e.engines.contract import Dialect
from e2e.engines.fleet import Fleet, FleetOptions
from e2e.engines.server import serve
from e2e.load.account import Account, Objectives, Outcome, Result
from e2e.load.client import LoadGenerator, Target
from e2e.load.endpoints import ServiceKey, SliceEndpoints, StaticEndpoints
from e2e.load.scenario import read_scenario, summary
from e2e.load.trace import Arrival, Kind
from tests.e2e_engines.builders import FAST, NEVER_UP, Notes, deleted, pod, until

CHAT = ServiceKey("team", "chat")
TARGET = Target(CHAT, "chat", Objectives(ttft_s=1.0, tpot_s=0.05))


class Ground:
    """A fleet of serving engines, and what is needed to send to them."""

    def __init__(self, fleet: Fleet, url: str) -> None:
        self.fleet, self.url = fleet, url
        self.endpoints = StaticEndpoints()
        self.results: list[Result] = []

    def add(self, name: str, **changes: Any) -> None:
        self.fleet.pod_seen(pod(name, ready_reported=True, **changes))
        self.endpoints.set(CHAT, [engine.pod.key.name for engine in self.fleet])

    def generator(self, **options: Any) -> LoadGenerator:
        return LoadGenerator(self.url, {"chat": TARGET}, self.endpoints, on_result=self.results.append, **options)


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    options = FleetOptions(time_scale=6000)
    fleet = Fleet(asyncio.get_running_loop(), Notes(), options=options, wall_clock=time.time)
    fleet.profile_seen("fast", FAST)
    fleet.profile_seen("never up", NEVER_UP)
    runner, port = await serve(fleet, 0)
    yield Ground(fleet, f"http://127.0.0.1:{port}")
    await runner.cleanup()


def burst(requests: int, *, output_tokens: int = 20, every_s: float = 0.0) -> list[Arrival]:
    return [Arrival(number * every_s, "chat", 50, output_tokens) for number in range(requests)]


def engine_totals(fleet: Fleet) -> dict[str, float]:
    """Sums over all pages, whatever the dialect."""
    totals: dict[str, float] = {}
    for engine in fleet:
        for family in text_string_to_metric_families(engine.metrics_page()):
            for sample in family.samples:
                name = sample.name.partition(":")[2]
                totals[name] = totals.get(name, 0) + sample.value
    return totals


async def test_the_clients_books_agree_with_the_engines_counters(ground: Ground) -> None:
    for number in range(4):
        ground.add(f"chat-{number}", dialect=Dialect.SGLANG if number == 3 else Dialect.VLLM)
    rng = random.Random(7)
    arrivals = [
        Arrival(rng.uniform(0, 1.5), "chat", rng.randint(1, 2000), max(1, int(rng.expovariate(1 / 60))))
        for _ in range(250)
    ]
    generator = ground.generator()
    await generator.run(sorted(arrivals))
    account, totals = generator.accounts["chat"], engine_totals(ground.fleet)
    assert account.outcomes[Outcome.OK] == account.arrived == len(arrivals)
    assert account.delivered_output_tokens == sum(arrival.output_tokens for arrival in arrivals)
    assert totals["generation_tokens_total"] == pytest.approx(account.delivered_output_tokens, rel=0.01)
    assert totals["prompt_tokens_total"] == pytest.approx(account.delivered_input_tokens, rel=0.01)
    assert totals["request_success_total"] + totals["num_requests_total"] == len(arrivals)
    assert totals["time_to_first_token_seconds_count"] == len(arrivals)
    ttft_s = sum(result.ttft_s or 0 for result in ground.results)
    assert totals["time_to_first_token_seconds_sum"] == pytest.approx(ttft_s, rel=0.01)
    tpot_s = sum(result.tpot_s or 0 for result in ground.results)
    assert totals["request_time_per_output_token_seconds_sum"] == pytest.approx(tpot_s, rel=0.01)


async def test_the_load_is_spread_over_the_ready_endpoints(ground: Ground) -> None:
    for number in range(3):
        ground.add(f"chat-{number}")
    await ground.generator().run(burst(90, every_s=0.002))
    share = {name: sum(result.pod == name for result in ground.results) for name in ("chat-0", "chat-1", "chat-2")}
    assert all(20 <= count <= 40 for count in share.values()), share


async def test_a_refusal_is_tried_once_elsewhere(ground: Ground) -> None:
    ground.add("serves")
    ground.fleet.pod_seen(pod("starts", profile="never up"))
    ground.endpoints.set(CHAT, ["serves", "starts"])
    generator = ground.generator()
    await generator.run(burst(30))
    assert generator.accounts["chat"].outcomes[Outcome.OK] == 30
    assert {result.attempts for result in ground.results} == {1, 2}


async def test_a_second_refusal_is_the_last(ground: Ground) -> None:
    ground.fleet.pod_seen(pod("starts", profile="never up"))
    ground.endpoints.set(CHAT, ["starts", "never-was"])
    generator = ground.generator()
    await generator.run(burst(3))
    assert generator.accounts["chat"].outcomes[Outcome.REFUSED] == 3
    assert {result.attempts for result in ground.results} == {2}


async def test_a_request_waits_for_an_endpoint_and_the_wait_is_in_its_ttft(ground: Ground) -> None:
    generator = ground.generator()
    sending = asyncio.create_task(generator.run(burst(1)))
    await asyncio.sleep(0.15)
    ground.add("late")
    await sending
    (result,) = ground.results
    assert result.outcome == Outcome.OK
    assert result.ttft_s is not None
    assert 0.15 <= result.ttft_s <= 5


async def test_without_an_endpoint_requests_are_missed(ground: Ground) -> None:
    generator = ground.generator(max_wait_seconds=0.05)
    await generator.run(burst(3))
    account = generator.accounts["chat"]
    assert (account.outcomes[Outcome.MISSED], account.attainment) == (3, 0.0)


async def test_a_killed_engine_cuts_its_requests_and_they_are_not_tried_again(ground: Ground) -> None:
    ground.add("dies")
    ground.add("stays")
    generator = ground.generator()
    sending = asyncio.create_task(generator.run(burst(20, output_tokens=300)))
    await until(lambda: min(engine.in_flight for engine in ground.fleet) > 5)
    await asyncio.sleep(0.3)
    ground.fleet.pod_gone(pod("dies").key)
    await sending
    outcomes = generator.accounts["chat"].outcomes
    assert outcomes[Outcome.CUT] + outcomes[Outcome.OK] == 20
    assert outcomes[Outcome.CUT] == sum(result.pod == "dies" for result in ground.results) > 0
    cut = next(result for result in ground.results if result.outcome == Outcome.CUT)
    assert (cut.ttft_s, cut.met) == (None, False)
    assert 0 < cut.delivered_tokens < 300


async def test_a_drain_with_time_cuts_nothing(ground: Ground) -> None:
    ground.add("goes", shutdown_timeout=30)
    ground.add("stays")
    generator = ground.generator()
    sending = asyncio.create_task(generator.run(burst(40, output_tokens=60, every_s=0.01)))
    await until(lambda: min(engine.in_flight for engine in ground.fleet) > 0)
    ground.fleet.pod_seen(deleted(pod("goes", shutdown_timeout=30), 60))
    await sending
    assert generator.accounts["chat"].outcomes[Outcome.OK] == 40


async def test_no_server_at_all_is_a_failure(ground: Ground) -> None:
    ground.endpoints.set(CHAT, ["a"])
    generator = LoadGenerator("http://127.0.0.1:9", {"chat": TARGET}, ground.endpoints)
    await generator.run(burst(1))
    assert generator.accounts["chat"].outcomes[Outcome.FAILED] == 1


def result(**changes: Any) -> Result:
    standard: dict[str, Any] = {
        "service": "chat", "arrived_epoch_s": 0.0, "outcome": Outcome.OK, "input_tokens": 10, "output_tokens": 20,
        "delivered_tokens": 20, "attempts": 1, "pod": "p", "ttft_s": 0.5, "tpot_s": 0.02, "e2e_s": 1.0, "met": True,
    }  # fmt: skip
    return Result(**(standard | changes))


MET = {
    "both": (0.5, 0.02, True),
    "at the targets": (1.0, 0.05, True),
    "late first token": (1.01, 0.02, False),
    "slow tokens": (0.5, 0.051, False),
    "no answer": (None, None, False),
}


@pytest.mark.parametrize(("ttft_s", "tpot_s", "met"), MET.values(), ids=MET)
def test_a_request_meets_its_objectives_only_within_both(ttft_s: float | None, tpot_s: float | None, met: bool) -> None:
    assert TARGET.objectives.are_met(ttft_s, tpot_s) is met


def test_the_account_shows_totals_and_the_last_seconds() -> None:
    account = Account(TARGET.objectives)
    for second in range(100):
        account.count_arrival(20, float(second))
        account.count(result(met=second < 80, outcome=Outcome.OK if second < 80 else Outcome.CUT), float(second))
    assert account.attainment == 0.8
    recent = account.recent(99.0, 10.0)
    assert recent.requests_per_second == pytest.approx(1.1)
    assert recent.demand_tokens_per_second == pytest.approx(22)
    assert (recent.attainment, recent.ttft_p95_s) == (0.0, 0.5)
    assert account.recent(300.0, 10.0).attainment is None


def slice_object(name: str, *pods: tuple[str, bool]) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team", "name": name, "labels": {"kubernetes.io/service-name": "chat"}},
        "endpoints": [
            {"conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "name": pod_name}} for pod_name, ready in pods
        ],
    }


async def test_endpoints_follow_all_slices_of_a_service() -> None:
    endpoints = SliceEndpoints()
    waiting = asyncio.create_task(endpoints.wait_ready(CHAT))
    endpoints.listed([slice_object("a", ("x", False)), {"metadata": {"namespace": "team", "name": "other"}}])
    assert endpoints.ready(CHAT) == ()
    endpoints.seen(slice_object("a", ("x", True), ("y", False)))
    endpoints.seen(slice_object("b", ("z", True)))
    await asyncio.wait_for(waiting, 1)
    assert endpoints.ready(CHAT) == ("x", "z")
    endpoints.gone(slice_object("a"))
    assert endpoints.ready(CHAT) == ("z",)
    endpoints.listed([])
    assert endpoints.ready(CHAT) == ()


def test_a_scenario_is_read() -> None:
    scenario = read_scenario(
        """
        seconds: 60
        time_scale: 12
        services:
          - {name: chat, namespace: team, model: big, ttft_seconds: 2, tpot_seconds: 0.05, trace: conv, copies: 1.5}
        """
    )
    assert scenario.targets["chat"] == Target(CHAT, "big", Objectives(2.0, 0.05))
    assert (scenario.recipes["chat"].kind, scenario.recipes["chat"].copies) == (Kind.CONV, 1.5)


def test_the_summary_names_every_outcome() -> None:
    generator = LoadGenerator("http://127.0.0.1:9", {"chat": TARGET}, StaticEndpoints())
    generator.accounts["chat"].count_arrival(20, 0.0)
    generator.accounts["chat"].count(result(), 0.0)
    assert summary(generator.accounts)["chat"] == {
        "arrived": 1, "ok": 1, "refused": 0, "failed": 0, "cut": 0, "missed": 0,
        "attainment": 1.0, "output_tokens": 20, "input_tokens": 10,
    }  # fmt: skip
