"""The openb protocol: pods arrive in a shuffled order until 130 % of the accelerators were asked for; none leaves.

A pod that does not fit is dropped and not tried again. What is measured is the allocated share of all accelerators
against the share that was asked for. The shuffles are our own (the published ones come from Go's generator), and the
same for every policy at a seed: so policies are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from time import thread_time

import numpy as np

from tokenservice.core.fragmentation import COUNT, MILLI, Floats, Ints
from tokenservice.simulate.packing.openb import NodeList, PodList, arrivals
from tokenservice.simulate.packing.policies import policy

LAST_PERCENT = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One seed. `curve` has the allocated percentage at each whole percentage of demand, 0 to 130."""

    seed: int
    curve: Floats
    milliseconds: Floats
    """What each decision took of the processor: a busy machine is not the policy's fault."""

    @property
    def allocated_percent(self) -> float:
        return float(self.curve[LAST_PERCENT])


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A policy over all seeds; what `--json` writes."""

    policy: str
    seeds: tuple[int, ...]
    allocated_percent: float
    allocated_percent_sd: float
    allocated_percent_by_seed: tuple[float, ...]
    curve: tuple[float, ...]
    milliseconds_per_pod_p50: float
    milliseconds_per_pod_p95: float
    milliseconds_per_pod_max: float


def run(name: str, nodes: NodeList, pods: PodList, seed: int) -> Run:
    """One policy on the pods of one seed; everything but the milliseconds depends on the arguments alone."""
    rng = np.random.default_rng(seed)
    requests = pods.requests[arrivals(pods.requests, nodes.capacity_milli, rng)]
    shuffled = nodes.reordered(rng.permutation(len(nodes.cpu)))
    kinds, kind_of = np.unique(requests, axis=0, return_inverse=True)
    policy(name, shuffled, pods, kinds, rng).choose(0, kinds[0])  # so that no decision that is timed has to compile
    chosen, milliseconds = _decisions(policy(name, shuffled, pods, kinds, rng).choose, requests, kind_of.ravel())
    asked = requests[:, COUNT] * requests[:, MILLI]
    placed = np.where(chosen >= 0, asked, 0)
    return Run(seed=seed, curve=_curve(asked, placed, nodes.capacity_milli), milliseconds=milliseconds)


def bench(
    name: str,
    nodes: NodeList,
    pods: PodList,
    seeds: Iterable[int],
    told: Callable[[Run], None] = lambda _: None,
) -> Report:
    """The policy on every seed; `told` hears of each run as it ends."""
    runs = []
    for seed in seeds:
        runs.append(run(name, nodes, pods, seed))
        told(runs[-1])
    return _report(name, runs)


def paired(ours: Report, theirs: Report) -> tuple[float, float]:
    """Mean and standard deviation of the differences at equal seeds, in percentage points."""
    differences = np.subtract(ours.allocated_percent_by_seed, theirs.allocated_percent_by_seed)
    return float(differences.mean()), _deviation(differences)


def _decisions(choose: Callable[[int, Ints], int], requests: Ints, kinds: Ints) -> tuple[Ints, Floats]:
    chosen, milliseconds = np.empty(len(requests), dtype=np.int64), np.empty(len(requests))
    for number, (kind, request) in enumerate(zip(kinds.tolist(), requests, strict=True)):
        start = thread_time()
        chosen[number] = choose(kind, request)
        milliseconds[number] = (thread_time() - start) * 1000
    return chosen, milliseconds


def _curve(asked: Ints, placed: Ints, capacity_milli: int) -> Floats:
    """Mean allocated percentage where demand rounds to each whole percentage, as the authors' analysis has it.

    A percentage that one large pod leaps over takes the value of the one before.
    """
    demand = np.round(np.cumsum(asked) / capacity_milli * 100).astype(int)
    allocated = np.cumsum(placed) / capacity_milli * 100
    curve = np.zeros(LAST_PERCENT + 1)
    for percent in range(LAST_PERCENT + 1):
        here = allocated[demand == percent]
        curve[percent] = here.mean() if len(here) else curve[max(0, percent - 1)]
    return curve


def _report(name: str, runs: list[Run]) -> Report:
    reached = np.array([one.allocated_percent for one in runs])
    times = np.concatenate([one.milliseconds for one in runs])
    return Report(
        policy=name,
        seeds=tuple(one.seed for one in runs),
        allocated_percent=float(reached.mean()),
        allocated_percent_sd=_deviation(reached),
        allocated_percent_by_seed=tuple(reached.tolist()),
        curve=tuple(np.mean([one.curve for one in runs], axis=0).tolist()),
        milliseconds_per_pod_p50=float(np.percentile(times, 50)),
        milliseconds_per_pod_p95=float(np.percentile(times, 95)),
        milliseconds_per_pod_max=float(times.max()),
    )


def _deviation(values: Floats) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
