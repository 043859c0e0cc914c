"""Traffic: the real trace where it is, its published statistics where it is not."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from e2e.load.trace import (
    RARE_WINDOW_SECONDS,
    TRACE_SECONDS,
    Kind,
    Recipe,
    Trace,
    azure_2023,
    copies,
    draw,
    rare,
    read_azure,
    traffic,
    window,
)
from tests.e2e_engines.builders import DATA

REAL = Path(os.environ.get("TAAS_DATA", DATA))
needs_data = pytest.mark.skipif(not (REAL / "azure2023").is_dir(), reason="needs TAAS_DATA: the Azure 2023 traces")

# Published: requests per minute, then p50, p95 and p99 of input and output tokens, and variance/mean of 1 s counts.
PUBLISHED = {
    Kind.CONV: (333, (1020, 4083, 4142), (129, 451, 601), 1.4),
    Kind.CODE: (151, (1469, 7303, 7436), (13, 90, 251), 13.2),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_what_is_drawn_has_the_published_statistics(kind: Kind) -> None:
    per_minute, inputs, outputs, dispersion = PUBLISHED[kind]
    drawn = [draw(kind, np.random.default_rng(seed)) for seed in range(6)]
    minutes = 6 * TRACE_SECONDS / 60
    assert sum(map(len, drawn)) / minutes == pytest.approx(per_minute, rel=0.12)
    quantiles = (0.5, 0.95, 0.99)
    assert np.quantile(np.concatenate([t.input_tokens for t in drawn]), quantiles) == pytest.approx(inputs, rel=0.05)
    assert np.quantile(np.concatenate([t.output_tokens for t in drawn]), quantiles) == pytest.approx(outputs, rel=0.2)
    counts = np.concatenate([np.bincount(t.at_s.astype(int), minlength=int(TRACE_SECONDS)) for t in drawn])
    assert counts.var() / counts.mean() == pytest.approx(dispersion, rel=0.35)
    assert "drawn from published statistics" in drawn[0].origin


@needs_data
@pytest.mark.parametrize(("kind", "requests"), [(Kind.CONV, 19_366), (Kind.CODE, 8_819)])
def test_the_real_trace_is_replayed_where_it_is(kind: Kind, requests: int) -> None:
    trace = azure_2023(kind, REAL, np.random.default_rng(0))
    assert (len(trace), trace.origin) == (requests, f"Azure 2023 {kind}, replayed")
    assert np.quantile(trace.input_tokens, 0.5) == PUBLISHED[kind][1][0]
    assert (np.diff(trace.at_s) >= 0).all()


def test_a_trace_file_is_read_in_order_of_time(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:05.4799600,4808,10\n"
        "2023-11-16 18:17:03.9799600,3180,0\n"
    )
    trace = read_azure(file, Kind.CODE)
    assert trace.at_s.tolist() == pytest.approx([0.0, 1.5])
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([3180, 4808], [1, 10])


def steady(seconds: int = 100) -> Trace:
    """One request a second, its number as its length."""
    numbers = np.arange(seconds)
    return Trace(numbers.astype(np.float64) + 0.5, numbers + 1, numbers + 1, float(seconds), "steady")


def test_a_window_starts_over_at_the_end_of_the_trace() -> None:
    part = window(steady(), 90, 20)
    assert part.at_s.tolist() == pytest.approx(np.arange(20) + 0.5)
    assert part.input_tokens.tolist() == [*range(91, 101), *range(1, 11)]


@pytest.mark.parametrize("count", [0.0, 0.3, 1.0, 2.5, 7.0])
def test_copies_give_so_many_times_the_traffic(count: float) -> None:
    many = copies(steady(2000), count, 2.0, np.random.default_rng(1))
    assert len(many) == pytest.approx(2000 * count, rel=0.06)
    assert ((many.at_s >= 0) & (many.at_s < 2000)).all()
    assert (np.diff(many.at_s) >= 0).all()


def test_rare_models_are_silent_nearly_always() -> None:
    trace = rare(np.random.default_rng(3), 100 * 3600)
    busy = len(set((trace.at_s // RARE_WINDOW_SECONDS).astype(int).tolist()))
    assert busy / (100 * 60) == pytest.approx(0.05, abs=0.01)
    assert (np.diff(trace.at_s) >= 0).all()


def test_time_is_scaled_and_services_are_merged_in_order() -> None:
    recipes = {"chat": Recipe(Kind.CONV), "code": Recipe(Kind.CODE, start_s=60, copies=2)}
    planned = traffic(recipes, seconds=60, time_scale=12, seed=5)
    assert all(earlier.at_s <= later.at_s for earlier, later in pairwise(planned.arrivals))
    assert 0 <= planned.arrivals[0].at_s <= planned.arrivals[-1].at_s < 60
    chat = sum(arrival.service == "chat" for arrival in planned.arrivals)
    assert chat == pytest.approx(5.53 * 720, rel=0.35)
    assert planned.arrivals == traffic(recipes, seconds=60, time_scale=12, seed=5).arrivals
    assert planned.origin.count("drawn") == 2
