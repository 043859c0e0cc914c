"""Requests: the same however time is cut, of the rate and the lengths that were asked for."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.data import DATA, needs_data
from tokenservice.errors import InputError
from tokenservice.simulate.curves import Curve
from tokenservice.simulate.data_files import read_quantiles, read_rates, read_requests
from tokenservice.simulate.prefix_hits import BLOCK_TOKENS, cached_tokens
from tokenservice.simulate.traffic import Requests
from tokenservice.simulate.workload import Workload
from tokenservice.simulate.workload_spec import WorkloadSpec

LENGTHS = {
    "input": {"quantiles": [[0, 10], [50, 500], [100, 2000]]},
    "output": {"quantiles": [[0, 1], [50, 50], [100, 400]]},
}
WAVE = {"requestsPerMinute": [[0, 600], [300, 6000], [600, 0], [900, 600]]}
FLAT = {"requestsPerMinute": [[0, 6000], [2000, 6000]]}


def workload(seed: int = 0, service: int = 0, **spec: Any) -> Workload:
    return Workload.build(WorkloadSpec.model_validate(spec), seed=seed, service=service)


def drawn(seed: int = 0, **spec: Any) -> Workload:
    return workload(seed, **({"rate": WAVE, "lengths": LENGTHS} | spec))


def whole(work: Workload) -> Requests:
    return work.fresh().stretch(0.0, work.duration_s)


def in_pieces(work: Workload, cuts: list[float]) -> list[Requests]:
    edges = [0.0, *sorted(cuts), work.duration_s]
    return [work.stretch(start, end) for start, end in itertools.pairwise(edges)]


def same(one: Requests, others: list[Requests]) -> bool:
    columns = [field.name for field in fields(Requests)]
    return all(
        np.array_equal(getattr(one, name), np.concatenate([getattr(it, name) for it in others]), equal_nan=True)
        for name in columns
    )


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred requests in an hour, most of them in its second half."""
    rng = np.random.default_rng(5)
    at = np.sort(3600 * np.sqrt(rng.random(200)))
    rows = [f"{t:.3f},{int(rng.integers(1, 4000))},{int(rng.integers(1, 300))}" for t in at]
    path = tmp_path_factory.mktemp("trace") / "requests.csv"
    path.write_text("timestamp_s,input_tokens,output_tokens\n" + "\n".join(rows) + "\n")
    return path


DEFERRED = {
    "none": {},
    "drawn": {"deferrable": {"shareOfAllWork": 0.3, "deadlineSeconds": 60}},
    "added": {"deferrable": {"shareOfAllWork": 0.3, "deadlineSeconds": 60, "mode": "Added"}},
}
CUTS = st.lists(st.floats(0, 900), max_size=12)


# --- However time is cut -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deferred", DEFERRED)
@settings(deadline=None, max_examples=25)
@given(cuts=CUTS, cv=st.sampled_from([0.5, 1.0, 4.0]), seed=st.integers(0, 99))
def test_drawn_requests_do_not_depend_on_how_time_is_cut(
    deferred: str, cuts: list[float], cv: float, seed: int
) -> None:
    work = drawn(seed, burstCv=cv, **DEFERRED[deferred])
    assert same(whole(work), in_pieces(work, cuts))


@pytest.mark.parametrize("deferred", DEFERRED)
@settings(deadline=None, max_examples=10)
@given(cuts=st.lists(st.floats(0, 3600), max_size=12))
def test_replayed_requests_do_not_depend_on_how_time_is_cut(deferred: str, trace: Path, cuts: list[float]) -> None:
    work = workload(requests={"file": trace}, copies={"count": 3}, **DEFERRED[deferred])
    cuts = [min(cut, work.duration_s) for cut in cuts]
    assert same(whole(work), in_pieces(work, cuts))


@settings(deadline=None, max_examples=25)
@given(cuts=CUTS)
def test_every_stretch_holds_what_arrives_in_it_in_order_and_all_of_them_are_counted(cuts: list[float]) -> None:
    work = drawn(**DEFERRED["added"])
    pieces = in_pieces(work, cuts)
    edges = [0.0, *sorted(cuts), work.duration_s]
    for piece, start, end in zip(pieces, edges, edges[1:], strict=False):
        assert np.all((piece.at_s >= start) & (piece.at_s < end))
        assert np.all(np.diff(piece.at_s) >= 0)
    assert work.arrived_total == sum(map(len, pieces))


