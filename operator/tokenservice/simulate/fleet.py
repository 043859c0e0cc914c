"""A fleet in simulated time: requests, replicas, cluster and whoever decides, on one clock.

Time passes in stretches: to the next scrape, the next decision, or the next thing that the cluster does by itself.
Within a stretch nothing changes but requests, so each service's replicas run on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

import numpy as np

from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.capacity import DEFAULT, Workload, targets
from tokenservice.core.model import Missing, Pod, Service, ServiceKey, ServiceMetrics, Variant
from tokenservice.simulate.cluster import Cluster
from tokenservice.simulate.control import Controller
from tokenservice.simulate.metering import Meter, scrape
from tokenservice.simulate.policy import FleetView, ServiceView
from tokenservice.simulate.pool import Pool
from tokenservice.simulate.reference import Reference, limits_of
from tokenservice.simulate.scenario_spec import ColdStart, Failure
from tokenservice.simulate.sources import admitted
from tokenservice.simulate.tally import Tally
from tokenservice.simulate.traffic import Requests

NOT_READ = Missing("NotRead", "metrics were not read yet")

_LINGER_SECONDS = 600.0
"""Requests that arrived in time may finish within so long after the end; nothing is billed for it."""


class Arrivals(Protocol):
    """A service's workload."""

    def stretch(self, start_s: float, end_s: float) -> Requests:
        """Arrivals in [start, end); called with consecutive stretches."""

    @property
    def duration_s(self) -> float:
        """Time after which nothing arrives any more."""

    def expected_rate(self, start_s: float, end_s: float) -> float:
        """True mean rate, requests per second, between two times before that."""


@dataclass
class Lane:
    """One service: its traffic, its replicas, what is known of it and what is counted.

    `variants` are all that may run, `variant` is the one that policies of counts use. `weights` are capacities in
    units of that one's; requests of more than `longest` tokens are refused, as engines do; `lambda_star` is what a
    replica of that one holds of the `usual` requests, per second (see `steady`).
    """

    service: Service
    variant: Variant
    variants: Mapping[str, Variant]
    weights: Mapping[str, float]
    reference: Reference
    arrivals: Arrivals
    pool: Pool
    meter: Meter
    tally: Tally
    lambda_star: float
    usual: Workload
    cold_start: ColdStart
    longest: int
    slots: dict[str, int] = field(default_factory=dict)
    metrics: ServiceMetrics | Missing = NOT_READ

    @property
    def spec(self) -> TokenServiceSpec:
        """The contract."""
        assert self.service.spec is not None
        return self.service.spec


@dataclass(slots=True)
class Moment:
    """One line of the timeline: means are not taken, this is how it stood."""

    at: float
    accelerators: int
    ready: dict[str, int]
    asked: dict[str, int]
    demand: dict[str, float]


