"""`tokenservice simulate`: what it prints adds up, its JSON is the result, and wrong input is one sentence."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tokenservice.cli.main import app
from tokenservice.cli.simulation import services
from tokenservice.simulate.result import PARTS, ServiceResult
from tokenservice.simulate.run import names

QUICK = Path(__file__).parents[2] / "docs/scenarios/quick.yaml"


def simulate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["simulate", *map(str, arguments)], env={"COLUMNS": "150"})


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a run prints, and its JSON."""
    file = tmp_path_factory.mktemp("simulate") / "result.json"
    answer = simulate(QUICK, "--policy", "static-p99", "--seed", "3", "--json", file)
    assert answer.exit_code == 0, answer.output
    return answer.output, json.loads(file.read_text())


def test_the_printed_shares_of_accelerator_time_add_up_to_one(shown: tuple[str, dict[str, Any]]) -> None:
    shares = [float(share) for share in re.findall(r"share of accelerator time .*?(\d\.\d{3})", shown[0])]
    assert len(shares) == len(PARTS)
    assert sum(shares) == pytest.approx(1, abs=0.0005 * len(PARTS))


def test_what_is_printed_is_what_the_file_says(shown: tuple[str, dict[str, Any]]) -> None:
    text, written = shown
    assert (written["scenario"], written["policy"], written["seed"]) == ("quick", "static-p99", 3)
    assert sum(written["waterfall"].values()) == pytest.approx(1, abs=1e-6)
    assert f"{written['utilization']:.3f}" in text
    assert f"{written['accelerator_hours']:,.1f}" in text
    for name, service in written["services"].items():
        assert re.search(rf"{name} .*{service['tier']} .*{service['requests']:,} .*{service['attainment']:.2%}", text)


def test_the_timeline_goes_from_the_start_to_the_end(shown: tuple[str, dict[str, Any]]) -> None:
    timeline = shown[1]["timeline"]
    times = [moment["at"] for moment in timeline]
    assert times == sorted(times)
    assert (times[0], times[-1]) == (0.0, 600.0)
    assert {frozenset(moment["ready"]) for moment in timeline} == {frozenset({"chat", "code"})}


def test_every_policy_is_named_with_a_line() -> None:
    answer = simulate(QUICK, "--policy", "list")
    assert answer.exit_code == 0
    assert all(re.search(rf"^{name}  \S", answer.output, re.MULTILINE) for name in names())


def test_of_no_requests_no_share_is_shown() -> None:
    def shown(**changes: Any) -> list[str]:
        none = {"requests": 0, "attainment": 1.0, "ttft_attainment": 0.0, "tpot_attainment": 0.0, "deferrable": 1.0}
        one = ServiceResult(tier="Spot", output_tokens=0, tokens_owed=0, worth=1.0, **(none | changes))
        table = services(SimpleNamespace(services={"chat": one}))
        return [str(next(iter(column.cells))) for column in table.columns][3:]

    assert shown() == ["-"] * 4
    assert shown(requests=5, deferrable=0.6) == ["-", "-", "-", "60.00%"]
    assert shown(requests=5, attainment=0.0) == ["0.00%"] * 3 + ["100.00%"]


WRONG: dict[str, tuple[str, list[str]]] = {
    "no such policy": ("there is no policy 'best'; there are operator, static-p99", ["--policy", "best"]),
    "an unknown field": ("nope: unknown field", []),
    "a seed that is none": ("Invalid value for", ["--seed", "-1"]),
    "a folder that is not there": ("name a file in a folder that exists", ["--json", "/nowhere/result.json"]),
    "a folder instead of a file": ("name a file in a folder that exists", ["--json", "/"]),
}


@pytest.mark.parametrize(("message", "options"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_two(message: str, options: list[str], tmp_path: Path) -> None:
    scenario = tmp_path / "mine.yaml"
    scenario.write_text(QUICK.read_text() + ("" if options else "nope: 1\n"))
    answer = simulate(scenario, *options)
    assert answer.exit_code == 2
    assert message in answer.output
    assert "Traceback" not in answer.output


def test_without_the_compiler_the_command_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['numba'] = None; from tokenservice.cli.main import app;"
        f"app(['simulate', {str(QUICK)!r}])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 2
    assert answer.stderr.strip().endswith("install tokenservice[simulate]")
    assert "Traceback" not in answer.stderr