def test_a_request_at_the_very_end_of_a_stretch_belongs_to_the_next(trace: Path) -> None:
    work = workload(requests={"file": trace})
    at_s = float(whole(work).at_s[50])
    assert len(work.stretch(0.0, at_s)) == 50
    assert work.stretch(at_s, 3600.0).at_s[0] == at_s


def test_another_seed_or_another_service_draws_others() -> None:
    spec = {"rate": WAVE, "lengths": LENGTHS}
    first, other_seed, other_service = (
        whole(workload(seed, service, **spec)) for seed, service in ((0, 0), (1, 0), (0, 1))
    )
    assert not same(first, [other_seed])
    assert not same(first, [other_service])


def test_a_change_of_the_lengths_leaves_arrivals_where_they_were() -> None:
    longer = {**LENGTHS, "output": {"quantiles": [[0, 1], [100, 4000]]}}
    assert np.array_equal(whole(drawn()).at_s, whole(drawn(lengths=longer)).at_s)


def test_a_stretch_that_goes_back_is_refused() -> None:
    work = drawn()
    work.stretch(0.0, 100.0)
    with pytest.raises(ValueError, match="ask in order"):
        work.stretch(50.0, 150.0)


def test_what_lies_between_two_stretches_is_skipped() -> None:
    work = drawn()
    work.stretch(0.0, 100.0)
    assert np.array_equal(work.stretch(500.0, 600.0).at_s, [at for at in whole(work).at_s if 500 <= at < 600])


# --- Rates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_arrivals_follow_the_curve_at_any_burstiness(cv: float) -> None:
    work = drawn(burstCv=cv, scale=20)
    counts, _ = np.histogram(whole(work).at_s, bins=9, range=(0, 900))
    expected = np.array([100 * work.expected_rate(t, t + 100) for t in range(0, 900, 100)])
    assert counts == pytest.approx(expected, abs=5 * cv * np.sqrt(expected.max()))


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_have_the_asked_coefficient_of_variation(cv: float) -> None:
    gaps = np.diff(whole(drawn(rate=FLAT, burstCv=cv)).at_s)
    assert len(gaps) > 190_000
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


@pytest.mark.parametrize("seed", [2, 6, 7])
def test_arrivals_of_a_burst_on_a_slope_ascend_to_the_last_bit(seed: int) -> None:
    lengths = {"quantiles": [[0, 1], [100, 10]]}
    rate = {"requestsPerMinute": [[0, 600], [300, 900], [600, 600]]}
    spec = {"rate": rate, "lengths": {"input": lengths, "output": lengths}, "burstCv": 4}
    drawn = Workload.build(WorkloadSpec.model_validate(spec), seed=seed, service=1)
    assert (np.diff(drawn.stretch(0.0, 600.0).at_s) >= 0).all()


def test_the_expected_rate_is_the_mean_of_the_curve() -> None:
    work = drawn(scale=2)
    assert work.expected_rate(0, 300) == pytest.approx(2 * 55)
    assert work.expected_rate(150, 150.001) == pytest.approx(2 * 55, rel=1e-4)
    assert work.expected_total == pytest.approx(2 * (300 * 55 + 300 * 50 + 300 * 5))


def test_a_window_beyond_the_end_is_moved_back_inside() -> None:
    work = drawn()
    assert work.expected_rate(890, 990) == work.expected_rate(800, 900)
    assert work.expected_rate(0, 5000) == pytest.approx(work.expected_total / 900)


points = st.lists(st.tuples(st.floats(0.001, 100), st.floats(0, 50)), min_size=2, max_size=8)


def curve_through(steps: list[tuple[float, float]]) -> Curve:
    t_s = np.concatenate(([0.0], np.cumsum([step for step, _ in steps[1:]])))
    return Curve.through(t_s, np.array([rate for _, rate in steps]))


@settings(deadline=None)
@given(steps=points, share=st.floats(0, 1))
def test_the_time_of_an_area_has_that_area_before_it(steps: list[tuple[float, float]], share: float) -> None:
    curve = curve_through(steps)
    at_s = float(curve.time_of(np.array([share * curve.total]))[0])
    if at_s < np.inf:
        assert curve.expected(0.0, at_s) == pytest.approx(share * curve.total, rel=1e-6, abs=1e-6)


