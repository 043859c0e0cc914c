"""Fleets in simulated time: every request counted once, every accelerator billed once, the same twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, field, replace
from functools import cache
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.simulate.rig import LOAD_SECONDS, NODE_START_SECONDS, manifest
from tests.simulate.rig import cluster as bare_cluster
from tests.simulate.views import make_variant
from tests.support.build import make_service
from tokenservice.core.capacity import Workload
from tokenservice.core.model import Missing, ServiceKey, ServiceMetrics, Variant
from tokenservice.core.windows import Windows
from tokenservice.simulate.assemble import Setting, fleet, setting
from tokenservice.simulate.bounds import Bounds
from tokenservice.simulate.cluster import Cluster
from tokenservice.simulate.control import Sight
from tokenservice.simulate.fleet import Fleet, Lane
from tokenservice.simulate.metering import Meter
from tokenservice.simulate.pool import Pool
from tokenservice.simulate.reference import Reference
from tokenservice.simulate.result import Result, result
from tokenservice.simulate.run import decider, run
from tokenservice.simulate.scenario import load
from tokenservice.simulate.scenario_spec import Bandwidths, ColdStart, Failure, Stages
from tokenservice.simulate.tally import Tally
from tokenservice.simulate.traffic import Requests
from tokenservice.simulate.workload_spec import Deferrable

QUICK = Path(__file__).parents[2] / "docs/scenarios/quick.yaml"
POLICIES = ("operator", "static-p99", "keda-queue", "knative-kpa")
each_policy = pytest.mark.parametrize("policy", POLICIES)


@cache
def quick(seed: int = 0) -> Setting:
    return setting(load(QUICK), seed=seed)


@cache
def ran(policy: str) -> tuple[Fleet, Result]:
    """The quick scenario under a policy, once for all tests."""
    made = fleet(quick(), decider(quick(), policy))
    made.run()
    return made, result(made, scenario="quick", policy=policy, seed=0)


LIMITED = """
name: limited
fleet:
- acceleratorClass: h100
- {acceleratorClass: l40s, initialNodes: 2}
tokenFleet:
  namespaces: [{name: default, accelerators: [l40s]}]
durationSeconds: 300
services:
- service:
    apiVersion: taas.dev/v1alpha1
    kind: TokenService
    metadata: {name: chat}
    spec:
      model: {uri: "hf://openai/gpt-oss-120b"}
      engine: {name: vLLM}
  referenceVariant: h100-vllm-tp2-mxfp4
  workload:
    rate: {requestsPerMinute: [[0, 60], [300, 60]]}
    lengths:
      input: {quantiles: [[0, 10], [50, 900], [100, 6000]]}
      output: {quantiles: [[0, 1], [50, 120], [100, 1000]]}
