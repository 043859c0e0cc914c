"""From a scenario to a fleet that can run: everything is derived here once, the same for every policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf
from typing import Any

import numpy as np

from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.catalogue import architectures, capacity_profiles
from tokenservice.core.capacity import Capacity, Targets, Workload, targets
from tokenservice.core.manifests import engines_of
from tokenservice.core.model import Profile, Service, ServiceKey, Variant
from tokenservice.core.variants import Ranked, ranked
from tokenservice.core.windows import Windows
from tokenservice.errors import InputError
from tokenservice.simulate.cluster import Cluster, NodeGroup, Pace
from tokenservice.simulate.control import SETTINGS, Controller, Counts, Operator
from tokenservice.simulate.fleet import Fleet, Lane
from tokenservice.simulate.metering import Meter
from tokenservice.simulate.policies.base import bounded
from tokenservice.simulate.policies.static import BIN_SECONDS, p99_sizes
from tokenservice.simulate.policy import Policy
from tokenservice.simulate.pool import Pool
from tokenservice.simulate.reference import Reference, bounds_of, reference, sustained
from tokenservice.simulate.scenario_spec import Billing, ColdStart, Scenario, ScenarioService
from tokenservice.simulate.scenario_spec import Pool as NodePool
from tokenservice.simulate.steady import Lengths
from tokenservice.simulate.tally import Tally
from tokenservice.simulate.traffic import Floats
from tokenservice.simulate.workload import Workload as Traffic

Json = dict[str, Any]

_LENGTHS = 20_000
"""Drawn for the yardstick."""

_SAMPLES = 1000
"""Lines of the timeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One service as a scenario has it: what it may run on, its yardstick, its traffic, its size in a static fleet.

    `variant` is the one that policies of counts use: the cheapest for its tokens that the fleet has. `variants` keep
    the objectives at the mean lengths; `ways` are all, for the operator judges by the lengths that it measures, and
    `weights` are capacities of those that keep the objectives, in units of that one's. `lambda_star` and `usual` are
    what a load test of `variant` with this traffic tells, prefix hits included; the yardstick is of requests without
    any. Requests of more than `longest` tokens are refused.
    """

    service: Service
    variant: Variant
    variants: Ranked
    ways: tuple[Variant, ...]
    weights: Mapping[str, float]
    yardstick: Reference
    lambda_star: float
    usual: Workload
    traffic: Traffic
    demand: Floats
    cold_start: ColdStart
    longest: int
    deadline_seconds: float = inf

    @property
    def spec(self) -> TokenServiceSpec:
        """The contract."""
        assert self.service.spec is not None
        return self.service.spec

    @property
    def targets(self) -> Targets:
        """The latency objectives."""
        return targets(self.spec.objectives)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Everything that the runs of one scenario share; `demand` of offers is in requests per second, in bins of 10 s."""

    scenario: Scenario
    offers: Mapping[ServiceKey, Offer]
    seconds: float
    seed: int

    @cached_property
    def static(self) -> Mapping[ServiceKey, int]:
        """`ceil(p99 of each service's demand / lambda*)`, at least 1, within the service's bounds."""
        demand = {key: one.demand for key, one in self.offers.items()}
        sizes = p99_sizes(demand, {key: one.lambda_star for key, one in self.offers.items()})
        return {key: bounded(size, self.offers[key]) for key, size in sizes.items()}

    @property
    def policy(self) -> TokenFleetSpec:
        """The fleet's policy, with the scenario's window of rates."""
        own = self.scenario.token_fleet
        window = ceil(self.scenario.rate_window_seconds)
        return own.model_copy(update={"prometheus": own.prometheus.model_copy(update={"window_seconds": window})})


def setting(scenario: Scenario, *, seed: int | None = None, said: Callable[[str], None] = lambda _: None) -> Setting:
    """Reads the data and measures the yardsticks; `said` is told what is under way. InputError for wrong input."""
    chosen = scenario.seed if seed is None else seed
    workloads = scenario.workloads(chosen)
    seconds = scenario.duration_s(workloads)
    offers = {}
    for service in scenario.services:
        said(f"measuring {service.key.name}")
        offers[service.key] = _offer(scenario, service, workloads[service.key], seconds)
    return Setting(scenario=scenario, offers=offers, seconds=seconds, seed=chosen)


def _offer(scenario: Scenario, service: ScenarioService, traffic: Traffic, seconds: float) -> Offer:
    spec, goals = service.spec, targets(service.spec.objectives)
    inputs, outputs = (float(mean) for mean in traffic.mean_lengths())
    lengths_on_average, every = Workload(inputs, outputs), scenario.may_run(service)
    order, unreachable = ranked(spec, scenario.variants(service), lengths_on_average, goals)
    if not order:
        raise InputError(f"{service.key.name}: " + "; ".join(problem.message for problem in unreachable))
    longest = _longest(spec, every)
    lengths = [one for one in traffic.sample_lengths(_LENGTHS, 0) if sum(one) - 1 <= longest]
    if not lengths:
        raise InputError(
            f"{service.key.name}: no request has {longest} tokens or fewer, which is what its engines take:"
            " raise maxModelLen, or name a reference variant with a larger KV cache"
        )
    yardstick_variant, variant = scenario.reference(service), order[0][0]
    yardstick = reference(yardstick_variant, lengths, goals)
    sample = [one for one in traffic.sample_requests(_LENGTHS, 0) if sum(one[:2]) - 1 <= longest]
    hit_rate = sum(cached for *_, cached in sample) / max(1, sum(inputs for inputs, *_ in sample))
    return Offer(
        service=_service(service),
        variant=variant,
        variants=order,
        ways=every,
        weights=_weights(order[0][1], ranked(spec, every, lengths_on_average, goals)[0]),
        yardstick=yardstick,
        lambda_star=_sustained(variant, sample if hit_rate else lengths, yardstick, yardstick_variant, goals),
        usual=Workload(yardstick.mean_input_tokens, yardstick.mean_output_tokens, hit_rate),
        traffic=traffic,
        demand=_demand(traffic.fresh(), seconds),
        longest=longest,
        cold_start=scenario.cold_start,
        deadline_seconds=inf if service.workload.deferrable is None else service.workload.deferrable.deadline_seconds,
    )