@settings(deadline=None)
@given(steps=points, later=st.floats(-1000, 1000), start=st.floats(0, 0.99), end=st.floats(0.01, 1))
def test_a_curve_moved_around_loses_nothing(
    steps: list[tuple[float, float]], later: float, start: float, end: float
) -> None:
    curve = curve_through(steps)
    moved = curve.shifted(later)
    assert moved.total == pytest.approx(curve.total, rel=1e-9, abs=1e-9)
    assert moved.length_s == pytest.approx(curve.length_s)
    if start < end:
        begin, finish = start * curve.length_s, end * curve.length_s
        assert curve.cut(begin, finish).total == pytest.approx(curve.expected(begin, finish), rel=1e-9, abs=1e-9)


def test_an_offset_moves_the_source_later_before_the_window_is_cut() -> None:
    late = drawn(offsetSeconds=300)
    assert late.expected_rate(300, 600) == pytest.approx(drawn().expected_rate(0, 300))
    assert late.expected_rate(0, 300) == pytest.approx(drawn().expected_rate(600, 900))
    window = {"startSeconds": 300, "endSeconds": 600}
    assert drawn(offsetSeconds=300, window=window).expected_rate(0, 300) == pytest.approx(55)


def test_the_last_rate_holds_until_the_length_that_is_given() -> None:
    work = drawn(rate=WAVE | {"lengthSeconds": 1200})
    assert work.duration_s == 1200
    assert work.expected_rate(900, 1200) == pytest.approx(10)


def test_tokens_per_minute_are_of_prompts_and_answers_together() -> None:
    tokens = sum(drawn().mean_lengths())
    per_token = {"tokensPerMinute": [[0, 60 * tokens], [100, 60 * tokens]]}
    assert drawn(rate=per_token).expected_rate(0, 100) == pytest.approx(1)


def test_a_service_that_comes_and_goes_does_so_alike_in_every_run() -> None:
    on_off = {"requestsPerMinute": 600, "meanOnSeconds": 600, "meanOffSeconds": 1800, "seed": 3}
    rate = {"onOff": on_off, "lengthSeconds": 864000}
    work = drawn(seed=1, rate=rate)
    seen = {round(work.expected_rate(t, t + 1), 6) for t in range(0, 864000, 97)}
    assert {0.0, 10.0} <= seen
    assert work.expected_total == drawn(seed=2, rate=rate).expected_total
    assert work.expected_rate(0, 864000) == pytest.approx(2.5, rel=0.1)


# --- Lengths -------------------------------------------------------------------------------------------------------


def test_lengths_are_linear_between_their_quantiles() -> None:
    found = whole(drawn(rate=FLAT))
    for tokens, wanted in ((found.input_tokens, (255, 500, 1250)), (found.output_tokens, (25.5, 50, 225))):
        assert np.percentile(tokens, (25, 50, 75)) == pytest.approx(wanted, rel=0.06)
    assert np.all(found.input_tokens >= 1)
    assert not np.any(found.cached_tokens)


def test_tokens_per_minute_of_requests_without_tokens_are_of_one_each_as_they_are_drawn() -> None:
    nothing = {"quantiles": [[0, 0], [100, 0]]}
    spec = {"rate": {"tokensPerMinute": [[0, 120], [600, 120]]}, "lengths": {"input": nothing, "output": nothing}}
    drawn = Workload.build(WorkloadSpec.model_validate(spec), seed=0, service=0)
    assert drawn.mean_lengths() == (1.0, 1.0)
    assert drawn.expected_total == pytest.approx(600.0)


def test_sampled_lengths_have_the_mean_that_is_stated() -> None:
    work = drawn()
    sampled = np.mean(work.sample_lengths(50_000, seed=4), axis=0)
    assert sampled == pytest.approx(work.mean_lengths(), rel=0.02)
    assert work.sample_lengths(9, seed=4) == work.sample_lengths(9, seed=4)


# --- Copies --------------------------------------------------------------------------------------------------------


def test_jitter_moves_each_request_by_no_more_than_is_allowed(trace: Path) -> None:
    original = read_requests(trace)
    found = whole(workload(requests={"file": trace}, copies={"count": 20, "jitterSeconds": 5}))
    assert len(found) == 20 * 200
    early = original.at_s[original.at_s < 3500]
    nearest = np.abs(found.at_s[(found.at_s > 10) & (found.at_s < 3490)][:, None] - original.at_s[None, :]).min(axis=1)
    assert len(early)
    assert nearest.max() <= 5


