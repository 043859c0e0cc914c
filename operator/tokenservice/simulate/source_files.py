"""Makes sources of what a scenario says: reads its files, then shifts, cuts, copies and scales."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, nan

import numpy as np
from numpy.typing import NDArray

from tokenservice.errors import InputError
from tokenservice.simulate.curves import Curve, on_off
from tokenservice.simulate.data_files import Trace, read_quantiles, read_rates, read_requests
from tokenservice.simulate.lengths import Marginals, Pairs, Quantiles
from tokenservice.simulate.prefix_hits import cached_tokens
from tokenservice.simulate.sources import Draw, Drawn, Replayed, Seeds
from tokenservice.simulate.traffic import Floats, Ints, Requests
from tokenservice.simulate.workload_spec import (
    Copies,
    Distribution,
    Points,
    Rate,
    RequestFile,
    Shift,
    Window,
    WorkloadSpec,
)

Places = NDArray[np.intp]


def drawn(spec: WorkloadSpec, seeds: Seeds) -> Drawn:
    """Arrivals along the spec's rate, with its lengths. Raises InputError."""
    assert spec.rate is not None
    assert spec.lengths is not None
    lengths = Marginals(_quantiles(spec.lengths.input), _quantiles(spec.lengths.output))
    whole = _curve(spec.rate, tokens_per_request=sum(lengths.mean())).shifted(spec.offset_seconds)
    start_s, end_s = _bounds(spec.window, whole.length_s)
    return Drawn(whole.cut(start_s, end_s).scaled(spec.scale), spec.burst_cv, lengths, seeds)


def replayed(spec: WorkloadSpec, seeds: Seeds) -> Replayed:
    """The spec's request file. Raises InputError."""
    assert spec.requests is not None
    trace = read_requests(spec.requests.file)
    whole_s = _length_s(trace)
    start_s, end_s = _bounds(spec.window, whole_s)
    window_s = end_s - start_s
    at_s = (trace.at_s + spec.offset_seconds) % whole_s - start_s
    inside = np.flatnonzero((at_s >= 0) & (at_s < window_s))
    if not len(inside):
        raise InputError(f"{spec.requests.file}: no requests between {start_s:g} s and {end_s:g} s: move the window")
    at_s, which, copy = _copied(at_s[inside], spec.copies, window_s, seeds)
    kept = seeds.generator(Draw.SCALE).random(len(at_s)) < spec.scale
    at_s, which, copy = at_s[kept], inside[which[kept]], copy[kept]
    requests = Requests(
        at_s,
        trace.input_tokens[which],
        trace.output_tokens[which],
        _cached(spec.requests, trace, which, copy),
        np.full(len(at_s), nan),
    )
    return Replayed(requests, window_s, Pairs(trace.input_tokens[inside], trace.output_tokens[inside]))


def source_length_s(spec: WorkloadSpec) -> float:
    """Time that the source covers, before its window is cut. Raises InputError."""
    if spec.requests is not None:
        return _length_s(read_requests(spec.requests.file))
    assert spec.rate is not None
    return _curve(spec.rate, tokens_per_request=1.0).length_s


def workload_length_s(spec: WorkloadSpec) -> float:
    """Time that is simulated of it. Raises InputError."""
    start_s, end_s = _bounds(spec.window, source_length_s(spec))
    return end_s - start_s


def window_problem(window: Window, length_s: float) -> str | None:
    """What is wrong with a window on a source of this length."""
    start_s, end_s = _ends(window, length_s)
    if start_s < end_s <= length_s:
        return None
    return f"{start_s:g} s to {end_s:g} s is not within the {length_s:g} s that the source covers"


def _bounds(window: Window, length_s: float) -> tuple[float, float]:
    """Start and end in the source. Raises InputError for a window that reaches beyond it."""
    problem = window_problem(window, length_s)
    if problem is not None:
        raise InputError(f"window: {problem}")
    return _ends(window, length_s)