def _sustained(variant: Variant, lengths: Lengths, yardstick: Reference, measured: Variant, goals: Targets) -> float:
    """Requests per second that a replica holds with these lengths; the yardstick's own where those are what it had."""
    if variant.name == measured.name and len(lengths[0]) == 2:
        return yardstick.requests_per_second
    return sustained(variant, lengths, goals)


def _weights(unit: Capacity, able: Ranked) -> dict[str, float]:
    return {variant.name: capacity.requests_per_second / unit.requests_per_second for variant, capacity in able}


def _longest(spec: TokenServiceSpec, ways: Sequence[Variant]) -> int:
    """Tokens of a request that every engine of the service takes: as its model or the smallest cache holds."""
    room = min(variant.kv_capacity_tokens for variant in ways)
    return min(room, spec.engine.max_model_len or room)


def _service(service: ScenarioService) -> Service:
    return Service(
        key=service.key,
        uid=f"uid-{service.key.name}",
        generation=1,
        resource_version="1",
        created_at=0.0,
        spec=service.spec,
    )


def _demand(traffic: Traffic, seconds: float) -> Floats:
    """Requests per second, in bins of 10 s: all, for a static fleet has those that may wait sent as they come."""
    starts = np.arange(0.0, seconds, BIN_SECONDS).tolist()
    counts = [len(traffic.stretch(start, min(start + BIN_SECONDS, seconds))) for start in starts]
    return np.array(counts, dtype=np.float64) / BIN_SECONDS


def fleet(setting: Setting, decider: Policy | None) -> Fleet:
    """A fleet at its start: warm, at static size. Without a policy the operator decides."""
    scenario = setting.scenario
    running = Fleet(
        lanes={key: _lane(setting, one) for key, one in setting.offers.items()},
        controller=_controller(setting, decider),
        seconds=setting.seconds,
        scrape_seconds=scenario.scrape_interval_seconds,
        sample_seconds=max(10.0, setting.seconds / _SAMPLES),
        failures=scenario.failures,
    )
    running.cluster = Cluster(
        groups={pool.accelerator_class: _group(scenario, pool) for pool in scenario.fleet},
        pace=Pace(node_start_seconds=scenario.node_start_seconds, node_idle_seconds=scenario.node_idle_seconds),
        engines=running,
        gates=decider is None,
    )
    _warm(setting, running.cluster)
    return running


def _group(scenario: Scenario, pool: NodePool) -> NodeGroup:
    accelerator = next(one for one in scenario.accelerators if one.name == pool.accelerator_class)
    return NodeGroup(
        accelerator=accelerator,
        accelerators_per_node=accelerator.spec.accelerators_per_node,
        most_nodes=pool.max_nodes,
        whole_nodes=pool.billing is Billing.WHOLE_NODE,
    )


def _manifest(one: Offer, fleet: TokenFleetSpec) -> Json:
    """The Deployment of the service's first variant, as the operator renders it."""
    rendered: Json = engines_of(one.service, one.variant, 0, SETTINGS, fleet=fleet, surge=0)
    return rendered


def _controller(setting: Setting, decider: Policy | None) -> Controller:
    if decider is not None:
        return Counts(decider, {key: _manifest(one, setting.policy) for key, one in setting.offers.items()})
    return operator(setting)


def operator(setting: Setting) -> Operator:
    """The operator as it decides on the scenario."""
    scenario = setting.scenario
    return Operator(
        services=tuple(one.service for one in setting.offers.values()),
        accelerators=scenario.accelerators,
        profiles=_profiles(scenario),
        architectures=architectures(),
        fleet=setting.policy,
        period_seconds=scenario.control_period_seconds,
    )


def _profiles(scenario: Scenario) -> tuple[Profile, ...]:
    """The catalogue's; where the scenario says how long replicas load, the profiles say so too."""
    seconds = scenario.cold_start.seconds
    known = {} if seconds is None else {"cold_start_seconds": seconds}
    return tuple(
        Profile(name=name, spec=spec.model_copy(update=known)) for name, spec in sorted(capacity_profiles().items())
    )


def _lane(setting: Setting, one: Offer) -> Lane:
    pool = Pool(bounds_of(one.targets))
    policy = setting.policy
    windows = Windows.of(policy)
    return Lane(
        service=one.service,
        variant=one.variant,
        variants={variant.name: variant for variant in one.ways},
        weights=one.weights,
        reference=one.yardstick,
        lambda_star=one.lambda_star,
        usual=one.usual,
        arrivals=one.traffic.fresh(),
        pool=pool,
        meter=Meter(windows, pool.ttft_edges_s, pool.tpot_edges_s, one.deadline_seconds),
        tally=Tally(one.yardstick, bounds_of(one.targets), setting.seconds),
        cold_start=one.cold_start,
        longest=one.longest,
    )


def _warm(setting: Setting, cluster: Cluster) -> None:
    """The first replicas, loaded, on the scenario's nodes and as many more as they need."""
    for pool in setting.scenario.fleet:
        for _ in range(pool.initial_nodes):
            cluster.add_node(pool.accelerator_class)
    for key, one in setting.offers.items():
        replicas = setting.scenario.initial_replicas.get(key.name, setting.static[key])
        cluster.scale(_manifest(one, setting.policy), replicas)
    cluster.begin()
