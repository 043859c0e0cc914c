"""A table of faults says of which runs it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.faults import record
from e2e.faults.record import Ledger
from e2e.faults.report import page

NOTHING_ELSE: dict[str, Any] = {"bugs": [], "not_tried": []}


def run(began: str, commit: str, *cases: tuple[str, str, str]) -> Ledger:
    ledger = Ledger(commit=commit, began=began)
    for module, name, why in cases:
        ledger.add(module, name, 1.0, why)
    return ledger


def test_one_run_is_called_one() -> None:
    monday = run("2026-01-05 10:00:00", "aaa", ("test_api", "slow", ""), ("test_nodes", "dies", ""))
    written = page(monday.joined({}), NOTHING_ELSE)
    assert "All of it is one run: begun 2026-01-05 10:00:00 UTC at `aaa`" in written
    assert "Joined" not in written


def test_a_run_that_is_written_after_each_test_stays_one() -> None:
    monday = run("2026-01-05 10:00:00", "aaa", ("test_api", "slow", ""))
    before = monday.joined({})
    monday.add("test_nodes", "dies", 1.0)
    assert [made["began"] for made in monday.joined(before)["runs"]] == ["2026-01-05 10:00:00"]


def test_processes_that_share_a_run_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "OUT", tmp_path)
    monkeypatch.setattr(record, "RESULT", tmp_path / "faults.json")
    monkeypatch.setenv(record.RUN, "2026-01-05 10:00:00")
    one, other = Ledger(commit="aaa"), Ledger(commit="aaa")
    one.add("test_api", "slow", 1.0)
    one.write()
    other.add("test_nodes", "dies", 1.0)
    other.write()
    result = json.loads(record.RESULT.read_text())
    assert result["cases"] == 2
    assert [made["began"] for made in result["runs"]] == ["2026-01-05 10:00:00"]


def test_joined_runs_are_named_with_what_each_was_last_to_try() -> None:
    monday = run("2026-01-05 10:00:00", "aaa", ("test_api", "slow", "lost"), ("test_nodes", "dies", ""))
    tuesday = run("2026-01-06 10:00:00", "bbb", ("test_api", "slow", ""))
    result = tuesday.joined(monday.joined({}))
    written = page(result, NOTHING_ELSE)
    assert (result["cases"], result["failed"]) == (2, 0)
    assert "Joined from 2 runs" in written
    assert "- begun 2026-01-05 10:00:00 UTC at `aaa`, 0 s: Nodes and pods 1\n" in written
    assert "- begun 2026-01-06 10:00:00 UTC at `bbb`, 0 s: Slow and failing API 1\n" in written


def test_a_run_of_which_every_case_was_tried_again_is_not_named() -> None:
    monday = run("2026-01-05 10:00:00", "aaa", ("test_api", "slow", ""))
    tuesday = run("2026-01-06 10:00:00", "bbb", ("test_api", "slow", ""))
    assert [made["commit"] for made in tuesday.joined(monday.joined({}))["runs"]] == ["bbb"]


def test_a_case_that_fails_lets_the_others_be_tried() -> None:
    ledger = Ledger()
    with ledger.case("id", "test_api", "slow"):
        raise AssertionError("lost")
    assert ledger.failures(0) == ["slow: lost"]


def test_a_case_that_was_broken_off_is_not_taken_for_held() -> None:
    ledger = Ledger()
    with pytest.raises(KeyboardInterrupt), ledger.case("id", "test_api", "slow"):
        raise KeyboardInterrupt
    assert ledger.failures(0) == ["slow: KeyboardInterrupt()"]
