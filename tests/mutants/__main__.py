"""Breaks the product on purpose, one small patch at a time, and asks whether the test that should notice does.

A test that was never seen to fail proves nothing: it may look at the wrong object, too early, or at what is true in
any case. Each `NAME.patch` here takes one promise away. Its header says which (`Breaks:`, one sentence) and names the
tests that must then fail (`Test:`, one pytest node id a line: a promise is often held by a unit test and on a real
control plane). That they pass while nothing is broken is for `make test` to say.

Every test runs in a copy of its own of the tree as it stands, committed or not: nobody's checkout is ever broken, and
no byte code of one mutant is there when the next one runs. The environment's editable install leads to the real tree,
so the copy is put before it on PYTHONPATH, which processes that the tests start inherit.

Only a failure counts. A test that is not found or skipped, an import that breaks, a fixture that gives up say nothing
about the patch: such a mutant is broken, and so is one whose patch applies no more. The run ends with 0 only when every
mutant was noticed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from xml.etree import ElementTree

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
PURE = "tests/"
"""Where tests are that need no cluster."""

_SHOWN_LINES = 15
_REFRESH_SECONDS = 1.0


class Verdict(StrEnum):
    """What became of one mutant under one test."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"


@dataclass(frozen=True, slots=True)
class Case:
    """One mutant and one test that must notice it."""

    patch: Path
    breaks: str
    test: str

    @property
    def name(self) -> str:
        return self.patch.stem

    @property
    def pure(self) -> bool:
        return self.test.startswith(PURE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict, and for what is broken the words of who gave up."""

    verdict: Verdict
    said: str = ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for; 0 only when every mutant was noticed."""
    asked = _parser().parse_args(arguments)
    cases = [case for case in every_case(FOLDER) if _chosen(case, asked.only, pure=asked.pure)]
    if not cases:
        print("there is no such mutant", file=sys.stderr)
        return 2
    width = max(len(case.name) for case in cases)
    verdicts = [_shown(case, width).verdict for case in cases]
    killed = verdicts.count(Verdict.KILLED)
    survived, broken = verdicts.count(Verdict.SURVIVED), verdicts.count(Verdict.BROKEN)
    print(f"\n{killed} of {len(verdicts)} noticed, {survived} survived, {broken} broken")
    return 0 if killed == len(verdicts) else 1


def every_case(folder: Path) -> Iterator[Case]:
    """All mutants by name, each with its tests. Raises ValueError for a header that lacks a line."""
    for patch in sorted(folder.glob("*.patch")):
        header = patch.read_text().partition("\n--- ")[0]
        breaks = re.findall(r"^Breaks: (.+)$", header, re.MULTILINE)
        tests = re.findall(r"^Test: (.+)$", header, re.MULTILINE)
        if len(breaks) != 1 or not tests:
            raise ValueError(f"{patch.name}: one line 'Breaks: …' and at least one 'Test: …' must come before the diff")
        yield from (Case(patch, breaks[0], test) for test in tests)


def judge(case: Case) -> Outcome:
    """Breaks a copy of the tree and runs the test in it."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = Path(folder) / "tree"
        _copy(ROOT, copy)
        if refused := _applied(case.patch, copy):
            return Outcome(Verdict.BROKEN, f"{case.patch.name} applies no more, write it anew:\n{refused}")
        return _tested(case.test, copy)


# --- One copy ------------------------------------------------------------------------------------------------------


def _copy(source: Path, target: Path) -> None:
    """What git tracks or would: neither environments nor caches nor results."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=source, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if os.path.lexists(source / name):  # one that is tracked may be deleted
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name, follow_symlinks=False)


def _applied(patch: Path, copy: Path) -> str:
    """Why the patch could not be applied; empty if it was.

    In a folder below some other repository git would take the paths for that one's, and leave them out silently.
    """
    alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)}
    done = subprocess.run(["git", "apply", str(patch)], cwd=copy, env=alone, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def _tested(test: str, copy: Path) -> Outcome:
    """A fixed seed, so that properties find what they found last time."""
    report = copy.parent / "report.xml"
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", f"--junitxml={report}"]
    path = os.pathsep.join((str(copy / "operator"), str(copy)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, test],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return _verdict(done.returncode, report, done.stdout)


def _verdict(code: int, report: Path, said: str) -> Outcome:
    """pytest exits with 1 for a failed test and for a broken fixture alike, and with 0 for one that was skipped."""
    cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
    if code == 1 and any(case.find("failure") is not None for case in cases):
        return Outcome(Verdict.KILLED)
    if code == 0 and any(case.find("skipped") is None for case in cases):
        return Outcome(Verdict.SURVIVED)
    return Outcome(Verdict.BROKEN, "\n".join(said.splitlines()[-_SHOWN_LINES:]))


# --- The table -----------------------------------------------------------------------------------------------------


def _shown(case: Case, width: int) -> Outcome:
    """Judges, and writes the case's row; on a terminal its seconds count up meanwhile."""
    began = time.monotonic()
    with ThreadPoolExecutor(max_workers=1) as pool:
        running = pool.submit(judge, case)
        while wait([running], timeout=_REFRESH_SECONDS).not_done:
            if sys.stdout.isatty():
                print(_row(case, width, "runs", began), end="\r", flush=True)
    outcome = running.result()
    print(f"{_row(case, width, outcome.verdict, began)}{case.test}\n{'':<{width}}  {case.breaks}", flush=True)
    if outcome.said:
        print(outcome.said, flush=True)
    return outcome


def _row(case: Case, width: int, state: str, began: float) -> str:
    return f"{case.name:<{width}}  {state:<8}  {time.monotonic() - began:>5.0f} s  "


def _chosen(case: Case, names: Sequence[str], *, pure: bool) -> bool:
    return (not names or case.name in names) and (case.pure or not pure)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", metavar="NAME", action="append", default=[], help="this mutant; may be repeated")
    parser.add_argument("--pure", action="store_true", help="only the tests that need no cluster")
    return parser


if __name__ == "__main__":
    sys.exit(main())