def _ends(window: Window, length_s: float) -> tuple[float, float]:
    return window.start_seconds, length_s if window.end_seconds is None else window.end_seconds


def _length_s(trace: Trace) -> float:
    """Whole seconds: the last request is inside."""
    return floor(float(trace.at_s[-1])) + 1.0


# --- Rates ---------------------------------------------------------------------------------------------------------


def _curve(rate: Rate, tokens_per_request: float) -> Curve:
    """Requests per second over the rate's whole length."""
    curve = _on_off(rate) if rate.on_off is not None else _through_points(rate, tokens_per_request)
    return curve if rate.length_seconds is None else curve.lasting(rate.length_seconds)


def _on_off(rate: Rate) -> Curve:
    assert rate.on_off is not None
    assert rate.length_seconds is not None
    return on_off(
        rate=rate.on_off.requests_per_minute / 60,
        idle_rate=rate.on_off.idle_requests_per_minute / 60,
        mean_on_s=rate.on_off.mean_on_seconds,
        mean_off_s=rate.on_off.mean_off_seconds,
        length_s=rate.length_seconds,
        rng=np.random.default_rng(rate.on_off.seed),
    )


def _through_points(rate: Rate, tokens_per_request: float) -> Curve:
    t_s, per_minute, of_tokens = _points(rate)
    return Curve.through(t_s, per_minute / 60 / (tokens_per_request if of_tokens else 1.0))


def _points(rate: Rate) -> tuple[Floats, Floats, bool]:
    if rate.file is not None:
        table = read_rates(rate.file)
        return table.t_s, table.per_minute, table.of_tokens
    points = rate.requests_per_minute or rate.tokens_per_minute
    assert points is not None
    return *_columns(points), rate.tokens_per_minute is not None


def _quantiles(distribution: Distribution) -> Quantiles:
    if distribution.file is not None:
        return Quantiles(*read_quantiles(distribution.file))
    assert distribution.quantiles is not None
    percent, tokens = _columns(distribution.quantiles)
    return Quantiles(percent / 100, tokens)


def _columns(points: Points) -> tuple[Floats, Floats]:
    table = np.array(points, dtype=float)
    return table[:, 0], table[:, 1]


# --- Request files -------------------------------------------------------------------------------------------------


def _copied(at_s: Floats, copies: Copies, window_s: float, seeds: Seeds) -> tuple[Floats, Places, Places]:
    """Time, place in `at_s` and number of the copy, in order of time. What leaves the window comes in opposite."""
    rng = seeds.generator(Draw.COPIES)
    if copies.shift == Shift.CIRCULAR:
        shifts = rng.uniform(0.0, window_s, (copies.count, 1))
    else:
        shifts = rng.uniform(-copies.jitter_seconds, copies.jitter_seconds, (copies.count, len(at_s)))
    moved = ((at_s + shifts) % window_s if copies.count > 1 else np.array([at_s])).ravel()
    moved[moved >= window_s] = 0.0  # a negative time next to nothing rounds to the whole
    order = np.argsort(moved, kind="stable")
    return moved[order], order % len(at_s), order // len(at_s)


def _cached(file: RequestFile, trace: Trace, which: Places, copy: Places) -> Ints:
    if not file.prefix_cache_tokens:
        return np.zeros(len(which), dtype=np.int32)
    if trace.blocks is None:
        raise InputError(
            f"{file.file}: prefixCacheTokens: this format does not name blocks, Mooncake's does; set it to 0"
        )
    return cached_tokens(trace.input_tokens[which], _own_blocks(trace.blocks, which, copy), file.prefix_cache_tokens)


def _own_blocks(blocks: Sequence[Ints], which: Places, copy: Places) -> list[Ints]:
    """Copies are of other users: equal in size, never in content."""
    names = 1 + max((int(it.max()) for it in blocks if len(it)), default=0)
    return [blocks[place] + number * names for place, number in zip(which.tolist(), copy.tolist(), strict=True)]
