"""Arrivals with their token counts: a real trace where its files are, else drawn from its published statistics.

The trace is Azure's of 2023-11-16 (AzurePublicDataset, CC-BY-4.0): `conv`, 19,366 requests in 58 minutes, and `code`,
8,819 in 57. Its files are not part of this project; the figures below were computed from them.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TRACE_SECONDS = 3420.0
"""Length of what is drawn, as that of the real traces."""


class Kind(StrEnum):
    """What a service's requests look like, and when they come."""

    CONV = "conv"
    CODE = "code"
    RARE = "rare"
    """Lengths of `conv`, in bursts with long silence between them: a model that hardly anybody uses."""


class Arrival(NamedTuple):
    """One request to send, `at_s` seconds after the start."""

    at_s: float
    service: str
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of time within `length_s`, three arrays; `origin` is said wherever results are shown."""

    at_s: Floats
    input_tokens: Integers
    output_tokens: Integers
    length_s: float
    origin: str

    def __len__(self) -> int:
        return len(self.at_s)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One service's traffic: a window of a trace (trace seconds), so many copies of it laid over one another.

    Copies are shifted against each other around the window and jittered by up to `jitter_s`, so that bursts keep
    their shape and do not add up; 2.5 copies are two whole ones and a random half of a third.
    """

    kind: Kind
    start_s: float = 0.0
    copies: float = 1.0
    jitter_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """Everything to send, in order of time, and where it comes from."""

    arrivals: Sequence[Arrival]
    origin: str


@dataclass(frozen=True, slots=True)
class _Statistics:
    """What is known of a trace: its rate, how that varies between minutes and between seconds, and token quantiles."""

    requests_per_second: float
    minute_cv: float
    minute_correlation: float
    second_cv: float
    input_tokens: tuple[int, ...]
    output_tokens: tuple[int, ...]


QUANTILES = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 0.999, 1.0)
_STATISTICS = {
    # second_cv is what brings the variance-to-mean ratio of 1 s counts to the published 1.4 and 13.2.
    Kind.CONV: _Statistics(
        5.53, 0.22, 0.9, 0.16,
        (2, 29, 181, 207, 396, 1020, 1189, 2735, 4083, 4142, 6179, 14050),
        (7, 16, 41, 54, 85, 129, 395, 424, 451, 601, 954, 1000),
    ),
    Kind.CODE: _Statistics(
        2.57, 1.04, 0.0, 1.35,
        (3, 17, 75, 147, 578, 1469, 2745, 5188, 7303, 7436, 7437, 7437),
        (6, 6, 6, 7, 9, 13, 24, 55, 90, 251, 825, 1899),
    ),
}  # fmt: skip

RARE_WINDOW_SECONDS = 60.0
RARE_ON_SHARE = 0.05
RARE_REQUESTS_PER_SECOND = 1.5
RARE_GAP_CV = 3.0


def data_folder() -> Path | None:
    """TAAS_DATA, or `shared/data` beside the repository when it exists."""
    if "TAAS_DATA" in os.environ:
        return Path(os.environ["TAAS_DATA"])
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    return beside if beside.is_dir() else None


