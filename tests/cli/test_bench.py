"""What the benchmarks' commands say when they cannot run."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from tokenservice.cli.main import app


def test_without_the_solver_the_benchmark_of_plans_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tokenservice.simulate.plan_bench", "tokenservice.simulate.plan_bound"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "highspy", None)
    done = CliRunner().invoke(app, ["bench", "plan", "--services", "10", "--accelerators", "80"])
    assert done.exit_code != 0
    assert "install tokenservice[simulate]" in done.output
