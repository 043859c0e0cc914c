"""How long a decision takes for a large fleet, and how far its cost is from the least possible.

Four kinds of decision, all on the fleet of `plan_fleet`:

- first: nothing is remembered and nothing stands; every service chooses its variant, its count and its rendered
  objects. Once a process.
- fresh: the fleet stands and nothing is remembered but solved capacities: a process that starts anew beside it.
- full: the fleet stands and the demand of every service has changed, as after each round of metrics.
- incremental: one thing has changed, in turn a service's demand and a pod. Before that the fleet has come to rest: for
  half an hour nothing happened, so every count that hindsight lets go is gone, and every status is written.

Wall time of one thread, garbage collection included; and its processor time, which other work on the machine moves
less. The collector is set as in the operator. `loop_ms` says how fast the machine was at that moment: a million
additions in a plain loop, about 45 ms on an idle core of 2023.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tokenservice import collection
from tokenservice.core.allocation import stock
from tokenservice.core.decide import decide
from tokenservice.core.facts import Facts
from tokenservice.core.memo import Memo
from tokenservice.core.model import Plan, Snapshot
from tokenservice.simulate.plan_bound import Bound, bound, cost_per_hour, wanted
from tokenservice.simulate.plan_fleet import NOW, Catalogue, Cluster, moved, new_fleet

Say = Callable[[str], None]

_PASS_SECONDS = 5.0
_SETTLING_PASSES = 8
_REST_SECONDS, _PASS_AT_REST_SECONDS = 1800.0, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Milliseconds; p95 over the rounds. `cpu` is processor time, all else as it passed."""

    first_ms: float
    fresh_p95_ms: float
    full_p50_ms: float
    full_p95_ms: float
    full_cpu_p50_ms: float
    full_cpu_p95_ms: float
    incremental_p50_ms: float
    incremental_p95_ms: float
    incremental_cpu_p50_ms: float
    incremental_cpu_p95_ms: float
    loop_ms: float