def traffic(
    recipes: Mapping[str, Recipe], *, seconds: float, time_scale: float, seed: int = 0, data: Path | None = None
) -> Traffic:
    """The traffic of all services for `seconds` of real time, in which `time_scale` times as much of the trace goes by.

    `data` is the folder with the trace's files; None, or a folder without them, draws instead.
    """
    arrivals: list[Arrival] = []
    origins = []
    for number, (service, recipe) in enumerate(recipes.items()):
        rng = np.random.default_rng([seed, number])
        trace = _of_service(recipe, seconds * time_scale, rng, data)
        origins.append(trace.origin)
        at_s = trace.at_s / time_scale
        columns = zip(at_s.tolist(), trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
        arrivals += [Arrival(at, service, inputs, outputs) for at, inputs, outputs in columns]
    arrivals.sort()
    return Traffic(arrivals, "; ".join(dict.fromkeys(origins)))


def _of_service(recipe: Recipe, length_s: float, rng: np.random.Generator, data: Path | None) -> Trace:
    is_rare = recipe.kind == Kind.RARE
    source = rare(rng, recipe.start_s + length_s) if is_rare else azure_2023(recipe.kind, data, rng)
    return copies(window(source, recipe.start_s, length_s), recipe.copies, recipe.jitter_s, rng)


def azure_2023(kind: Kind, data: Path | None, rng: np.random.Generator) -> Trace:
    """The whole trace, real if `data` holds its file."""
    file = data / "azure2023" / f"AzureLLMInferenceTrace_{kind}.csv" if data is not None else None
    return read_azure(file, kind) if file is not None and file.exists() else draw(kind, rng)


def read_azure(file: Path, kind: Kind) -> Trace:
    """TIMESTAMP,ContextTokens,GeneratedTokens, one line per request."""
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    stamps = [datetime.fromisoformat(row["TIMESTAMP"][:26] + "+00:00").timestamp() for row in rows]
    at_s = np.array(stamps)
    order = np.argsort(at_s, kind="stable")
    return Trace(
        (at_s - at_s.min())[order],
        np.array([int(row["ContextTokens"]) for row in rows])[order],
        np.array([max(1, int(row["GeneratedTokens"])) for row in rows])[order],
        float(np.ceil(at_s.max() - at_s.min())),
        f"Azure 2023 {kind}, replayed",
    )


def draw(kind: Kind, rng: np.random.Generator) -> Trace:
    """As many requests, as bursty and as long as the real trace's statistics say; not its requests."""
    known = _STATISTICS[kind]
    rates = known.requests_per_second * _minute_factors(known, rng) * _gamma(rng, known.second_cv, int(TRACE_SECONDS))
    counts = rng.poisson(rates)
    at_s = np.repeat(np.arange(int(TRACE_SECONDS)), counts) + rng.random(int(counts.sum()))
    at_s.sort()
    inputs, outputs = _lengths(known, len(at_s), rng)
    return Trace(at_s, inputs, outputs, TRACE_SECONDS, f"drawn from published statistics of Azure 2023 {kind}")


def rare(rng: np.random.Generator, length_s: float) -> Trace:
    """On in 5 % of the minutes, then 1.5 requests a second in bursts (gamma gaps with a CV of 3)."""
    pieces: list[Floats] = []
    for start_s in np.arange(0.0, length_s, RARE_WINDOW_SECONDS):
        if rng.random() < RARE_ON_SHARE:
            expected = int(RARE_WINDOW_SECONDS * RARE_REQUESTS_PER_SECOND)
            gaps = _gamma(rng, RARE_GAP_CV, 4 * expected) / RARE_REQUESTS_PER_SECOND
            at_s = start_s + np.cumsum(gaps)
            pieces.append(at_s[at_s < start_s + RARE_WINDOW_SECONDS])
    times = np.concatenate([np.empty(0), *pieces])
    inputs, outputs = _lengths(_STATISTICS[Kind.CONV], len(times), rng)
    return Trace(times, inputs, outputs, length_s, "rare models: drawn, on in 5 % of the minutes, gamma bursts")


def window(trace: Trace, start_s: float, length_s: float) -> Trace:
    """The part of a trace from `start_s` on, its clock set to 0; past its end the trace starts over."""
    laps = int(np.ceil((start_s + length_s) / trace.length_s))
    at_s = np.concatenate([np.empty(0), *(trace.at_s + lap * trace.length_s for lap in range(laps))]) - start_s
    kept = (at_s >= 0) & (at_s < length_s)
    inputs, outputs = np.tile(trace.input_tokens, laps), np.tile(trace.output_tokens, laps)
    return Trace(at_s[kept], inputs[kept], outputs[kept], length_s, trace.origin)


def copies(trace: Trace, count: float, jitter_s: float, rng: np.random.Generator) -> Trace:
    """So many times the traffic, within the same window. The first copy stays as it is."""
    whole, part = int(count), count - int(count)
    laid = [trace] * min(whole, 1) + [_shifted(trace, jitter_s, rng) for _ in range(1, whole)]
    if part:
        laid.append(_thinned(_shifted(trace, jitter_s, rng) if whole else trace, part, rng))
    at_s = np.concatenate([np.empty(0), *(one.at_s for one in laid)])
    inputs = np.concatenate([np.empty(0, np.int64), *(one.input_tokens for one in laid)])
    outputs = np.concatenate([np.empty(0, np.int64), *(one.output_tokens for one in laid)])
    order = np.argsort(at_s, kind="stable")
    return Trace(at_s[order], inputs[order], outputs[order], trace.length_s, trace.origin)


def _shifted(trace: Trace, jitter_s: float, rng: np.random.Generator) -> Trace:
    moves = rng.uniform(0, trace.length_s) + rng.uniform(-jitter_s, jitter_s, len(trace))
    return replace(trace, at_s=np.mod(trace.at_s + moves, trace.length_s))


def _thinned(trace: Trace, share: float, rng: np.random.Generator) -> Trace:
    kept = rng.random(len(trace)) < share
    return replace(
        trace,
        at_s=trace.at_s[kept],
        input_tokens=trace.input_tokens[kept],
        output_tokens=trace.output_tokens[kept],
    )


def _minute_factors(known: _Statistics, rng: np.random.Generator) -> Floats:
    """Per second, the factor of its minute: mean 1, the known variation, alike in neighbouring minutes or not."""
    minutes = int(np.ceil(TRACE_SECONDS / 60))
    if known.minute_correlation == 0:
        factors = _gamma(rng, known.minute_cv, minutes)
    else:
        sigma = np.sqrt(np.log(1 + known.minute_cv**2))
        level = rng.normal()
        logs = np.empty(minutes)
        for minute in range(minutes):
            logs[minute] = level
            level = known.minute_correlation * level + np.sqrt(1 - known.minute_correlation**2) * rng.normal()
        factors = np.exp(sigma * logs - sigma**2 / 2)
    return np.repeat(factors, 60)[: int(TRACE_SECONDS)]


def _gamma(rng: np.random.Generator, cv: float, size: int) -> Floats:
    """Mean 1 and the given coefficient of variation."""
    return rng.gamma(1 / cv**2, cv**2, size)


def _lengths(known: _Statistics, size: int, rng: np.random.Generator) -> tuple[Integers, Integers]:
    """Inverse of the quantiles; the two are all but uncorrelated (-0.11 in conv, 0.00 in code)."""
    inputs = np.interp(rng.random(size), QUANTILES, known.input_tokens)
    outputs = np.interp(rng.random(size), QUANTILES, known.output_tokens)
    return inputs.round().astype(np.int64), outputs.round().astype(np.int64)
