"""What is still to be run for the list, and running it: several processes, each result kept as soon as it is there."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import mean

from tokenservice.simulate.compare import STATIC, STATICS, best, kept
from tokenservice.simulate.oracle import Foresight
from tokenservice.simulate.policies import POLICIES
from tokenservice.simulate.result import Result
from tokenservice.simulate.results.store import Kept, Store
from tokenservice.simulate.results.study import BestOf, Studies, Study
from tokenservice.simulate.results.unit import Search, Task, Unit, run_unit
from tokenservice.simulate.run import OPERATOR
from tokenservice.simulate.scenario import load


@dataclass
class Known:
    """What was run so far."""

    kept: dict[Unit, Kept] = field(default_factory=dict)

    def results(self, study: Study, cold: float | None, policy: str, seed: int = 0) -> dict[Task, Result]:
        """All settings of a policy that were run."""
        return {
            unit: it.outcome
            for unit, it in self.kept.items()
            if isinstance(unit, Task) and isinstance(it.outcome, Result)
            if (unit.scenario, unit.cold_start_seconds, unit.policy, unit.seed) == (study.scenario, cold, policy, seed)
        }

    def foresight(self, study: Study) -> dict[str, Foresight]:
        """What the oracle found, by service."""
        return {
            unit.service: it.outcome
            for unit, it in self.kept.items()
            if isinstance(unit, Search) and isinstance(it.outcome, Foresight) and unit.scenario == study.scenario
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What a list asks for, given what is known: later runs depend on what earlier ones found."""

    studies: Studies

    @property
    def seconds(self) -> Mapping[str, float]:
        """Processor time that a run takes, about, by scenario."""
        return {study.name: study.seconds_per_run for study in self.studies.studies}

    def wanted(self, known: Known) -> list[Unit]:
        """All units that can be named by now, ours last: while they are worked on, the others' stay."""
        units = [unit for study in self.studies.studies for unit in self.of(study, known)]
        return sorted(dict.fromkeys(units), key=lambda unit: unit.policy == OPERATOR)

    def of(self, study: Study, known: Known) -> Iterator[Unit]:
        """Those of one study."""
        for cold in study.colds:
            for policy in (*self.statics(study), OPERATOR, *self.peers(study, cold, known)):
                first = self.first(study, cold, policy, known)
                yield from first
                chosen = self.chosen(study, cold, policy, known)
                if chosen is not None:
                    yield from (replace(chosen, seed=seed) for seed in range(1, study.seeds))
        yield from self.searches(study, known)

    def statics(self, study: Study) -> tuple[str, ...]:
        """Static fleets; all of them where all policies are run."""
        return STATICS if study.peers == "all" else (STATIC,)

    def peers(self, study: Study, cold: float | None, known: Known) -> tuple[str, ...]:
        """The peers that are run; none yet where another study has not chosen them."""
        if study.peers == "all":
            return tuple(POLICIES)
        if study.peers == "none":
            return ()
        if isinstance(study.peers, BestOf):
            other = self.studies.of(study.peers.scenario)
            return tuple(task.policy for task in self.ranking(other, _cold(other, cold), known)[: study.peers.count])
        return study.peers

    def first(self, study: Study, cold: float | None, policy: str, known: Known) -> tuple[Task, ...]:
        """On seed 0: every setting, or the one that another study chose."""
        task = Task(study.scenario, 0, policy, 0, cold)
        if isinstance(study.peers, BestOf) and not study.peers.sweep and policy in POLICIES:
            other = self.studies.of(study.peers.scenario)
            chosen = self.chosen(other, _cold(other, cold), policy, known)
            return () if chosen is None else (replace(task, choice=chosen.choice),)
        return tuple(replace(task, choice=choice) for choice in range(len(sweep(policy))))

    def chosen(self, study: Study, cold: float | None, policy: str, known: Known) -> Task | None:
        """The setting that stands for a policy; None while not all were run."""
        wanted = self.first(study, cold, policy, known)
        found = known.results(study, cold, policy)
        return best({task: found[task] for task in wanted}) if wanted and found.keys() >= set(wanted) else None

    def ranking(self, study: Study, cold: float | None, known: Known) -> list[Task]:
        """Peers at their chosen settings, the best first; empty while any is missing."""
        chosen = [self.chosen(study, cold, policy, known) for policy in self.peers(study, cold, known)]
        tasks = [task for task in chosen if task is not None]
        if len(tasks) < len(chosen):
            return []
        results = {task: known.results(study, cold, task.policy)[task] for task in tasks}
        return sorted(tasks, key=lambda task: merit(results[task]))

    def searches(self, study: Study, known: Known) -> Iterator[Search]:
        """The oracle's, by service; none yet where another study must be searched first."""
        if study.oracle is True:
            yield from (Search(study.scenario, service) for service in _services(study.scenario))
        if not isinstance(study.oracle, str):
            return
        there = known.foresight(self.studies.of(study.oracle))
        for service in _services(study.scenario):
            if service in there:
                yield Search(study.scenario, service, (there[service].factor, there[service].smoothed_seconds))


