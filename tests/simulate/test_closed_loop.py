"""A closed loop makes what the step model says, and MLPerf's figures are met where a profile matches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenservice.cli.main import app
from tokenservice.cli.mlperf import Audited, compare, spread
from tokenservice.core.step import StepModel
from tokenservice.simulate.closed_loop import closed_loop
from tokenservice.simulate.engine import EngineLimits

DATA = Path(os.environ.get("TAAS_DATA", Path(__file__).parents[3] / "shared" / "data"))
RESULTS = DATA / "engine" / "mlperf_v5.1_llm_per_accelerator.csv"
STEP = StepModel(alpha_ms=10.0, beta_ms=0.05, kappa_ms=0.03, delta_ms=0.02)
WIDE = EngineLimits(max_num_seqs=512, max_num_batched_tokens=8192, kv_capacity_tokens=10**7)


@pytest.mark.parametrize("concurrency", [1, 8, 64, 256])
def test_a_loop_runs_at_the_tpot_that_the_calibration_assumes(concurrency: int) -> None:
    """The formula that measurements are fitted with is what the engine does, up to 5 % of waves and first tokens."""
    found = closed_loop(STEP, WIDE, ((500, 300), (520, 290), (480, 310)), concurrency)
    assert found.tpot_seconds * 1000 == pytest.approx(STEP.tpot_ms(concurrency, 500, 300), rel=0.05)


def test_throughput_is_requests_over_their_life() -> None:
    found = closed_loop(STEP, WIDE, ((500, 300),), 32)
    life = found.ttft_seconds + 299 * found.tpot_seconds
    assert found.tokens_per_second == pytest.approx(32 * 300 / life, rel=0.02)


def test_lengths_keep_their_means() -> None:
    lengths = spread(294, 128)
    assert sum(prompt for prompt, _ in lengths) / len(lengths) == pytest.approx(294, rel=0.01)
    assert sum(answer for _, answer in lengths) / len(lengths) == pytest.approx(128, rel=0.01)


def test_an_estimate_is_marked_beside_its_number() -> None:
    found = compare(Audited("llama3_1-70b-fp8_dyn", "mi300x", "Offline", 2320.0, "5.1-0386"))
    assert found is not None
    assert found.doubt == "SCALED ESTIMATE"


BROKEN = {
    "no throughput": ("many", ":2: column best_per_accel: 'many' is no throughput"),
    "negative": ("-1", ":2: column best_per_accel: '-1' is no throughput"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_result_that_is_none_is_named_by_line_and_column(case: str, tmp_path: Path) -> None:
    value, message = BROKEN[case]
    file = tmp_path / "results.csv"
    header = "model,accelerator,scenario,best_per_accel,units,weights,id\n"
    file.write_text(f"{header}llama3.1-8b,L40S,Offline,{value},Tokens/s,fp8,5.1-0082\n")
    result = CliRunner().invoke(app, ["capacity", "mlperf", str(file)])
    assert result.exit_code == 1
    assert f"results.csv{message}" in result.output


@pytest.mark.skipif(not RESULTS.exists(), reason="MLPerf's results are not on this machine (TAAS_DATA)")
def test_mlperf_is_met_where_a_measured_profile_matches() -> None:
    result = CliRunner().invoke(app, ["capacity", "mlperf", str(RESULTS)])
    assert result.exit_code == 0, result.output
    misses = [line for line in result.output.splitlines() if line.endswith("MISS")]
    assert {line.split()[0] + " " + line.split()[1] for line in misses} == {"deepseek-r1 h200", "llama3.1-8b l40s"}
    assert all("SCALED ESTIMATE" in line for line in result.output.splitlines() if " mi300x " in line)