def test_circular_copies_keep_the_gaps_within_a_copy_and_the_load_even(trace: Path) -> None:
    circular = {"count": 200, "shift": "Circular"}
    found = whole(workload(requests={"file": trace}, copies=circular))
    assert len(found) == 200 * 200
    halves = np.histogram(found.at_s, bins=2)[0]
    assert halves[0] == pytest.approx(halves[1], rel=0.1)  # three quarters of the trace lie in its second half
    assert np.bincount(found.input_tokens).max() % 200 == 0


def test_one_copy_is_the_trace_itself(trace: Path) -> None:
    original, found = read_requests(trace), whole(workload(requests={"file": trace}))
    assert np.array_equal(found.at_s, original.at_s)
    assert np.array_equal(found.output_tokens, original.output_tokens)


def test_scale_keeps_its_share(trace: Path) -> None:
    copies = {"count": 100}
    assert len(whole(workload(requests={"file": trace}, copies=copies, scale=0.3))) == pytest.approx(6000, rel=0.05)


# --- Work that may wait --------------------------------------------------------------------------------------------


def share_of_work(found: Requests) -> float:
    waits = ~np.isnan(found.deadline_s)
    work = found.input_tokens + 10.0 * found.output_tokens
    return float(work[waits].sum() / work.sum())


@pytest.mark.parametrize("mode", ["Drawn", "Added"])
def test_deferrable_work_makes_up_its_share_of_all(mode: str, trace: Path) -> None:
    deferrable = {"shareOfAllWork": 0.3, "deadlineSeconds": 60, "mode": mode}
    for work in (
        drawn(rate=FLAT, deferrable=deferrable),
        workload(requests={"file": trace}, copies={"count": 100}, deferrable=deferrable),
    ):
        assert share_of_work(whole(work)) == pytest.approx(0.3, abs=0.015)
        interactive = work.expected_interactive_rate(0, 1000)
        assert interactive <= work.expected_rate(0, 1000)


def test_added_work_leaves_the_services_own_alone_and_comes_evenly() -> None:
    found, own = whole(drawn(**DEFERRED["added"])), whole(drawn())
    waits = ~np.isnan(found.deadline_s)
    assert np.array_equal(found.at_s[~waits], own.at_s)
    halves = np.histogram(found.at_s[waits], bins=2, range=(0, 900))[0]
    assert halves[0] == pytest.approx(halves[1], rel=0.1)
    assert drawn(**DEFERRED["added"]).expected_total == pytest.approx(drawn().expected_total / 0.7)


def test_a_deadline_is_counted_from_arrival() -> None:
    found = whole(drawn(**DEFERRED["drawn"]))
    waits = ~np.isnan(found.deadline_s)
    assert found.deadline_s[waits] - found.at_s[waits] == pytest.approx(60)


# --- Prefix hits ---------------------------------------------------------------------------------------------------

prompts = st.lists(
    st.tuples(st.integers(1, 4 * BLOCK_TOKENS), st.lists(st.integers(0, 6), min_size=5, max_size=5)), max_size=30
)


def hits(requests: list[tuple[int, list[int]]], blocks: int) -> list[int]:
    tokens = np.array([count for count, _ in requests], dtype=np.int32)
    names = [np.array(named, dtype=np.int32) for _, named in requests]
    return cached_tokens(tokens, names, blocks * BLOCK_TOKENS).tolist()


@given(requests=prompts, blocks=st.integers(0, 8))
def test_at_least_one_token_of_each_prompt_is_computed(requests: list[tuple[int, list[int]]], blocks: int) -> None:
    found = hits(requests, blocks)
    assert all(0 <= cached < count for cached, (count, _) in zip(found, requests, strict=True))
    assert blocks > 0 or not any(found)


def test_whole_blocks_are_found_until_the_first_that_is_missing() -> None:
    requests = [(1600, [1, 2, 3, 9]), (1600, [1, 2, 8, 9]), (1600, [7, 2, 3, 9])]
    assert hits(requests, blocks=100) == [0, 1024, 0]


def test_a_prompt_that_is_all_there_still_computes_one_token() -> None:
    assert hits([(1024, [1, 2]), (1024, [1, 2])], blocks=100) == [0, 1023]


def test_the_least_recently_used_are_forgotten_and_of_one_prompt_its_end_first() -> None:
    two = 2 * BLOCK_TOKENS + 1
    assert hits([(two, [1, 2]), (two, [3, 4]), (two, [1, 2])], blocks=4) == [0, 0, 1024]
    assert hits([(two, [1, 2]), (two, [3, 4]), (two, [1, 2])], blocks=3) == [0, 0, 512]
    assert hits([(two, [1, 2]), (two, [3, 4]), (two, [1, 2])], blocks=2) == [0, 0, 0]