@cache
def _services(scenario: Path) -> tuple[str, ...]:
    return tuple(service.key.name for service in load(scenario).services)


def sweep(policy: str) -> Sequence[object]:
    """Settings of a policy; those that are no peers have one."""
    return POLICIES[policy].sweep if policy in POLICIES else (None,)


def merit(one: Result) -> tuple[bool, float]:
    """Sorts the cheapest that keeps the objectives first, then by how near others come."""
    return (False, one.dollars) if kept(one) else (True, -one.attainment)


def _cold(other: Study, cold: float | None) -> float | None:
    """The other study's cold start that is the same, else its first."""
    return cold if cold in other.colds else other.colds[0]


_PATIENCE_SECONDS = 15.0
"""Without a word while runs are made."""


# --- Running -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: runs done and known of, seconds since the start and (estimated) to go, and what was just done."""

    done: int
    total: int
    spent_s: float
    left_s: float
    last: str


def recall(plan: Plan, store: Store) -> tuple[Known, list[Unit]]:
    """What was kept, and what is missing of what can be named by now. Nothing is run."""
    known = Known()
    while True:
        missing = []
        before = len(known.kept)
        for unit in plan.wanted(known):
            if unit not in known.kept:
                found = store.get(unit)
                if found is None:
                    missing.append(unit)
                else:
                    known.kept[unit] = found
        if len(known.kept) == before:
            return known, missing


def run_all(
    plan: Plan, store: Store, *, jobs: int, told: Callable[[Progress], None], only: tuple[str, ...] = ()
) -> tuple[Known, list[Unit]]:
    """Runs what is missing, and what that makes known to be missing, until nothing is; `only` names scenarios."""
    began = time.monotonic()
    known, missing = recall(plan, store)
    done, worked, last = 0, 0.0, "beginning"
    while todo := [unit for unit in missing if not only or unit.scenario.stem in only]:
        for finished in _run(in_order(todo, plan.seconds), jobs):
            if finished is not None:
                unit, result = finished
                store.put(unit, result)
                known.kept[unit] = result
                todo.remove(unit)
                done, worked, last = done + 1, worked + result.seconds, _words(unit)
            spent = time.monotonic() - began
            pace = spent / worked if worked else 1 / jobs
            told(Progress(done, done + len(todo), spent, _left(plan, known, todo) * pace, last))
        known, missing = recall(plan, store)
    return known, missing


def in_order(units: Sequence[Unit], seconds: Mapping[str, float]) -> list[Unit]:
    """Ours last, the longest first so that no process ends long before the others; `seconds` a run, by scenario.

    The others as listed, those of one scenario, seed and cold start together: a process reads each once.
    """
    places = {scenario: place for place, scenario in enumerate(dict.fromkeys(unit.scenario for unit in units))}

    def place(unit: Unit) -> tuple[bool, float, int, bool, int, float]:
        ours = unit.policy == OPERATOR
        seed, cold = (unit.seed, unit.cold_start_seconds or 0.0) if isinstance(unit, Task) else (0, 0.0)
        longest = -seconds[unit.scenario.stem] if ours else 0.0
        return ours, longest, places[unit.scenario], isinstance(unit, Search), seed, cold

    return sorted(units, key=place)


def _run(units: Sequence[Unit], jobs: int) -> Iterator[tuple[Unit, Kept] | None]:
    """Each with its result, as they are done; None at the start and now and then in between."""
    yield None
    if jobs == 1:
        yield from ((unit, _timed(unit)) for unit in units)
        return
    with ProcessPoolExecutor(jobs) as pool:
        futures = {pool.submit(_timed, unit): unit for unit in units}
        try:
            while futures:
                finished, _ = wait(futures, timeout=_PATIENCE_SECONDS, return_when=FIRST_COMPLETED)
                yield from ((futures.pop(future), future.result()) for future in finished)
                if not finished:
                    yield None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _timed(unit: Unit) -> Kept:
    began = time.process_time()
    outcome = run_unit(unit)
    return Kept(outcome, time.process_time() - began)


def _left(plan: Plan, known: Known, todo: Iterable[Unit]) -> float:
    """Processor seconds to go: by the mean of such runs so far, else by what the list says."""
    seen: dict[tuple[str, bool], list[float]] = defaultdict(list)
    for unit, it in known.kept.items():
        seen[_sort(unit)].append(it.seconds)
    known_or_said = {unit: seen[_sort(unit)] or [plan.seconds[unit.scenario.stem]] for unit in todo}
    return sum(mean(seconds) for seconds in known_or_said.values())


def _sort(unit: Unit) -> tuple[str, bool]:
    return unit.scenario.stem, unit.policy == OPERATOR


def _words(unit: Unit) -> str:
    what = unit.service if isinstance(unit, Search) else f"setting {unit.choice}, seed {unit.seed}"
    return f"{unit.scenario.stem}: {unit.policy} ({what})"