"""
"""The model has a profile for H100s alone, which its namespace may not use: an estimate has to do."""


def test_what_the_operator_may_only_estimate_can_be_run(tmp_path: Path) -> None:
    (tmp_path / "limited.yaml").write_text(LIMITED)
    made = fleet(setting(load(tmp_path / "limited.yaml")), None)
    made.run()
    assert {pod.variant for pod in made.cluster.pods.values()} == {"l40s-vllm-tp2-mxfp4"}
    lane = lane_of(made)
    assert 0 < lane.weights["l40s-vllm-tp2-mxfp4"] < lane.weights["h100-vllm-tp2-mxfp4"]
    assert lane.tally.attainment > 0.99


# --- the quick scenario


@each_policy
def test_the_waterfall_adds_up_to_one_and_nothing_in_it_is_negative(policy: str) -> None:
    _, found = ran(policy)
    assert sum(astuple(found.waterfall)) == pytest.approx(1, abs=1e-6)
    assert min(astuple(found.waterfall)) >= 0
    assert found.utilization == found.waterfall.utilization > 0.05


@each_policy
def test_every_request_of_the_workload_arrives_and_is_met_or_missed(policy: str) -> None:
    made, found = ran(policy)
    for key, lane in made.lanes.items():
        came = quick().offers[key].traffic.fresh().stretch(0, quick().seconds)
        interactive = int(np.isnan(came.deadline_s).sum())
        tally, stats = lane.tally, lane.pool.stats()
        assert (tally.arrived, tally.arrived + tally.deferrable_arrived) == (interactive, len(came))
        assert found.services[key.name].requests == len(came)
        assert tally.finished + stats.held + stats.deferred + int((stats.running + stats.waiting).sum()) == len(came)
        assert (tally.met, tally.deferrable_met) == (stats.met_targets, stats.met_deadlines)
        assert tally.tokens_owed + tally.output_tokens == int(came.output_tokens.sum())
        assert tally.work_offered >= tally.work_met + tally.work_missed - 1e-6


@each_policy
def test_what_existed_is_what_is_billed(policy: str) -> None:
    made, found = ran(policy)
    assert found.accelerator_hours == pytest.approx(made.cluster.ledger.accelerator_hours(made.seconds))
    assert made.cluster.now == made.now == made.seconds
    prices = {span.accelerator.spec.price_per_hour for span in made.cluster.ledger.every_span()}
    assert found.dollars == pytest.approx(found.accelerator_hours * prices.pop())


@pytest.mark.parametrize("policy", ["operator", "keda-queue"])
def test_the_same_seed_gives_the_same_run_to_the_last_digit(policy: str) -> None:
    assert run(setting(load(QUICK), seed=0), policy).json() == ran(policy)[1].json()


def test_another_seed_gives_other_requests() -> None:
    assert run(quick(7), "static-p99").json() != ran("static-p99")[1].json()


@pytest.mark.parametrize("policy", ["operator", "keda-queue"])
def test_looking_on_changes_nothing(policy: str) -> None:
    watched = fleet(quick(), decider(quick(), policy))
    watched.sample_seconds = 1.7
    shares: list[float] = []
    watched.run(shares.append)
    found = result(watched, scenario="quick", policy=policy, seed=0)
    usual = ran(policy)[1].json(timeline=False)
    assert figures(found.json(timeline=False)) == pytest.approx(figures(usual))  # sums in another order
    assert shares == sorted(shares)
    assert 0 <= shares[0] < shares[-1] <= 1


def figures(found: Any, name: str = "") -> dict[str, Any]:
    """Every figure of a result under its path, the timeline left out."""
    if not isinstance(found, dict):
        return {name: found}
    return {path: value for key, one in found.items() for path, value in figures(one, f"{name}.{key}").items()}


# --- fleets by hand

BOUNDS = Bounds(ttft_seconds=2.0, tpot_seconds=0.05)
VARIANT = make_variant()
YARDSTICK = Reference(
    model=VARIANT.step,
    tensor_parallel_size=1,
    requests_per_second=10.0,
    batch=20.0,
    mean_input_tokens=100.0,
    mean_output_tokens=100.0,
)


@dataclass
class Steady:
    """So many requests every second on the second, each of a hundred tokens in and out; a share that may wait."""

    per_second: int
    deferrable_every: int = 0
    deadline_seconds: float = 300.0
    calls: list[tuple[float, float]] = field(default_factory=list)

    def stretch(self, start_s: float, end_s: float) -> Requests:
        self.calls.append((start_s, end_s))
        seconds = np.arange(np.ceil(start_s), np.ceil(end_s))
        at = np.repeat(seconds, self.per_second)
        waits = np.zeros(len(at), bool)
        if self.deferrable_every:
            waits[:: self.deferrable_every] = True
        lengths = np.full(len(at), 100, np.int32)
        deadline = np.where(waits, at + self.deadline_seconds, nan)
        return Requests(at, lengths, lengths, np.zeros(len(at), np.int32), deadline)

    @property
    def duration_s(self) -> float:
        return inf

    def expected_rate(self, start_s: float, end_s: float) -> float:
        return float(self.per_second)


@dataclass
class Idle:
    """A controller that notes what it can see, and does what it was told to do at its time."""

    filled_to: float = 6.0
    period_seconds: float = 10.0
    name: str = "idle"
    seen: list[ServiceMetrics | Missing] = field(default_factory=list)
    deeds: dict[float, Callable[[Cluster], None]] = field(default_factory=dict)

    def fill_to(self, key: ServiceKey, variant: Variant) -> float:
        return self.filled_to

    def control(self, cluster: Cluster, sight: Sight) -> None:
        self.seen += sight.metrics().values()
        for at in [at for at in self.deeds if at <= cluster.now]:
            self.deeds.pop(at)(cluster)


def made_fleet(
    arrivals: Steady,
    *,
    replicas: int = 1,
    seconds: float = 300.0,
    failures: Iterable[Failure] = (),
    longest: int = 10**6,
) -> Fleet:
    service, pool = make_service("chat"), Pool(BOUNDS)
    lane = Lane(
        service=service,
        variant=VARIANT,
        variants={VARIANT.name: VARIANT},
        weights={VARIANT.name: 1.0},
        reference=YARDSTICK,
        arrivals=arrivals,
        pool=pool,
        meter=Meter(Windows(rate=15, peak=60, staleness=30), pool.ttft_edges_s, pool.tpot_edges_s),
        tally=Tally(YARDSTICK, BOUNDS, seconds),
        lambda_star=10.0,
        usual=Workload(YARDSTICK.mean_input_tokens, YARDSTICK.mean_output_tokens),
        cold_start=ColdStart(seconds=LOAD_SECONDS),
        longest=longest,
    )
    made = Fleet(
        lanes={service.key: lane},
        controller=Idle(),
        seconds=seconds,
        scrape_seconds=5.0,
        sample_seconds=10.0,
        failures=tuple(failures),
    )
    made.cluster = replace(bare_cluster(), engines=made)
    made.cluster.scale(manifest(), replicas)
    made.cluster.begin()
    return made


def lane_of(made: Fleet) -> Lane:
    return next(iter(made.lanes.values()))


def tally_of(made: Fleet) -> Tally:
    return lane_of(made).tally


def controller_of(made: Fleet) -> Idle:
    assert isinstance(made.controller, Idle)
    return made.controller


def at(seconds: float, *, node: str | None = None, service: str | None = None) -> Failure:
    return Failure(at_seconds=seconds, node=node, service=service)


def test_a_fleet_that_is_left_alone_serves_everybody_from_the_start() -> None:
    made = made_fleet(Steady(3))
    made.run()
    tally = tally_of(made)
    assert (tally.arrived, tally.finished, tally.met, tally.attainment) == (900, 900, 900, 1.0)
    assert tally.work_met == pytest.approx(900 * 1 / 10)
    assert made.cluster.ledger.held.ready == pytest.approx(300)
    assert result(made, scenario="", policy="", seed=0).utilization == pytest.approx(900 / 10 / (8 * 300))


def test_arrivals_are_asked_for_in_one_line_from_start_to_end() -> None:
    arrivals = Steady(1)
    made = made_fleet(arrivals, failures=[at(33.3, service="chat")])
    made.run()
    starts, ends = zip(*arrivals.calls, strict=True)
    assert (starts[0], ends[-1]) == (0.0, 300.0)
    assert starts[1:] == ends[:-1]


def test_what_ran_on_a_lost_node_is_lost_and_missed_and_who_comes_meanwhile_waits_for_the_next() -> None:
    made = made_fleet(Steady(3), failures=[at(100.2, node="h100")])
    made.run()
    tally, downtime = tally_of(made), NODE_START_SECONDS + LOAD_SECONDS
    lost = tally.arrived - tally.finished
    assert lost == 3  # those of second 100: a request takes a second
    late = tally.finished - tally.ttft_met
    assert 3 * (downtime - 2) <= late <= 3 * (downtime + 3)
    assert tally.met == tally.arrived - lost - late
    assert made.cluster.ledger.held.starting == pytest.approx(LOAD_SECONDS)
    assert made.cluster.ledger.held.on_empty_nodes == pytest.approx(8 * NODE_START_SECONDS)


def test_a_crashed_replica_loses_its_requests_and_is_back_after_its_load() -> None:
    made = made_fleet(Steady(3), failures=[at(100.2, service="chat")])
    made.run()
    tally = tally_of(made)
    assert tally.arrived - tally.finished == 3
    assert 3 * (LOAD_SECONDS - 2) <= tally.finished - tally.ttft_met <= 3 * (LOAD_SECONDS + 2)
    assert made.cluster.ledger.nodes_started == 1
    assert [moment.ready["chat"] for moment in made.timeline if 100 < moment.at < 125] == [0, 0]


def test_a_replica_that_comes_back_to_its_node_finds_the_weights_in_its_cache() -> None:
    made = made_fleet(Steady(3), failures=[at(100.2, service="chat")])
    speeds = Bandwidths(hf=VARIANT.weight_bytes / 500, cached=VARIANT.weight_bytes / 8)
    stages = Stages(bootstrap_seconds=0, compile_seconds=0, bytes_per_second=speeds)
    lane_of(made).cold_start = ColdStart(stages=stages)
    made.run()
    assert [moment.ready["chat"] for moment in made.timeline if 100 < moment.at < 125] == [1, 1]


def test_while_no_engine_is_there_prometheus_knows_nothing() -> None:
    made = made_fleet(Steady(3), failures=[at(100.2, service="chat")])
    made.run()
    seen = controller_of(made).seen
    assert isinstance(seen[5], ServiceMetrics)
    assert seen[5].requests_per_second == pytest.approx(3.0, rel=0.1)
    assert [isinstance(one, Missing) for one in seen[10:14]] == [True, True, False, False]


@pytest.mark.parametrize(("scrape", "control", "sample"), [(1.0, 30.0, 3.0), (7.3, 0.9, 100.0)], ids=str)
def test_when_one_looks_decides_or_samples_changes_nothing_of_what_is(
    scrape: float, control: float, sample: float
) -> None:
    usual, other = (
        made_fleet(Steady(9, deferrable_every=10), failures=[at(50.4, service="chat"), at(120.6, node="h100")])
        for _ in range(2)
    )
    other.controller = Idle(period_seconds=control)
    other.scrape_seconds, other.sample_seconds = scrape, sample
    for made in (usual, other):
        made.run()
    assert counted(other) == counted(usual)
    assert astuple(other.cluster.ledger.held) == pytest.approx(astuple(usual.cluster.ledger.held))


def counted(made: Fleet) -> tuple[int, ...]:
    tally = tally_of(made)
    return (tally.arrived, tally.finished, tally.met, tally.ttft_met, tally.deferrable_met, tally.output_tokens)


def test_requests_that_came_in_time_may_finish_after_the_end_and_nothing_is_billed_for_it() -> None:
    made = made_fleet(Steady(3), seconds=100.5)
    made.run()
    assert tally_of(made).met == tally_of(made).arrived == 303
    assert made.cluster.ledger.held.existing == pytest.approx(8 * 100.5)


def test_work_that_may_wait_fills_replicas_without_harm_to_those_who_may_not() -> None:
    alone, filled = made_fleet(Steady(4)), made_fleet(Steady(5, deferrable_every=5))
    for made in (alone, filled):
        made.run()
    tally = tally_of(filled)
    assert (tally.arrived, tally.met) == (tally_of(alone).arrived, tally_of(alone).met)
    assert tally.deferrable_arrived == 300
    assert tally.deferrable_attainment == 1.0


def test_work_that_may_wait_is_sent_before_the_first_decision_too() -> None:
    """A static fleet decides once an hour, and is sized for that work: it would stand idle until then."""
    made = made_fleet(Steady(5, deferrable_every=5))
    controller_of(made).period_seconds = 3600.0
    made.run()
    assert tally_of(made).deferrable_attainment == 1.0


def test_what_is_longer_than_the_engine_takes_is_refused_and_missed() -> None:
    for longest, met in ((199, 1200), (198, 0)):
        made = made_fleet(Steady(4), longest=longest)
        made.run()
        assert (tally_of(made).arrived, tally_of(made).met) == (1200, met)


def test_work_that_may_wait_is_demand_like_any_other_to_who_sends_it_as_it_comes() -> None:
    seen = {}
    for filled_to in (6.0, inf):
        made = made_fleet(Steady(5, deferrable_every=5))
        controller_of(made).filled_to = filled_to
        made.run()
        seen[filled_to] = controller_of(made).seen[-1]
    rates = {to: metrics.requests_per_second for to, metrics in seen.items() if isinstance(metrics, ServiceMetrics)}
    assert rates == {6.0: pytest.approx(4.0), inf: pytest.approx(5.0)}


def test_a_static_fleet_is_sized_for_work_that_may_wait_too() -> None:
    quick = load(QUICK)
    may_wait = {"deferrable": Deferrable(share_of_all_work=0.5, deadline_seconds=60.0)}
    services = [one.model_copy(update={"workload": one.workload.model_copy(update=may_wait)}) for one in quick.services]
    assert setting(quick.model_copy(update={"services": services})).static == setting(quick).static


def test_work_that_may_wait_and_still_does_at_the_end_is_not_done_for_nothing() -> None:
    made = made_fleet(Steady(60, deferrable_every=2), seconds=60.0)
    made.run()
    tally, stats = tally_of(made), lane_of(made).pool.stats()
    assert stats.deferred == tally.deferrable_arrived - tally.deferrable_met > 100


def test_a_replica_that_is_scaled_in_finishes_what_it_has() -> None:
    made = made_fleet(Steady(8), replicas=2)
    controller_of(made).deeds[100.0] = lambda cluster: cluster.scale(manifest(), 1)
    made.run()
    tally = tally_of(made)
    assert (tally.arrived, tally.finished) == (2400, 2400)
    assert 0 < made.cluster.ledger.held.draining < 10
    assert [moment.asked["chat"] for moment in made.timeline[9:12]] == [2, 1, 1]


@pytest.mark.parametrize("seconds", [299.9, 1000.0])
def test_a_failure_after_the_end_or_with_nothing_to_fail_is_none(seconds: float) -> None:
    made = made_fleet(Steady(1), failures=[at(seconds, node="none")])
    made.run()
    assert tally_of(made).attainment == 1.0


def test_two_failures_at_one_instant_both_happen() -> None:
    made = made_fleet(Steady(1), replicas=2, failures=[at(100.0, service="chat"), at(100.0, service="chat")])
    made.run()
    assert sum(pod.restarts for pod in made.cluster.pods.values()) == 2