class _Took(NamedTuple):
    """One decision, in milliseconds."""

    wall: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Everything the command prints. Gaps are shares of the bound; bytes are of the whole process at its largest."""

    services: int
    accelerators: int
    placed: int
    variants_per_service: float
    times: Times
    smaller: Times
    scale: float
    cost_per_hour: float
    bound: Bound
    cost_gap: float
    cost_gap_fractional: float
    rss_bytes: int


def run(catalogue: Catalogue, *, services: int, accelerators: int, rounds: int, seed: int, say: Say) -> Result:
    """Times a fleet and one of a tenth of its size. `say` is told what is being done."""
    collection.seldom()
    say(f"a fleet of {services // 10} services on {accelerators // 10} accelerators")
    small = _Bench(new_fleet(catalogue, services=services // 10, accelerators=accelerators // 10, seed=seed))
    smaller = small.times(rounds, seed, say)
    say(f"a fleet of {services} services on {accelerators} accelerators")
    large = _Bench(new_fleet(catalogue, services=services, accelerators=accelerators, seed=seed))
    empty = large.cluster.snapshot
    times = large.times(rounds, seed, say)
    say("the linear programs")
    wants = wanted(empty)
    least, cost = bound(empty, stock(Facts(empty))), cost_per_hour(large.opening, empty)
    return Result(
        services=services,
        accelerators=sum(sum(node.allocatable.values()) for node in empty.nodes),
        placed=sum(sum(pod.accelerators.values()) for pod in large.cluster.snapshot.pods if pod.node is not None),
        variants_per_service=sum(len(want.ranked) for want in wants) / len(wants),
        times=times,
        smaller=smaller,
        scale=times.full_p50_ms / smaller.full_p50_ms,
        cost_per_hour=cost,
        bound=least,
        cost_gap=cost / least.whole - 1,
        cost_gap_fractional=cost / least.fractional - 1,
        rss_bytes=_peak_rss_bytes(),
    )


class _Bench:
    """One fleet, its clock and its memo."""

    def __init__(self, empty: Snapshot) -> None:
        self.cluster = Cluster(empty)
        self.opening = Plan()
        self._memo = Memo()
        self._now = NOW

    def times(self, rounds: int, seed: int, say: Say) -> Times:
        chance = np.random.default_rng(seed)
        say("deciding from nothing")
        first = self._timed()
        self.opening = self._last
        say("letting it settle")
        for _ in range(_SETTLING_PASSES):
            self._timed()
        say(f"{rounds} decisions with nothing remembered")
        fresh = [self._fresh() for _ in range(rounds)]
        say(f"{rounds} decisions after every demand has changed")
        full = [self._after(_all_demand(self.cluster.snapshot, chance)) for _ in range(rounds)]
        say("letting it come to rest")
        for _ in range(int(_REST_SECONDS / _PASS_AT_REST_SECONDS)):
            self._timed(_PASS_AT_REST_SECONDS)
        say(f"{rounds} decisions after a single change")
        single = [self._after(_one_change(self.cluster.snapshot, number)) for number in range(rounds)]
        return Times(
            first_ms=first.wall,
            fresh_p95_ms=_quantile([one.wall for one in fresh], 95),
            full_p50_ms=_quantile([one.wall for one in full], 50),
            full_p95_ms=_quantile([one.wall for one in full], 95),
            full_cpu_p50_ms=_quantile([one.cpu for one in full], 50),
            full_cpu_p95_ms=_quantile([one.cpu for one in full], 95),
            incremental_p50_ms=_quantile([one.wall for one in single], 50),
            incremental_p95_ms=_quantile([one.wall for one in single], 95),
            incremental_cpu_p50_ms=_quantile([one.cpu for one in single], 50),
            incremental_cpu_p95_ms=_quantile([one.cpu for one in single], 95),
            loop_ms=_loop_ms(),
        )

    def _after(self, snapshot: Snapshot) -> _Took:
        self.cluster.snapshot = snapshot
        return self._timed()

    def _timed(self, after_seconds: float = _PASS_SECONDS) -> _Took:
        """Decides, carries the plan out, and says how long deciding took."""
        self._now += after_seconds
        self._last, took = _decided(self.cluster.snapshot, self._now, self._memo)
        self.cluster.carry_out(self._last, self._now)
        return took

    def _fresh(self) -> _Took:
        return _decided(self.cluster.snapshot, self._now, None)[1]


def _decided(snapshot: Snapshot, now: float, memo: Memo | None) -> tuple[Plan, _Took]:
    wall, cpu = time.perf_counter(), time.process_time()
    plan = decide(snapshot, now, memo)
    return plan, _Took((time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000)


def _all_demand(snapshot: Snapshot, chance: np.random.Generator) -> Snapshot:
    """Every rate moves by 2 % at the median."""
    moves = np.exp(chance.normal(0.0, 0.03, len(snapshot.metrics)))
    changed = {key: moved(seen, float(by)) for (key, seen), by in zip(snapshot.metrics.items(), moves, strict=True)}
    return replace(snapshot, metrics=changed)


def _one_change(snapshot: Snapshot, number: int) -> Snapshot:
    if number % 2:
        service = snapshot.services[(number * 7) % len(snapshot.services)]
        return replace(snapshot, metrics={**snapshot.metrics, service.key: moved(snapshot.metrics[service.key], 1.02)})
    index = (number * 13) % len(snapshot.pods)
    pods = list(snapshot.pods)
    pods[index] = replace(pods[index], restarts=pods[index].restarts + 1, resource_version=f"again-{number}")
    return replace(snapshot, pods=tuple(pods))


def _quantile(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent))


def _loop_ms() -> float:
    """Best of three, so that it tells of the machine and not of a moment."""
    return min(_loop() for _ in range(3))


def _loop() -> float:
    began, total = time.perf_counter(), 0
    for number in range(1_000_000):
        total += number
    return (time.perf_counter() - began) * 1000


def _peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
