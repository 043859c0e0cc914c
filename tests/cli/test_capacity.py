"""`tokenservice capacity`: files are read or refused with line and column, figures are those of the protocol."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tokenservice.cli.kin import family, known
from tokenservice.cli.main import app
from tokenservice.cli.measurements import NEEDED, read_measurements
from tokenservice.core.calibration import Configuration
from tokenservice.core.step import StepModel

DATA = Path(os.environ.get("TAAS_DATA", Path(__file__).parents[3] / "shared" / "data"))
SAMPLE = DATA / "engine" / "silicon_sample.csv"
TRUTH = StepModel(7.0, 0.03, 0.05, 0.02)
COLUMNS = (*NEEDED, "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")


def row(prompt: int = 1024, answer: int = 256, concurrency: int = 8, **changes: Any) -> dict[str, Any]:
    return {
        "backend": "vllm",
        "backend_version": "0.32",
        "model_path": "meta-llama/Llama-3.1-8B-Instruct",
        "system": "h100_sxm",
        "precision": "bf16",
        "mode": "agg",
        "isl": prompt,
        "osl": answer,
        "batch_size": concurrency,
        "tp_size": 1,
        "silicon_ttft_ms": TRUTH.delta_ms * prompt,
        "silicon_tpot_ms": TRUTH.tpot_ms(concurrency, prompt, answer),
    } | changes


def rows(*shapes: tuple[int, int], **changes: Any) -> list[dict[str, Any]]:
    return [row(*shape, concurrency, **changes) for shape in shapes for concurrency in (1, 8, 32)]


def write(file: Path, content: list[dict[str, Any]]) -> Path:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(content)
    return file


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["capacity", *map(str, arguments)])


MANY = [(256, 256), (1024, 128), (1024, 1024), (2048, 256), (4096, 512), (8000, 1000)]


def test_shapes_are_held_out_in_turn(tmp_path: Path) -> None:
    few = rows((1024, 1024), (8192, 1024), tp_size=2, silicon_tpot_ms=9.0)
    file = write(tmp_path / "fit.csv", rows(*MANY) + few)
    result = run("validate", "--fit", file, "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["many_shapes"]["groups"] == report["few_shapes"]["groups"] == 1
    assert report["many_shapes"]["points"] == 18
    assert report["many_shapes"]["median_error"] < 0.03
    assert [group["many_shapes"] for group in report["groups"]] == [True, False]
    assert report["groups"][0]["step"]["alpha_ms"] == pytest.approx(TRUTH.alpha_ms, rel=0.05)
    assert "kept" in result.output


def test_another_file_is_predicted_from_the_fit(tmp_path: Path) -> None:
    fit, other = write(tmp_path / "fit.csv", rows(*MANY)), write(tmp_path / "other.csv", rows((3000, 300)))
    result = run("validate", "--fit", fit, "--validate", other, "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["many_shapes"]["points"] == 3
    assert report["few_shapes"] == {
        "groups": 0,
        "points": 0,
        "median_error": None,
        "p95_error": None,
        "worst_group_median": None,
    }


WRONG = {
    "no number": ({"isl": "long"}, "2: column isl: 'long' is not a number"),
    "half a token": ({"osl": "1.5"}, "2: column osl: 1.5 must be a whole number"),
    "a time of nothing": ({"silicon_tpot_ms": 0}, "2: column silicon_tpot_ms: 0 must be above 0 and finite"),
    "no time": ({"silicon_tpot_ms": ""}, "2: column silicon_tpot_ms: '' is not a number"),
    "not finite": ({"silicon_ttft_ms": "inf"}, "2: column silicon_ttft_ms: inf must be above 0 and finite"),
    "no model": ({"model_path": ""}, "2: column model_path: is empty"),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_line_and_column(case: str, tmp_path: Path) -> None:
    changes, message = WRONG[case]
    result = run("validate", "--fit", write(tmp_path / "fit.csv", [row(**changes)]))
    assert result.exit_code == 1
    assert f"fit.csv:{message}" in result.output


def test_files_that_are_no_measurements_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert "other.csv:1: lacks the columns backend" in run("validate", "--fit", tmp_path / "other.csv").output
    assert "cannot be read" in run("validate", "--fit", tmp_path / "nowhere.csv").output
    empty = write(tmp_path / "empty.csv", [row(mode="disagg")])
    assert "no measurement of an aggregated engine" in run("validate", "--fit", empty).output
    unknown = write(tmp_path / "unknown.csv", [row(precision="fp3")])
    assert "left out: 1 in fp3, which is not one of bf16" in run("validate", "--fit", unknown).output


def test_what_exporters_write_differently_is_the_same(tmp_path: Path) -> None:
    usual = read_measurements(write(tmp_path / "usual.csv", [row(precision="fp8"), row(prompt=2000)]))
    spelt = [row(precision="FP8", mode="AGG"), row(prompt=2000, precision="fp16", mode="")]
    file = write(tmp_path / "spelt.csv", spelt)
    file.write_text("\ufeff" + file.read_text())
    assert read_measurements(file) == usual


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    content = [row(), row(), row(mode="disagg"), row(pp_size=2)]
    found = read_measurements(write(tmp_path / "fit.csv", content))
    assert found.points == 1
    assert found.left_out == {"repeats of a measurement": 1, "disaggregated": 1, "pipelined": 1}


LAYOUTS = {
    "plain": ({"tp_size": 4}, (4, 1, False)),
    "experts spread": ({"tp_size": 4, "moe_tp_size": 1, "moe_ep_size": 4}, (4, 1, True)),
    "attention copied": ({"tp_size": 2, "attention_dp_size": 2, "moe_tp_size": 4, "moe_ep_size": 1}, (2, 2, False)),
    "copies left unsaid": ({"tp_size": 2, "moe_tp_size": 4, "moe_ep_size": 1}, (2, 2, False)),
    "squared by the exporter": ({"tp_size": 64, "moe_tp_size": 8, "moe_ep_size": 8}, (8, 1, True)),
    "copies squared": ({"attention_dp_size": 16, "moe_tp_size": 4, "moe_ep_size": 4}, (1, 4, True)),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts_are_read_as_they_were_run(case: str, tmp_path: Path) -> None:
    changes, wanted = LAYOUTS[case]
    (found,) = read_measurements(write(tmp_path / "fit.csv", [row(**changes)])).by_configuration
    assert (found.tensor_parallel, found.data_parallel, found.experts_parallel) == wanted


def test_what_the_catalogue_lacks_is_guessed_and_said() -> None:
    stranger = Configuration("org/New-120B-A5B-FP8", "vLLM", "1", "tpu9", "fp8", 4)
    found = known([stranger])
    assert found.kin[stranger].experts
    assert found.kin[stranger].roofline.alpha_ms > 0
    assert len(found.guesses) == 2


def test_number_formats_of_one_model_are_a_family() -> None:
    assert family("nvidia/Llama-3.1-8B-Instruct-FP8") == family("meta-llama/Llama-3.1-8B-Instruct")
    assert family("deepseek-ai/DeepSeek-R1") == family("nvidia/DeepSeek-V3.1-NVFP4")
    assert family("Qwen/Qwen3-32B") != family("Qwen/Qwen3-8B")


@pytest.mark.skipif(not SAMPLE.exists(), reason="the measurements are not on this machine (TAAS_DATA)")
def test_the_published_measurements_are_predicted_within_the_limits(tmp_path: Path) -> None:
    result = run("validate", "--fit", SAMPLE, "--json", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out.json").read_text())
    many, few = report["many_shapes"], report["few_shapes"]
    assert many["median_error"] <= 0.045
    assert many["p95_error"] <= 0.15
    assert many["worst_group_median"] <= 0.12
    assert few["median_error"] <= 0.10
    assert report["saturated"]["points"] < 0.07 * (many["points"] + few["points"])
    assert "MISSED" not in result.output
