"""Policies side by side on one scenario: the same requests, warm starts and yardsticks for each, over several seeds.

A peer is shown at its best: of its settings, the one that keeps the objectives of Guaranteed services at the least
cost; where none does, the one that comes nearest. Static at p99 is always there to compare hours with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from math import sqrt
from pathlib import Path
from statistics import mean, stdev

from tokenservice.simulate.assemble import Setting, setting
from tokenservice.simulate.oracle import Foresight, oracle
from tokenservice.simulate.policies import POLICIES
from tokenservice.simulate.result import Result
from tokenservice.simulate.run import label, looks_ahead, run
from tokenservice.simulate.scenario import Scenario, load
from tokenservice.simulate.scenario_spec import ColdStart

STATIC = "static-p99"
STATICS = (STATIC, "static-smallest", "static-pooled")
ORACLE = "oracle"
ATTAINMENT = 0.99

_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Student's t for a 95 % interval, for 1, 2, … degrees of freedom."""

_Z95 = 1.95996
"""The same for infinitely many."""


@dataclass(frozen=True, slots=True)
class Task:
    """One run: a scenario, whether with another cold start, a seed, a policy and which of its settings."""

    scenario: Path
    seed: int
    policy: str
    choice: int = 0
    cold_start_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A policy over its seeds: means, and half the width of the 95 % interval where there are several seeds.

    `foresight` says that it is told the true rate of the future.
    """

    policy: str
    results: tuple[Result, ...]
    foresight: bool = False

    def mean(self, figure: Callable[[Result], float]) -> float:
        """Mean over seeds."""
        return mean(figure(one) for one in self.results)

    def half_width(self, figure: Callable[[Result], float]) -> float:
        """Of the 95 % interval of the mean; 0 for one seed."""
        count = len(self.results)
        if count < 2:
            return 0.0
        return students_t(count - 1) * stdev(figure(one) for one in self.results) / sqrt(count)

    @property
    def marked(self) -> str:
        """The policy; † marks one that did not keep the objectives, § one that is told the future."""
        return self.policy + " §" * self.foresight + " †" * (not self.kept)

    @property
    def kept(self) -> bool:
        """Whether Guaranteed services kept their objectives, in the mean over seeds."""
        return self.mean(lambda one: one.attainment) >= ATTAINMENT


def compare(
    scenario: Path,
    policies: Sequence[str],
    seeds: Sequence[int],
    *,
    sweep: bool = True,
    cold_start_seconds: float | None = None,
    jobs: int = 2,
    progress: Callable[[float], None] = lambda _: None,
) -> list[Row]:
    """Every policy at its best setting, static first. The settings are chosen on the first seed."""
    names = [STATIC, *(name for name in policies if name != STATIC)]
    first = [
        Task(scenario, seeds[0], name, choice, cold_start_seconds)
        for name in names
        for choice in range(len(POLICIES[name].sweep) if sweep and name in POLICIES else 1)
    ]
    rest = len(seeds) - 1
    total = len(first) + rest * len(names)
    found = _all(first, jobs, lambda done: progress(done / total))
    chosen = {name: best(task_results(found, name)) for name in names}
    more = [replace(chosen[name], seed=seed) for name in names for seed in seeds[1:]]
    found |= _all(more, jobs, lambda done: progress((len(first) + done) / total))
    return [
        Row(
            policy=label(task.policy, task.choice),
            results=tuple(found[replace(task, seed=seed)] for seed in seeds),
            foresight=looks_ahead(task.policy, task.choice),
        )
        for task in chosen.values()
    ]


def students_t(degrees: int) -> float:
    """The factor of a 95 % interval; beyond the table by its expansion, good to 0.003 there."""
    if degrees <= len(_T95):
        return _T95[degrees - 1]
    return _Z95 + (_Z95**3 + _Z95) / (4 * degrees) + (5 * _Z95**5 + 16 * _Z95**3 + 3 * _Z95) / (96 * degrees**2)


def task_results(found: dict[Task, Result], policy: str) -> dict[Task, Result]:
    """Those of one policy."""
    return {task: result for task, result in found.items() if task.policy == policy}


def best(found: dict[Task, Result]) -> Task:
    """The cheapest that keeps the objectives, else the one that comes nearest to it."""
    cost = {task: one.dollars for task, one in found.items() if kept(one)}
    if cost:
        return min(cost, key=lambda task: (cost[task], task.choice))
    return max(found, key=lambda task: (found[task].attainment, -task.choice))


def kept(one: Result) -> bool:
    """Whether Guaranteed services kept their objectives."""
    return one.attainment >= ATTAINMENT


def perform(task: Task) -> Result:
    """One run, in whichever process."""
    return run(_setting(task.scenario, task.seed, task.cold_start_seconds), task.policy, task.choice)


def foresee(scenario: Path, seed: int) -> dict[str, Foresight]:
    """The oracle on a scenario."""
    return oracle(_setting(scenario, seed, None))


@lru_cache(maxsize=2)
def _setting(scenario: Path, seed: int, cold_start_seconds: float | None) -> Setting:
    return setting(with_cold_start(load(scenario), cold_start_seconds), seed=seed)


def with_cold_start(scenario: Scenario, seconds: float | None) -> Scenario:
    """The scenario with replicas that load for so long, all of them; as it is for None."""
    if seconds is None:
        return scenario
    return scenario.model_copy(update={"cold_start": ColdStart(seconds=seconds)})  # wherever models come from


def _all(tasks: Iterable[Task], jobs: int, done: Callable[[int], None]) -> dict[Task, Result]:
    """All runs, a process each at a time; nothing depends on their order."""
    listed = list(tasks)
    found: dict[Task, Result] = {}
    if jobs == 1:
        for task in listed:
            found[task] = perform(task)
            done(len(found))
        return found
    with ProcessPoolExecutor(jobs) as pool:
        futures = {pool.submit(perform, task): task for task in listed}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            done(len(found))
    return found
