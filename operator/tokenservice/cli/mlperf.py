"""`tokenservice capacity mlperf`: the simulated engine in a closed loop against MLPerf's audited tokens per second.

Compared are results whose model and accelerator a shipped profile has. Submitters choose their parallelism, so the
profile that makes most of an accelerator is taken, in the submitted number format where there is one. Lengths are
spread exponentially around the data set's means. Offline runs at the concurrency that makes most; Server at the most
whose mean latencies keep the scenario's limits.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from tokenservice.api.capacity_profile import CapacityProfileSpec, Provenance
from tokenservice.catalogue import capacity_profiles
from tokenservice.core.step import StepModel
from tokenservice.errors import ConfigurationError
from tokenservice.simulate.closed_loop import Throughput, closed_loop
from tokenservice.simulate.engine import EngineLimits

_NEEDED = ("model", "accelerator", "scenario", "best_per_accel", "units", "weights", "id")
_CONCURRENCIES = (64, 128, 256, 384, 512, 768, 1024)
_LENGTHS = 499  # prime, so that the loop's places do not each meet the same lengths
_NEAR = 0.2


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One MLPerf model: what profiles call it, mean lengths of its data set in tokens, limits of Server."""

    model: str
    precision: str
    input_tokens: float
    output_tokens: float
    ttft_seconds: float
    tpot_seconds: float


BENCHMARKS: Mapping[str, Benchmark] = {
    "llama3_1-70b-fp8_dyn": Benchmark("meta-llama/Llama-3.1-70B-Instruct", "fp8", 294, 294, 2.0, 0.2),
    "llama3.1-8b": Benchmark("meta-llama/Llama-3.1-8B-Instruct", "fp8", 778, 128, 2.0, 0.1),
    "deepseek-r1": Benchmark("deepseek-ai/DeepSeek-R1", "fp8", 800, 3886, 2.0, 0.08),
}
"""Answers: OpenOrca's 294.45 and DeepSeek-R1's 3,886 tokens a sample are what MLPerf's accuracy checker asks for;
CNN/DailyMail answers are cut at 128. Prompts are estimates: MLPerf states none with its results."""

ACCELERATORS = {
    "H100-SXM-80GB": "h100",
    "H200-SXM-141GB": "h200",
    "L40S": "l40s",
    "MI300X 192GB HBM3": "mi300x",
}
_SCENARIOS = ("Offline", "Server")


@dataclass(frozen=True, slots=True)
class Audited:
    """One published result, in output tokens per second and accelerator."""

    benchmark: str
    accelerator: str
    scenario: str
    tokens_per_second: float
    id: str


@dataclass(frozen=True, slots=True)
class Compared:
    """A result beside what the best profile makes in simulation."""

    audited: Audited
    profile: str
    doubt: str
    precision_differs: bool
    found: Throughput
    tokens_per_second: float

    @property
    def ratio(self) -> float:
        return self.tokens_per_second / self.audited.tokens_per_second

    @property
    def near(self) -> bool:
        return abs(self.ratio - 1) <= _NEAR


def mlperf(
    file: Annotated[
        Path, typer.Argument(help="MLPerf results (CSV: model, accelerator, scenario, best_per_accel, …).")
    ],
) -> None:
    """Compare the simulated engine's closed-loop throughput with MLPerf's Server and Offline results."""
    try:
        audited = read_audited(file)
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    turns = track(audited, "simulating", console=Console(stderr=True), transient=True)
    compared = [found for one in turns if (found := compare(one)) is not None]
    typer.echo("output tokens per second and accelerator; MLPerf Inference v5.1, results by their id\n")
    typer.echo(f"{'benchmark':22}{'class':8}{'scenario':9}{'id':10}{'MLPerf':>8}{'simulated':>10}{'ratio':>7}  profile")
    for line in compared:
        typer.echo(_line(line))
    near = sum(line.near for line in compared)
    typer.echo(f"\n{near} of {len(compared)} within 20 %; docs/capacity.md explains each that is not")