def test_copies_share_no_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [4, 5]}\n')
    found = whole(workload(requests={"file": path, "prefixCacheTokens": 1e6}, copies={"count": 9}))
    assert not found.cached_tokens.any()


# --- Files ---------------------------------------------------------------------------------------------------------

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def line_of(**fields: object) -> str:
    """A line as Mooncake's traces have it."""
    row = {"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": "[]"} | fields
    return "{" + ", ".join(f'"{name}": {value}' for name, value in row.items()) + "}\n"


BROKEN = {
    "no format known": (read_requests, "a,b\n1,2\n", "f:1: header: 'a,b' is no format known"),
    "text for tokens": (read_requests, AZURE + "2023-11-16 18:17:03.9799600,x,1\n", "f:2: ContextTokens: must be a"),
    "no date": (read_requests, AZURE + "yesterday,1,1\n", "f:2: TIMESTAMP: 'yesterday' is not a date"),
    "a short row": (read_requests, AZURE + "2023-11-16 18:17:03,1\n", "f:2: has 2 columns, the header 3"),
    "nothing but a header": (read_requests, AZURE, "f:1: there is nothing below the header"),
    "nothing but blank lines": (read_requests, AZURE + "\n \n", "f:1: there is nothing below the header"),
    "a rate that begins late": (read_rates, "t_s,rpm\n300,100\n900,1000\n", "f:2: t_s: begins at 300"),
    "two rates": (read_rates, "t_s,rpm,tokens_per_minute\n0,1,2\n60,1,2\n", "f:1: tokens_per_minute: there are"),
    "quantiles from 1": (read_quantiles, "cdf_pct,tokens\n1,10\n100,20\n", "f:2: cdf_pct: runs from 1 to 100"),
    "quantiles to 99": (read_quantiles, "cdf_pct,tokens\n0,10\n99,20\n", "f:3: cdf_pct: runs from 0 to 99"),
    "no block hashes": (read_requests, '{"timestamp": 1, "input_length": 1, "output_length": 1}\n', "f:1: hash_ids"),
    "broken JSON": (read_requests, '{"timestamp": \n', "f:1: "),
    "a column amiss": (read_rates, "t_s,requests\n0,1\n", "f:1: requests_per_minute or rpm: there is no such column"),
    "a negative rate": (read_rates, "t_s,rpm\n0,1\n9,-1\n", "f:3: rate: must be a number from 0 on, not '-1'"),
    "time that goes back": (read_rates, "t_s,rpm\n0,1\n9,1\n8,1\n", "f:4: t_s: needs two values or more"),
    "infinite tokens": (read_quantiles, "cdf_pct,tokens\n0,1\n100,inf\n", "f:3: tokens: must be a number"),
    "more tokens than any model takes": (
        read_requests,
        "timestamp_s,input_tokens,output_tokens\n0,3000000000,5\n",
        "f:2: input_tokens: must be a number from 0 to 1e+09, not '3000000000'",
    ),
    "more tokens than any model gives": (read_quantiles, "cdf_pct,tokens\n0,1\n100,1e12\n", "f:3: tokens: must be a"),
    "a length beyond JSON's": (read_requests, line_of(input_length="Infinity"), "f:1: input_length: must be a number"),
    "a length that is negative": (read_requests, line_of(output_length=-5), "f:1: output_length: must be a number"),
    "a length of no array's": (read_requests, line_of(input_length=10**30), "f:1: input_length: must be a number"),
    "no time": (read_requests, line_of(timestamp="NaN"), "f:1: timestamp: must be a number, not 'nan'"),
    "times in another unit": (
        read_requests,
        "timestamp_s,input_tokens,output_tokens\n0,5,5\n1e12,5,5\n",
        "f: times cover 1e+12 s, more than three years: give them in seconds",
    ),
    "rates in another unit": (read_rates, "t_s,rpm\n0,5\n1e12,5\n", "f:3: t_s: must be a number from 0 to 1e+08"),
    "time that goes back below blank lines": (read_rates, "t_s,rpm\n\n0,1\n\n9,1\n8,1\n", "f:6: t_s: needs two"),
    "a rate that begins late below a blank line": (read_rates, "t_s,rpm\n\n3,1\n9,1\n", "f:3: t_s: begins at 3"),
    "half the quantiles below blank lines": (read_quantiles, "cdf_pct,tokens\n\n0,1\n\n50,9\n", "f:5: cdf_pct: runs"),
    "a cell of two lines": (
        read_requests,
        'timestamp_s,input_tokens,output_tokens,note\n0,5,5,"a\nb"\n1,x,6,c\n',
        "f:4: input_tokens: must be a number",
    ),
    "half the quantiles": (read_quantiles, "cdf_pct,tokens\n0,1\n50,9\n", "cdf_pct: runs from 0 to 50"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_file_is_told_with_line_and_column(case: str, tmp_path: Path) -> None:
    read, text, says = BROKEN[case]
    path = tmp_path / "f"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read(path)
    assert str(error.value).startswith(f"{tmp_path}/")
    assert says in str(error.value)


@pytest.mark.parametrize(
    "stamp",
    [
        "2023-11-16 18:17:03.9799600",
        "2023-11-16T18:17:03.98Z",
        "2023-11-16T10:17:03.98-08:00",
        " 2023-11-16 18:17:03.98+0000",
        "2023-11-16 18:17:03.98 UTC",
    ],
)
def test_a_request_file_is_the_same_however_it_is_written(stamp: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    text = f'"GeneratedTokens","TIMESTAMP","ContextTokens","model"\r\n"7",{stamp},"374","x"\r\n\r\n8,{stamp},5,y\r\n'
    path.write_text("\ufeff" + text)
    found = read_requests(path)
    assert (found.input_tokens.tolist(), found.output_tokens.tolist()) == ([374, 5], [7, 8])
    assert found.at_s.tolist() == [0, 0]


def test_stamps_of_several_zones_are_one_clock(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE + "2023-11-16T18:00:00,1,1\n2023-11-16T10:00:05-08:00,1,1\n")
    assert read_requests(path).at_s.tolist() == [0, 5]


def test_blocks_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    row = '{"timestamp": 0, "input_length": 9, "output_length": 1, "hash_ids": [18446744073709551615, "b"]}\n'
    path.write_text(row * 2)
    first, second = read_requests(path).blocks or ()
    assert first.tolist() == second.tolist()
    assert len(set(first.tolist())) == 2


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08\x00packed", "t_s,rpm\n".encode("utf-16")])
def test_what_is_no_text_is_told(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    for read in (read_requests, read_rates):
        with pytest.raises(InputError, match="is no text in UTF-8"):
            read(path)


def test_rates_may_be_called_rpm_or_by_their_full_name(tmp_path: Path) -> None:
    for name, of_tokens in (("rpm", False), ("requests_per_minute", False), ("tokens_per_minute", True)):
        path = tmp_path / name
        path.write_text(f"t_s,{name}\n0,60\n600,120\n")
        table = read_rates(path)
        assert (table.per_minute.tolist(), table.of_tokens) == ([60, 120], of_tokens)


@needs_data
def test_the_public_traces_read_as_published() -> None:
    """Counts and quantiles as their publishers state them; the hit rate as measured on an endless cache."""
    code = read_requests(DATA / "azure2023/AzureLLMInferenceTrace_code.csv")
    assert len(code.at_s) == 8819
    assert code.at_s[-1] == pytest.approx(57.26 * 60, abs=1)
    assert np.percentile(code.input_tokens, 50) == 1469
    mooncake = read_requests(DATA / "mooncake/conversation_trace.jsonl")
    assert len(mooncake.at_s) == 12031
    assert mooncake.blocks is not None
    found = cached_tokens(mooncake.input_tokens, mooncake.blocks, 1e12)
    assert found.sum() / mooncake.input_tokens.sum() == pytest.approx(0.373, abs=0.001)


@needs_data
def test_a_regenerated_week_has_the_published_count() -> None:
    folder = DATA / "azure2024_digitized"
    for name, millions in (("conv", 27.304), ("code", 16.804)):
        work = drawn(
            rate={"file": folder / f"azure2024_{name}_rpm_10min.csv", "lengthSeconds": 604800},
            lengths={part: {"file": folder / f"azure2024_{name}_{part}_cdf.csv"} for part in ("input", "output")},
        )
        assert work.expected_total == pytest.approx(millions * 1e6, rel=1e-3)


def test_drawing_a_week_holds_no_more_than_a_stretch() -> None:
    """The readers keep at most the block they are in."""
    work = drawn(rate=FLAT)
    work.stretch(0.0, 1000.0)
    held = [block for reader in work._readers for block in reader._held]
    assert sum(map(len, held)) <= 8192
    assert replace(held[0], deadline_s=held[0].at_s)
