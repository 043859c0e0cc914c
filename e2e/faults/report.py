"""`python -m e2e.faults.report`: writes docs/faults.md from the last result and from the findings kept beside it."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from e2e.faults.record import PATTERNS, RESULT
from tests.mutants.__main__ import FOLDER, every_case

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/faults.md"
FINDINGS = Path(__file__).with_name("findings.yaml")

INTRODUCTION = """# Faults

What happens to TokenService when its neighbours, its nodes or it itself fail. `make faults` tries what is listed here
and writes this page. The API server, etcd, scheduler, controllers, Prometheus and the operator's own code are real;
nodes and engines are simulated. A proxy between the operator and the API server, and one before Prometheus, do to
single requests, answers and watch events what a case asks for. The patterns are those that found most of the known
bugs of other operators (Sieve, Acto, Anvil).
"""


def main() -> None:
    """Writes the page."""
    result, findings = json.loads(RESULT.read_text()), yaml.safe_load(FINDINGS.read_text())
    PAGE.write_text(page(result, findings))
    print(f"{PAGE.relative_to(ROOT)}: {result['cases']} cases, {result['failed']} failed")


def page(result: dict[str, Any], findings: dict[str, Any]) -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        _summary(result["patterns"]),
        _runs(result),
        _bugs(findings["bugs"]),
        _not_tried(findings["not_tried"]),
        _seen_to_fail(),
        *(_pattern(module, title, result) for module, title in PATTERNS.items()),
    ]
    return "\n".join(parts)


def _summary(patterns: dict[str, Any]) -> str:
    rows = [
        f"| {title} | {found['cases']} | {found['failed']} | {_figures(found['figures'])} |"
        for title, found in patterns.items()
    ]
    total = [sum(found[name] for found in patterns.values()) for name in ("cases", "failed")]
    head = ["| pattern | cases | failed | |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, f"| all | {total[0]} | {total[1]} | |", ""])


def _runs(result: dict[str, Any]) -> str:
    """Whether all of it is of one run, and if not, of which."""
    runs = result["runs"]
    if len(runs) == 1:
        return f"All of it is one run: {_run(runs[0])}.\n"
    rows = [f"- {_run(run)}: {_cases_of(run, result['patterns'])}" for run in runs]
    head = f"Joined from {len(runs)} runs, of each case the last time that it was tried:"
    return "\n".join([head, "", *rows, ""])


def _run(run: dict[str, Any]) -> str:
    return f"begun {run['began']} UTC at `{run['commit']}`, {run['seconds']:,} s"


def _cases_of(run: dict[str, Any], patterns: dict[str, Any]) -> str:
    counts = {title: sum(case["run"] == run["began"] for case in found["tried"]) for title, found in patterns.items()}
    return ", ".join(f"{title} {count}" for title, count in counts.items() if count)


def _figures(figures: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in figures.items())


def _bugs(bugs: list[dict[str, str]]) -> str:
    rows = [
        f"| {bug['pattern']} | {bug['found'].strip()} | `{_hash(bug['commit'])}` {bug['commit']} | `{bug['test']}` |"
        for bug in bugs
    ]
    head = ["## Bugs found, and mended", "", "| pattern | what went wrong | commit | held by |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, ""])


def _hash(subject: str) -> str:
    """The commit of that subject; empty in a copy without history."""
    log = ["git", "log", "--format=%h %s"]
    lines = subprocess.run(log, cwd=ROOT, capture_output=True, text=True, check=False).stdout.splitlines()
    return next((line.partition(" ")[0] for line in lines if line.partition(" ")[2] == subject), "")


def _not_tried(entries: list[dict[str, str]]) -> str:
    rows = [f"- {entry['what']}: {entry['why'].strip()}." for entry in entries]
    return "\n".join(["## Not tried", "", *rows, ""])


def _seen_to_fail() -> str:
    """Mutants that a case here must notice."""
    cases = [case for case in every_case(FOLDER) if case.test.startswith("e2e/faults/")]
    rows = [f"| {case.breaks} | {_title(case.test)}: `{case.test.partition('::')[2]}` |" for case in cases]
    head = [
        "## What these tests must notice",
        "",
        "Mutants, which `make mutants` runs: the product broken on purpose.",
        "",
    ]
    return "\n".join([*head, "| broken | noticed by |", "|---|---|", *rows, ""])


def _title(test: str) -> str:
    return PATTERNS[Path(test.partition("::")[0]).stem]


def _pattern(module: str, title: str, result: dict[str, Any]) -> str:
    purpose = (importlib.import_module(f"e2e.faults.{module}").__doc__ or "").strip()
    found = result["patterns"].get(title)
    if not found or not found["tried"]:
        return f"## {title}\n\n{purpose}\n\nNot run yet.\n"
    lines = [f"- {line}" for line in _grouped([case["name"] for case in found["tried"] if not case["why"]])]
    failed = [f"- FAILED {case['name']}: {case['why'].splitlines()[0]}" for case in found["tried"] if case["why"]]
    commit_of = {run["began"]: run["commit"] for run in result["runs"]}
    commits = ", ".join(sorted({f"`{commit_of[case['run']]}`" for case in found["tried"]}))
    return "\n".join([f"## {title}", "", purpose, "", f"Last tried at {commits}:", "", *failed, *lines, ""])


def _grouped(names: list[str]) -> list[str]:
    """Cases that differ by their last number alone are one line."""
    groups: dict[str, list[int]] = {}
    for name in names:
        match = re.fullmatch(r"(.*write) (\d+)", name)
        groups.setdefault(match.group(1) if match else name, []).extend([int(match.group(2))] if match else [])
    return [f"{name} {_ranges(numbers)}".rstrip() for name, numbers in groups.items()]


def _ranges(numbers: list[int]) -> str:
    """`1-4, 6`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


if __name__ == "__main__":
    main()