def _line(line: Compared) -> str:
    one = line.audited
    notes = [note for note in (line.doubt, "other number format" if line.precision_differs else "") if note]
    said = f" ({'; '.join(notes)})" if notes else ""
    mark = "" if line.near else "  <- MISS"
    return (
        f"{one.benchmark:22}{one.accelerator:8}{one.scenario:9}{one.id:10}{one.tokens_per_second:8.0f}"
        f"{line.tokens_per_second:10.0f}{line.ratio:7.2f}  {line.profile} x {line.found.concurrency}{said}{mark}"
    )


def read_audited(file: Path) -> list[Audited]:
    """Results that can be compared. Raises ConfigurationError, which names line and column."""
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            missing = [column for column in _NEEDED if column not in (reader.fieldnames or ())]
            if missing:
                raise ConfigurationError(f"{file}:1: lacks the columns {', '.join(missing)}")
            return [one for row in reader for one in _audited(file, reader.line_num, row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{file}: cannot be read as CSV: {error}") from error


def _audited(file: Path, line: int, row: Mapping[str, str]) -> Iterator[Audited]:
    known = row["model"] in BENCHMARKS and row["accelerator"] in ACCELERATORS
    if not known or row["scenario"] not in _SCENARIOS or row["units"] != "Tokens/s":
        return
    try:
        value = float(row["best_per_accel"])
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ConfigurationError(f"{file}:{line}: column best_per_accel: {row['best_per_accel']!r} is no throughput")
    yield Audited(row["model"], ACCELERATORS[row["accelerator"]], row["scenario"], value, row["id"])


def compare(audited: Audited) -> Compared | None:
    """The best shipped profile in the audited conditions; None where no profile matches."""
    benchmark = BENCHMARKS[audited.benchmark]
    tried = [
        Compared(
            audited=audited,
            profile=name,
            doubt=_doubt(spec),
            precision_differs=spec.precision != benchmark.precision,
            found=found,
            tokens_per_second=found.tokens_per_second / spec.tensor_parallel_size,
        )
        for name, spec in _matching(benchmark, audited.accelerator)
        for found in _runs(name, benchmark)
        if audited.scenario == "Offline" or _keeps(found, benchmark)
    ]
    return max(tried, key=lambda one: (not one.precision_differs, one.tokens_per_second), default=None)


def _matching(benchmark: Benchmark, accelerator: str) -> list[tuple[str, CapacityProfileSpec]]:
    """Profiles of a model on an accelerator; one engine's where the other's is assumed equal to it."""
    own = [
        (name, spec)
        for name, spec in capacity_profiles().items()
        if (spec.model, spec.accelerator) == (benchmark.model, accelerator)
    ]
    fitted = [(name, spec) for name, spec in own if spec.provenance is not Provenance.ROOFLINE]
    return fitted or own


def _doubt(spec: CapacityProfileSpec) -> str:
    """What must stand beside every number of a profile that was not measured."""
    if spec.provenance is not Provenance.ROOFLINE:
        return ""
    return "SCALED ESTIMATE" if spec.source.startswith("SCALED ESTIMATE") else "assumed equal to another engine's fit"


@cache
def _runs(name: str, benchmark: Benchmark) -> tuple[Throughput, ...]:
    spec = capacity_profiles()[name]
    step = StepModel(spec.step.alpha_ms, spec.step.beta_ms, spec.step.kappa_ms, spec.step.delta_ms)
    lengths = spread(benchmark.input_tokens, benchmark.output_tokens)
    return tuple(
        closed_loop(
            step, EngineLimits(most, max(spec.max_num_batched_tokens, most), spec.kv_capacity_tokens), lengths, most
        )
        for most in _CONCURRENCIES
    )


def _keeps(found: Throughput, benchmark: Benchmark) -> bool:
    return found.ttft_seconds <= benchmark.ttft_seconds and found.tpot_seconds <= benchmark.tpot_seconds


def spread(input_tokens: float, output_tokens: float) -> tuple[tuple[int, int], ...]:
    """Lengths at even quantiles of exponential distributions, paired without order by a stride."""
    inputs, outputs = _quantiles(input_tokens), _quantiles(output_tokens)
    return tuple((inputs[(n * 13) % _LENGTHS], outputs[(n * 101) % _LENGTHS]) for n in range(_LENGTHS))


def _quantiles(mean: float) -> Sequence[int]:
    return [max(1, round(-mean * log(1 - (n + 0.5) / _LENGTHS))) for n in range(_LENGTHS)]
