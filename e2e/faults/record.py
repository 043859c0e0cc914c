"""What was tried and what came of it: gathered while tests run, written to `e2e/out/faults.json`.

Runs are joined: where a result is there already, of each case the last time that it was tried counts. Each case names
its run, so that whoever reads can tell one run from several. Processes that share a run are told when it began, and
write by turns.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[1] / "out"
RESULT = OUT / "faults.json"
RUN = "TAAS_FAULTS_RUN"
"""The environment variable that says when the run of several processes began."""

PATTERNS = {
    "test_crash": "Crash at every write",
    "test_stale": "Unobserved and stale",
    "test_api": "Slow and failing API",
    "test_prometheus": "Prometheus",
    "test_leader": "Leader",
    "test_nodes": "Nodes and pods",
    "test_converge": "Converge and stay",
    "test_explore": "Stateful exploration",
}
"""Title of each pattern by the module that tries it, in the order of the report."""


@dataclass(frozen=True, slots=True)
class Case:
    """One fault tried; `why` is empty when all held."""

    pattern: str
    name: str
    seconds: float
    why: str = ""


@dataclass
class Ledger:
    """All cases of a run. `figures` are what a pattern counts beside its cases; `commit` is what was tried.

    A run is called by when it `began`, in UTC to the second.
    """

    cases: list[Case] = field(default_factory=list)
    figures: dict[str, dict[str, int]] = field(default_factory=dict)
    itemized: set[str] = field(default_factory=set)
    commit: str = field(default_factory=lambda: _commit())
    began: str = field(default_factory=lambda: os.environ.get(RUN) or begin())
    _since: float = field(default_factory=time.monotonic)

    @contextmanager
    def case(self, test: str, module: str, name: str) -> Iterator[None]:
        """One of the many cases of a test: a check that fails is noted, and the others are tried all the same.

        What else goes wrong is noted too, and ends the test.
        """
        self.itemized.add(test)
        began = time.monotonic()
        why = ""
        try:
            yield
        except AssertionError as error:
            why = str(error) or "failed"
        except BaseException as error:
            why = repr(error)
            raise
        finally:
            self.add(module, name, time.monotonic() - began, why)

    def add(self, module: str, name: str, seconds: float, why: str = "") -> None:
        self.cases.append(Case(PATTERNS[module], name, round(seconds, 1), why))
        print(f"{'FAILED' if why else 'held':6} {PATTERNS[module]}: {name} ({seconds:.1f} s) {why[:2000]}", flush=True)

    def count(self, module: str, **figures: int) -> None:
        """Figures of a pattern, added up."""
        mine = self.figures.setdefault(PATTERNS[module], {})
        for name, number in figures.items():
            mine[name] = mine.get(name, 0) + number

    def failures(self, since: int) -> list[str]:
        return [f"{case.name}: {case.why}" for case in self.cases[since:] if case.why]

    def write(self) -> None:
        """The result: of each case the last time that it was tried, by pattern; and the runs that these are of."""
        OUT.mkdir(exist_ok=True)
        with RESULT.with_suffix(".lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            RESULT.write_text(json.dumps(self.joined(before), indent=1, ensure_ascii=False) + "\n")

    def joined(self, before: dict[str, Any]) -> dict[str, Any]:
        """This run's cases, and those of the result before that it did not try."""
        known = before.get("patterns", {}) if "runs" in before else {}  # of which run it was is else not told
        patterns = {title: self._pattern(title, known.get(title, {})) for title in PATTERNS.values()}
        total = {name: sum(found[name] for found in patterns.values()) for name in ("cases", "failed", "seconds")}
        mine = {"began": self.began, "commit": self.commit, "seconds": round(time.monotonic() - self._since)}
        runs = [run for run in before.get("runs", []) if run["began"] != self.began]
        named = {case["run"] for found in patterns.values() for case in found["tried"]}
        return {**total, "runs": [run for run in [*runs, mine] if run["began"] in named], "patterns": patterns}

    def _pattern(self, title: str, before: dict[str, Any]) -> dict[str, Any]:
        tried = {case["name"]: case for case in before.get("tried", [])}
        for case in self.cases:
            if case.pattern == title:
                tried[case.name] = {"name": case.name, "seconds": case.seconds, "why": case.why, "run": self.began}
        return {
            "cases": len(tried),
            "failed": sum(bool(case["why"]) for case in tried.values()),
            "seconds": round(sum(case["seconds"] for case in tried.values())),
            "figures": self.figures.get(title) or before.get("figures", {}),
            "tried": list(tried.values()),
        }


def begin() -> str:
    """What a run that begins now is called."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


def _commit() -> str:
    """What is checked out; empty in a copy without history."""
    asked = ["git", "describe", "--always", "--dirty=+"]
    return subprocess.run(asked, cwd=OUT.parent, capture_output=True, text=True, check=False).stdout.strip()
