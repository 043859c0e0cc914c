"""When a run on real nodes has passed."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.load.account import Outcome
from e2e.real.load import Phase
from e2e.real.report import Report


def made(**changes: Any) -> Report:
    """A report of one phase whose only request was answered."""
    phase = Phase("drain")
    phase.account.arrived = 1
    phase.account.outcomes[Outcome.OK] = 1
    told: dict[str, Any] = {
        "phases": [phase],
        "verification": {"signed": "by a key", "engineCannotWrite": True},
        "optimizations": {"acceptedDraftModelTokens": 31.0},
        "contract": [{"name": "health", "kept": True}],
    }
    return Report(**told | changes)


def test_a_run_in_which_all_was_seen_and_nothing_lost_is_clean() -> None:
    assert made().is_clean


@pytest.mark.parametrize(
    "changes",
    [
        {"verification": {"signed": "by a key", "engineCannotWrite": False}},
        {"optimizations": {"acceptedDraftModelTokens": 0.0}},
        {"contract": []},
        {"contract": [{"name": "health", "kept": False}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_was_not_seen_is_not_passed(changes: dict[str, Any]) -> None:
    assert not made(**changes).is_clean


def test_a_lost_request_is_not_passed() -> None:
    report = made()
    report.phases[0].account.outcomes[Outcome.CUT] = 1
    assert not report.is_clean
