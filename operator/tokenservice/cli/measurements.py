"""Reads engine measurements: CSV with the columns of aiconfigurator's `silicon_sample.csv`.

Rows of disaggregated or pipelined deployments are counted and left out: the step model is that of one engine. The
same run under several file names is one measurement. What a layout is called differs between exporters: where experts
span more accelerators than `tp_size`, the attention is copied; where both expert columns square to `tp_size` (or to
`attention_dp_size`), the exporter multiplied the same accelerators twice.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenservice.core.calibration import Configuration, Measurement
from tokenservice.core.roofline import BYTES
from tokenservice.errors import ConfigurationError

NEEDED = (
    "backend", "backend_version", "model_path", "system", "precision", "mode", "isl", "osl", "batch_size", "tp_size",
    "silicon_ttft_ms", "silicon_tpot_ms",
)  # fmt: skip

_ENGINES = {"vllm": "vLLM", "sglang": "SGLang", "trtllm": "TensorRT-LLM"}
_FORM_FACTORS = ("_sxm", "_pcie", "_nvl", "_oam")
_PRECISIONS = {
    "bfloat16": "bf16",
    "fp16": "bf16",
    "float16": "bf16",
    "half": "bf16",
    "nvfp4": "fp4",
}
"""Other names of formats that take as many bytes and compute as fast."""

_UNNAMED_PRECISION = "bf16"  # what rows without one were measured in, by their time to read the weights


@dataclass(frozen=True, slots=True)
class Measurements:
    """What a file holds, by configuration, and how many rows were left out, by reason."""

    by_configuration: Mapping[Configuration, tuple[Measurement, ...]]
    left_out: Mapping[str, int]

    @property
    def points(self) -> int:
        return sum(map(len, self.by_configuration.values()))


@dataclass(frozen=True, slots=True)
class _Row:
    """One line, with what an error needs to name it."""

    file: Path
    line: int
    cells: Mapping[str, str | None] = field(repr=False)

    def text(self, column: str) -> str:
        return (self.cells.get(column) or "").strip()

    def wrong(self, column: str, fix: str) -> ConfigurationError:
        return ConfigurationError(f"{self.file}:{self.line}: column {column}: {fix}")

    def number(self, column: str) -> float:
        """Above 0 and finite. Raises ConfigurationError."""
        try:
            value = float(self.text(column))
        except ValueError:
            raise self.wrong(column, f"{self.text(column)!r} is not a number") from None
        if not 0 < value < float("inf"):
            raise self.wrong(column, f"{value:g} must be above 0 and finite")
        return value

    def count(self, column: str) -> int:
        value = self.number(column)
        if value != int(value):
            raise self.wrong(column, f"{value:g} must be a whole number")
        return int(value)

    def size(self, column: str) -> int:
        """A parallel size; blank and 0 mean that there is none."""
        return 1 if self.text(column) in ("", "0", "0.0") else self.count(column)


def read_measurements(file: Path) -> Measurements:
    """Raises ConfigurationError, which names file, line and column."""
    found: dict[Configuration, dict[Measurement, None]] = {}
    left_out: dict[str, int] = {}
    for row in _rows(file):
        reason = _unusable(row)
        if reason is not None:
            left_out[reason] = left_out.get(reason, 0) + 1
            continue
        point = _measurement(row)
        points = found.setdefault(_configuration(row), {})
        if point in points:
            left_out["repeats of a measurement"] = left_out.get("repeats of a measurement", 0) + 1
        points[point] = None
    if not found:
        why = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ConfigurationError(f"{file}: holds no measurement of an aggregated engine; left out: {why or 'nothing'}")
    return Measurements({configuration: tuple(found[configuration]) for configuration in sorted(found)}, left_out)


def _rows(file: Path) -> Iterator[_Row]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            _complain_of_columns(file, reader.fieldnames or ())
            for cells in reader:
                yield _Row(file, reader.line_num, cells)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"{file}: cannot be read as CSV: {error}") from error


def _complain_of_columns(file: Path, columns: Iterable[str]) -> None:
    missing = [column for column in NEEDED if column not in set(columns)]
    if missing:
        raise ConfigurationError(f"{file}:1: lacks the columns {', '.join(missing)}")


def _unusable(row: _Row) -> str | None:
    mode = row.text("mode").lower()
    if mode not in ("", "agg", "ifb"):
        return "disaggregated" if mode.startswith("disagg") else f"of mode {mode}"
    precision = _precision(row)
    if precision not in BYTES:
        return f"in {precision}, which is not one of {', '.join(BYTES)}"
    return "pipelined" if row.size("pp_size") > 1 else None


def _precision(row: _Row) -> str:
    name = row.text("precision").lower() or _UNNAMED_PRECISION
    return _PRECISIONS.get(name, name)


def _measurement(row: _Row) -> Measurement:
    return Measurement(
        input_tokens=row.count("isl"),
        output_tokens=row.count("osl"),
        concurrency=row.count("batch_size"),
        ttft_ms=row.number("silicon_ttft_ms") if row.text("silicon_ttft_ms") not in ("", "0", "0.0") else 0.0,
        tpot_ms=row.number("silicon_tpot_ms"),
    )


def _configuration(row: _Row) -> Configuration:
    for column in ("model_path", "backend", "system"):
        if not row.text(column):
            raise row.wrong(column, "is empty")
    engine = row.text("backend")
    tensor, data, experts = _layout(
        *(row.size(c) for c in ("tp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size"))
    )
    return Configuration(
        model=row.text("model_path"),
        engine=_ENGINES.get(engine.lower(), engine),
        engine_version=row.text("backend_version"),
        accelerator=_accelerator(row.text("system")),
        precision=_precision(row),
        tensor_parallel=tensor,
        data_parallel=data,
        experts_parallel=experts,
    )


def _accelerator(system: str) -> str:
    name = system.lower()
    return next((name.removesuffix(form) for form in _FORM_FACTORS if name.endswith(form)), name)


def _layout(tensor: int, data: int, expert_slices: int, expert_spread: int) -> tuple[int, int, bool]:
    """(tensor parallel, data parallel, experts spread) of one replica."""
    attention, experts = tensor * data, expert_slices * expert_spread
    if expert_slices == expert_spread > 1 and attention == experts:
        return (expert_spread, 1, True) if data == 1 else (1, expert_spread, True)
    if experts > attention and experts % tensor == 0 and expert_slices * expert_spread <= 16:
        data = experts // tensor
    return tensor, data, expert_spread > 1