@dataclass
class Fleet:
    """Everything that moves, and the clock that moves it."""

    lanes: Mapping[ServiceKey, Lane]
    controller: Controller
    seconds: float
    scrape_seconds: float
    sample_seconds: float
    failures: Sequence[Failure] = ()
    timeline: list[Moment] = field(default_factory=list)
    now: float = 0.0
    _read: set[tuple[str | None, str, str]] = field(default_factory=set)
    cluster: Cluster = field(init=False)
    """Set once it exists: it tells this fleet of its pods."""

    # --- the clock

    def run(self, progress: Callable[[float], None] = lambda _: None) -> None:
        """From the start to the end of the scenario; the cluster is warm already."""
        look, control, sample = self.scrape_seconds, self.controller.period_seconds, 0.0
        failures = sorted(self.failures, key=lambda failure: failure.at_seconds)
        self._let_wait()
        while self.now < self.seconds:
            failing = failures[0].at_seconds if failures else inf
            stop = min(look, control, sample, failing, max(self.now, self.cluster.next_due()), self.seconds)
            self._pass(stop)
            if stop >= failing:
                self._fail(failures.pop(0))
            if stop >= look:
                self._scrape()
                look += self.scrape_seconds
            if stop >= control:
                self._decide()
                control += self.controller.period_seconds
            if stop >= sample:
                self._sample()
                sample += self.sample_seconds
                progress(stop / self.seconds)
        self._linger()

    def _pass(self, until: float) -> None:
        if until > self.now:
            for lane in self.lanes.values():
                requests = lane.arrivals.stretch(self.now, until)
                lane.tally.came(requests)
                lane.tally.went(lane.pool.advance(admitted(requests, lane.longest), until))
            self.now = until
        self.cluster.settle(until)

    def _linger(self) -> None:
        """What waited for room until now is not done on accelerators that nobody pays."""
        for lane in self.lanes.values():
            lane.pool.fill_to = 0.0
            lane.tally.went(lane.pool.advance(NOBODY, self.seconds + _LINGER_SECONDS))

    def _decide(self) -> None:
        for lane in self.lanes.values():
            lane.metrics = lane.meter.metrics(self.now)
        self.controller.control(self.cluster, self)
        self._let_wait()
        self.cluster.reconcile()

    def _let_wait(self) -> None:
        """From the start, and after each decision: some policies first decide after an hour."""
        for key, lane in self.lanes.items():
            lane.pool.fill_to = self.controller.fill_to(key, lane.variant)

    def _scrape(self) -> None:
        for lane in self.lanes.values():
            lane.meter.scraped(scrape(lane.pool))

    def _fail(self, failure: Failure) -> None:
        if failure.node is not None:
            self.cluster.kill_busiest_node(failure.node)
        else:
            self.cluster.crash_oldest(failure.service or "")
        self.cluster.reconcile()

    def _sample(self) -> None:
        counts = self._counts()
        self.timeline.append(
            Moment(
                self.now,
                self.cluster.ledger.accelerators,
                {key.name: ready for key, (_, ready) in counts.items()},
                {key.name: asked for key, (asked, _) in counts.items()},
                {key.name: self._expected(key, self.now, self.now + 60) for key in self.lanes},
            )
        )

    def _counts(self) -> dict[ServiceKey, tuple[int, int]]:
        """(asked for, ready) by service."""
        asked = dict.fromkeys(self.lanes, 0)
        ready = dict.fromkeys(self.lanes, 0)
        for child in self.cluster.children.values():
            if child.key.kind == "Deployment":
                asked[child.owner] += child.body["spec"]["replicas"]
        for pod in self.cluster.pods.values():
            if pod.ready and pod.service is not None:
                ready[pod.service] += 1
        return {key: (asked[key], ready[key]) for key in self.lanes}

    # --- what the pods run

    def load_seconds(self, pod: Pod) -> float:
        """Time from being bound until it serves."""
        lane = self._lane(pod)
        return lane.cold_start.of(lane.spec, lane.variants[pod.variant], cached=self._weights_of(pod) in self._read)

    def _weights_of(self, pod: Pod) -> tuple[str | None, str, str]:
        """A node and the files on it."""
        lane = self._lane(pod)
        return pod.node, lane.spec.model.uri, lane.variants[pod.variant].precision

    def started(self, pod: Pod) -> None:
        """A replica joins its pool. What its node has read stays in the cache for as long as the node is there."""
        lane = self._lane(pod)
        self._read.add(self._weights_of(pod))
        variant = lane.variants[pod.variant]
        weight = lane.weights.get(pod.variant, 1.0)
        lane.slots[pod.name] = lane.pool.add(variant.step, limits_of(variant), weight=weight)

    def serving(self, pod: Pod, serves: bool) -> None:
        """It takes new requests, or no more."""
        lane = self._lane(pod)
        lane.pool.open(lane.slots[pod.name], serves)

    def idle(self, pod: Pod) -> bool:
        """Whether it has finished all it had."""
        lane = self._lane(pod)
        return lane.pool.unfinished(lane.slots[pod.name]) == 0

    def stopped(self, pod: Pod) -> None:
        """It is gone; what it had not finished is lost."""
        lane = self._lane(pod)
        slot = lane.slots.pop(pod.name)
        if lane.pool.unfinished(slot):
            lane.pool.fail(slot)
        else:
            lane.pool.remove(slot)

    def _lane(self, pod: Pod) -> Lane:
        assert pod.service is not None, "only engine pods are simulated"
        return self.lanes[pod.service]

    # --- what can be seen

    def metrics(self) -> Mapping[ServiceKey, ServiceMetrics | Missing]:
        """As Prometheus would tell."""
        return {key: lane.metrics for key, lane in self.lanes.items()}

    def view(self) -> FleetView:
        """What peers look at."""
        counts = self._counts()
        views = {key: _view(lane, *counts[key]) for key, lane in self.lanes.items()}
        return FleetView(now=self.now, services=views, expected=self._expected)

    def _expected(self, key: ServiceKey, start: float, end: float) -> float:
        """What lies beyond the scenario is as its end; a service that has had its last request before is not."""
        arrivals = self.lanes[key].arrivals
        beyond = max(end - max(self.seconds, arrivals.duration_s), 0.0)
        start, end = max(start - beyond, 0.0), end - beyond
        inside = min(end, arrivals.duration_s) - start
        return arrivals.expected_rate(start, start + inside) * inside / (end - start) if inside > 0 else 0.0


def empty() -> Requests:
    """No requests."""
    ints = np.empty(0, dtype=np.int32)
    return Requests(np.empty(0), ints, ints, ints, np.empty(0))


NOBODY = empty()


def _view(lane: Lane, asked: int, ready: int) -> ServiceView:
    known = lane.metrics
    return ServiceView(
        key=lane.service.key,
        spec=lane.spec,
        variant=lane.variant,
        targets=targets(lane.spec.objectives),
        workload=DEFAULT if isinstance(known, Missing) else _lengths(known),
        usual=lane.usual,
        reference_rate=lane.lambda_star,
        replicas=asked,
        ready=ready,
        engines=lane.meter.engines,
        metrics=known,
        duty_cycle=lane.meter.duty_cycle(),
        concurrency=lane.meter.concurrency(),
        cold_start_seconds=lane.cold_start.of(lane.spec, lane.variant),
    )


def _lengths(metrics: ServiceMetrics) -> Workload:
    inputs, outputs = metrics.mean_input_tokens, metrics.mean_output_tokens
    return Workload(
        DEFAULT.input_tokens if isinstance(inputs, Missing) else inputs,
        DEFAULT.output_tokens if isinstance(outputs, Missing) else outputs,
        metrics.prefix_hit_rate,
    )
