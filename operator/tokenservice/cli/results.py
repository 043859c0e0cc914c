"""What `bench policies` does, apart from the command: this needs the compiled simulator and the plotting library."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from tokenservice.cli.drawing import draw
from tokenservice.errors import InputError
from tokenservice.simulate.compare import ORACLE
from tokenservice.simulate.results.page import Page
from tokenservice.simulate.results.runner import Known, Plan, Progress, recall, run_all
from tokenservice.simulate.results.store import Store
from tokenservice.simulate.results.study import Studies, read
from tokenservice.simulate.run import OPERATOR
from tokenservice.simulate.scenario import load

_PAUSE_SECONDS = 15.0
"""Between lines of progress where there is no terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is run, and where results and the page go."""

    studies: Path
    quick: bool
    only: tuple[str, ...]
    run: bool
    page: Path
    kept: Path
    jobs: int


def write(wish: Wish) -> None:
    """Runs what is missing and writes the page. InputError says what is wrong with the input."""
    studies = read(wish.studies, quick=wish.quick)
    _check(studies, wish.only)
    plan, store = Plan(studies), Store(wish.kept)
    if wish.run:
        with _Told() as told:
            known, missing = run_all(plan, store, jobs=wish.jobs, told=told, only=wish.only)
    else:
        known, missing = recall(plan, store)
    folder = wish.page.with_suffix("")
    page = Page(plan=plan, known=known, missing=missing, pictures=folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    for study in studies.studies:
        at = page.at(study, study.colds[0])
        if at.rows:
            draw(at.ranked, at.oracle, folder / f"{study.name}.png")
    wish.page.write_text(page.text(), encoding="utf-8")
    _tell_times(known)
    print(f"wrote {wish.page} from {len(known.kept)} runs" + (f"; {len(missing)} were not made" if missing else ""))


def _tell_times(known: Known) -> None:
    """What the runs on the page took when they were made, by scenario; the operator's take longer, so apart."""
    taken: dict[tuple[str, str], list[float]] = {}
    for unit, it in known.kept.items():
        who = unit.policy if unit.policy in (OPERATOR, ORACLE) else "others"
        taken.setdefault((unit.scenario.stem, who), []).append(it.seconds)
    for (scenario, who), seconds in taken.items():
        print(f"{scenario}, {who}: {len(seconds)} runs, {mean(seconds):.1f} s of processor time each")
    print(f"all: {sum(sum(seconds) for seconds in taken.values()) / 60:.0f} minutes of processor time")


def _check(studies: Studies, only: tuple[str, ...]) -> None:
    """What is wrong with any scenario is said before anything runs."""
    known = [study.name for study in studies.studies]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise InputError(f"--only: there is no study of {', '.join(unknown)}; there are {', '.join(known)}")
    for study in studies.studies:
        if not only or study.name in only:
            load(study.scenario)


@dataclass
class _Told:
    """Progress on standard error: one line that changes on a terminal, else a line now and then."""

    _last: float = field(default_factory=lambda: time.monotonic() - _PAUSE_SECONDS)

    def __enter__(self) -> _Told:
        return self

    def __call__(self, at: Progress) -> None:
        line = (
            f"{at.done} of {at.total} runs, {_minutes(at.spent_s)} so far, about {_minutes(at.left_s)} left; {at.last}"
        )
        if sys.stderr.isatty():
            print(f"\r\x1b[K{line[:150]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._last >= _PAUSE_SECONDS or at.done == at.total:
            self._last = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
