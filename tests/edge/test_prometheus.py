"""Reading metrics: what is said becomes numbers, whatever is not said becomes Missing with a way out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.edge.fakes import Clock
from tests.edge.prometheus_server import Prometheus, Reply, Series, scalar, serving, success, vector
from tests.support.build import make_metrics
from tokenservice.core.model import LoadedAdapter, Missing, Pace, ServiceKey, ServiceMetrics
from tokenservice.core.windows import Windows
from tokenservice.edge import promql
from tokenservice.edge.prometheus import Answer, PrometheusReader, Question, _at, _merged, _Peaks

CHAT, CODE = ServiceKey("team", "chat"), ServiceKey("team", "code")
WINDOWS = Windows(rate=30, peak=120, staleness=30)
FIGURES = {
    "requests_per_second": 4.0,
    "peak_requests_per_second": 6.0,
    "output_tokens_per_second": 800.0,
    "input_tokens_per_second": 4000.0,
    "mean_input_tokens": 1000.0,
    "mean_output_tokens": 200.0,
    "mean_tpot_seconds": 0.0125,
    "prefix_hit_rate": 0.25,
    "running": 40.0,
    "waiting": 2.0,
    "kv_usage": 0.5,
    "engines_reporting": 3.0,
    "engines_heard": 3.0,
    "scraped_again": 0.0,
    "counter_resets": 0.0,
    "age_seconds": 4.0,
}
BUCKETS = [("0.1", 1.0), ("1.0", 3.0), ("+Inf", 4.0)]


def row(model: str = "chat", **more: str) -> dict[str, str]:
    return {"namespace": "team", "model_name": model} | more


def healthy(**changes: float | str | None) -> Callable[[str], Reply]:
    """Answers for one service; None leaves a figure out."""
    by_query = {text: name for name, text in promql.figures(WINDOWS).items()}

    def answer(query: str) -> Reply:
        name = by_query.get(query)
        if name is None:
            prefix = "sglang" if "no-vllm" in changes else "vllm"
            return vector(*[(row(le=bound, dialect=prefix), value) for bound, value in BUCKETS])
        value = changes.get(name, FIGURES[name])
        return vector() if value is None else vector((row(), value))

    return answer


@pytest.fixture(scope="module")
def server() -> Iterator[Prometheus]:
    with serving(healthy()) as running:
        yield running


def question(address: str | None, query: str | None = None) -> Question:
    services = {("team", "chat"): CHAT, ("team", "code-model"): CODE}
    return Question(address=address, services=services, windows=WINDOWS, utilization_query=query)


async def ask(server: Prometheus, answers: Callable[[str], Reply], query: str | None = None) -> Answer:
    server.answers = answers
    server.queries.clear()
    server.authorization.clear()
    return await PrometheusReader(timeout_seconds=2).read(question(server.address, query))


async def test_a_healthy_service_has_all_its_figures(server: Prometheus) -> None:
    answer = await ask(server, healthy())
    buckets = ((0.1, 1.0), (1.0, 3.0), (math.inf, 4.0))
    judged = ("age_seconds", "counter_resets", "scraped_again")
    want = {name: value for name, value in FIGURES.items() if name not in judged}
    want |= {"engines_reporting": 3, "engines_heard": 3, "ttft_buckets": buckets, "tpot_buckets": buckets}  # type: ignore[dict-item]
    assert answer.services[CHAT] == ServiceMetrics(**want)  # type: ignore[arg-type]


UNEVEN = (
    ("chat-1", "tokens", 200.0),
    ("chat-1", "running", 4.0),
    ("chat-2", "tokens", 20.0),
    ("chat-2", "running", 8.0),
    ("one figure", "tokens", 20.0),
    ("no number", "tokens", math.nan),
    ("no number", "running", 1.0),
    ("", "tokens", 1.0),
    ("", "running", 1.0),
)


async def test_engines_that_are_not_alike_are_told_by_their_pods(server: Prometheus) -> None:
    usual = healthy()

    def answer(query: str) -> Reply:
        told = [(row(pod=pod, figure=figure), value) for pod, figure, value in UNEVEN]
        return vector(*told) if query == promql.paces(WINDOWS) else usual(query)

    metrics = (await ask(server, answer)).services[CHAT]
    assert isinstance(metrics, ServiceMetrics)
    assert metrics.paces == (
        Pace(pod="chat-1", tokens_per_second=200.0, running=4.0),
        Pace(pod="chat-2", tokens_per_second=20.0, running=8.0),
    )


async def test_the_number_of_queries_does_not_grow_with_the_fleet(server: Prometheus) -> None:
    await ask(server, healthy())
    alone = len(server.queries)
    many = {("team", f"m{number}"): ServiceKey("team", f"s{number}") for number in range(500)}
    await PrometheusReader().read(replace(question(server.address), services=many))
    assert len(server.queries) == 2 * alone


async def test_a_service_whose_engines_never_reported_is_missing(server: Prometheus) -> None:
    missing = (await ask(server, healthy())).services[CODE]
    assert isinstance(missing, Missing)
    assert missing.reason == "NoSeries"
    assert "code-model in team" in missing.message


NOT_ENOUGH: dict[str, tuple[dict[str, float | str | None], str]] = {
    "no series at all": ({"running": None}, "NoSeries"),
    "an old sample": ({"age_seconds": 31.0}, "Stale"),
    "an age that is no number": ({"age_seconds": "NaN"}, "Stale"),
    "no age": ({"age_seconds": None}, "Stale"),
    "scraped once": ({"requests_per_second": None, "output_tokens_per_second": None}, "TooFewSamples"),
    "one rate is a scrape behind": ({"output_tokens_per_second": None}, "TooFewSamples"),
    "requests run and none is counted": ({"requests_per_second": None}, "NoCounters"),
    "arrivals are NaN": ({"requests_per_second": "NaN"}, "NotANumber"),
    "arrivals are infinite": ({"requests_per_second": "+Inf"}, "NotANumber"),
    "output is negative": ({"output_tokens_per_second": -1.0}, "NotANumber"),
    "no queue length": ({"waiting": None}, "NotANumber"),
    "KV usage is NaN": ({"kv_usage": "NaN"}, "NotANumber"),
    "running is infinite": ({"running": "-Inf"}, "NotANumber"),
    "counters begin anew all the time": ({"counter_resets": 2.0}, "CounterResets"),
    "engines are scraped by two jobs": ({"scraped_again": 3.0}, "ScrapedTwice"),
    "nobody reports freshly": ({"engines_reporting": None}, "NotANumber"),
}


@pytest.mark.parametrize("name", NOT_ENOUGH)
async def test_what_is_not_known_is_missing_and_never_zero(server: Prometheus, name: str) -> None:
    changes, want = NOT_ENOUGH[name]
    missing = (await ask(server, healthy(**changes))).services[CHAT]
    assert isinstance(missing, Missing)
    assert missing.reason == want


@pytest.mark.parametrize("name", ["requests_per_second", "waiting", "mean_output_tokens", "mean_tpot_seconds"])
async def test_what_no_engine_can_have_counted_is_no_number(server: Prometheus, name: str) -> None:
    """Whoever is scraped for a service may export anything: its squares would be beyond floats, in everybody's plan."""
    metrics = (await ask(server, healthy(**{name: 1e300}))).services[CHAT]
    assert isinstance(metrics if isinstance(metrics, Missing) else getattr(metrics, name), Missing)


async def test_series_of_nobody_are_not_kept(server: Prometheus) -> None:
    usual = healthy()

    def answer(query: str) -> Reply:
        status, kind, text = usual(query)
        body = json.loads(text)
        body["data"]["result"] += [{"metric": row(model_name=f"x{n}"), "value": [0, "1"]} for n in range(20)]
        return status, kind, json.dumps(body)

    answered = await ask(server, answer)
    assert isinstance(answered.services[CHAT], ServiceMetrics)
    assert set(answered.services) == {CHAT, CODE}


async def test_scrapes_that_are_too_far_apart_are_told_with_the_field_to_mend(server: Prometheus) -> None:
    missing = (await ask(server, healthy(input_tokens_per_second=None))).services[CHAT]
    assert isinstance(missing, Missing)
    assert "prometheus.windowSeconds of the TokenFleet" in missing.message


async def test_an_engine_that_restarted_once_is_measured(server: Prometheus) -> None:
    for resets in (1.0, None):
        assert isinstance((await ask(server, healthy(counter_resets=resets))).services[CHAT], ServiceMetrics)


async def test_lengths_are_not_known_before_anything_finished(server: Prometheus) -> None:
    answer = await ask(server, healthy(mean_input_tokens="NaN", mean_output_tokens=None, prefix_hit_rate="NaN"))
    metrics = answer.services[CHAT]
    assert isinstance(metrics, ServiceMetrics)
    assert isinstance(metrics.mean_input_tokens, Missing)
    assert isinstance(metrics.mean_output_tokens, Missing)
    assert metrics.prefix_hit_rate == 0.0


async def test_the_peak_is_never_below_what_arrives_now(server: Prometheus) -> None:
    metrics = (await ask(server, healthy(peak_requests_per_second=1.0))).services[CHAT]
    assert isinstance(metrics, ServiceMetrics)
    assert metrics.peak_requests_per_second == 4.0


@pytest.mark.parametrize("peak", [None, "NaN", "+Inf", -1.0])
async def test_a_peak_that_is_not_known_may_have_been_anything(server: Prometheus, peak: float | str | None) -> None:
    metrics = (await ask(server, healthy(peak_requests_per_second=peak))).services[CHAT]
    assert isinstance(metrics, ServiceMetrics)
    assert metrics.peak_requests_per_second == math.inf


@pytest.mark.parametrize("name", ["requests_per_second", "running", "engines_reporting"])
async def test_two_servers_that_disagree_are_not_averaged_nor_chosen_from(server: Prometheus, name: str) -> None:
    query = promql.figures(WINDOWS)[name]

    def answer(asked: str) -> Reply:
        return vector((row(), FIGURES[name]), (row(replica="b"), 0.0)) if asked == query else healthy()(asked)

    missing = (await ask(server, answer)).services[CHAT]
    assert isinstance(missing, Missing)
    assert missing.reason == "NotANumber"


@pytest.mark.parametrize("labels", [{}, {"le": "?"}])
async def test_a_bucket_without_a_bound_is_left_out(server: Prometheus, labels: dict[str, str]) -> None:
    def answer(asked: str) -> Reply:
        return vector((row(**labels), 1.0)) if "_bucket" in asked else healthy()(asked)

    metrics = (await ask(server, answer)).services[CHAT]
    assert isinstance(metrics, ServiceMetrics)
    assert metrics.ttft_buckets == ()


async def test_a_prometheus_that_lost_its_data_does_not_lower_the_peak(server: Prometheus) -> None:
    clock = Clock()
    reader = PrometheusReader(clock=clock)

    async def peak(arrivals: float) -> float:
        server.answers = healthy(requests_per_second=arrivals, peak_requests_per_second=arrivals)
        metrics = (await reader.read(question(server.address))).services[CHAT]
        assert isinstance(metrics, ServiceMetrics)
        return metrics.peak_requests_per_second

    assert await peak(9.0) == 9.0
    clock.now += 100
    assert await peak(1.0) == 9.0
    clock.now += 30
    assert await peak(2.0) == 2.0


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), min_size=1, max_size=30))
def test_the_peak_seen_is_the_highest_of_the_window(rounds: list[tuple[int, int]]) -> None:
    clock, seen = Clock(), list[tuple[float, int]]()
    peaks = _Peaks(clock)
    for pause, rate in rounds:
        clock.now += pause
        seen.append((clock.now, rate))
        read = make_metrics(requests_per_second=float(rate), peak_requests_per_second=0.0)
        held = peaks.held({CHAT: read}, 100)[CHAT]
        assert isinstance(held, ServiceMetrics)
        assert held.peak_requests_per_second == max(rate for at, rate in seen if at >= clock.now - 100)
    assert len(peaks.seen[CHAT]) <= 6  # falling from 5 to 0


# --- what is wrong with the server -----------------------------------------------------------------------------------

HTML = (200, "text/html", "<html>Log in</html>")
TROUBLE: dict[str, tuple[Reply, str, str]] = {
    "no token": ((401, "text/plain", "Unauthorized"), "Unauthorized", "bearer"),
    "wrong token": ((403, "text/plain", "Forbidden"), "Unauthorized", "token"),
    "another server": ((404, "text/plain", "404 page not found"), "NotPrometheus", "prometheus.address"),
    "a log-in page": (HTML, "NotPrometheus", "prometheus.address"),
    "other JSON": ((200, "application/json", '{"hello": "world"}'), "NotPrometheus", "prometheus.address"),
    "JSON that is no mapping": ((200, "application/json", "[]"), "NotPrometheus", "prometheus.address"),
    "overloaded": ((503, "application/json", '{"status":"error","error":"too many"}'), "QueryFailed", "503"),
    "refused query": ((422, "application/json", '{"error":"too many samples"}'), "QueryFailed", "too many samples"),
}


@pytest.mark.parametrize("name", TROUBLE)
async def test_trouble_names_the_place_and_the_fix(server: Prometheus, name: str) -> None:
    reply, want, hint = TROUBLE[name]
    answer = await ask(server, lambda query: reply)
    for missing in (answer.services[CHAT], answer.services[CODE]):
        assert isinstance(missing, Missing)
        assert missing.reason == want
        assert server.address in missing.message
        assert hint in missing.message
    assert len(server.queries) == 1


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://no-such-host.invalid:9090"])
async def test_an_address_where_nobody_is_says_so(address: str) -> None:
    missing = (await PrometheusReader(timeout_seconds=2).read(question(address))).services[CHAT]
    assert isinstance(missing, Missing)
    assert missing.reason == "Unreachable"
    assert address in missing.message


@pytest.mark.parametrize("address", ["nonsense", "http://[fd00::1:9090"])
async def test_an_address_that_is_none_says_so(address: str) -> None:
    missing = (await PrometheusReader().read(question(address))).services[CHAT]
    assert isinstance(missing, Missing)
    assert missing.reason == "NotPrometheus"


async def test_no_address_says_where_to_give_one() -> None:
    missing = (await PrometheusReader().read(question(None))).services[CHAT]
    assert isinstance(missing, Missing)
    assert "prometheus.address" in missing.message


async def test_a_server_that_hangs_costs_one_timeout(server: Prometheus) -> None:
    def hang(query: str) -> Reply:
        time.sleep(1.5)
        return HTML

    server.answers = hang
    began = time.monotonic()
    missing = (await PrometheusReader(timeout_seconds=1).read(question(server.address))).services[CHAT]
    assert isinstance(missing, Missing)
    assert "did not answer in time" in missing.message
    assert time.monotonic() - began < 3


async def test_a_slash_at_the_end_of_the_address_does_no_harm(server: Prometheus) -> None:
    server.answers = healthy()
    answer = await PrometheusReader().read(question(f"{server.address}/"))
    assert isinstance(answer.services[CHAT], ServiceMetrics)


async def test_the_token_is_read_anew_each_round(server: Prometheus, tmp_path: Path) -> None:
    token = tmp_path / "token"
    reader = PrometheusReader(bearer_token_file=str(token))
    server.answers = healthy()
    missing = (await reader.read(question(server.address))).services[CHAT]
    assert isinstance(missing, Missing)
    assert missing.reason == "NoToken"
    token.write_bytes(b"\xff\xfe")
    missing = (await reader.read(question(server.address))).services[CHAT]
    assert isinstance(missing, Missing)
    assert missing.reason == "NoToken"
    for text in ("first\n", "second"):
        token.write_text(text)
        server.authorization.clear()
        await reader.read(question(server.address))
        assert set(server.authorization) == {f"Bearer {text.strip()}"}


# --- the user's own utilization --------------------------------------------------------------------------------------

QUERIES: dict[str, tuple[Reply, float | str]] = {
    "a vector of one": (vector(({}, 0.7)), 0.7),
    "a scalar": (scalar(0.25), 0.25),
    "zero": (vector(({}, 0)), 0.0),
    "nothing": (vector(), "NotOneNumber"),
    "two series": (vector(({"a": "1"}, 0.1), ({"a": "2"}, 0.2)), "NotOneNumber"),
    "a percentage": (vector(({}, 70)), "OutOfRange"),
    "negative": (vector(({}, -0.1)), "OutOfRange"),
    "NaN": (scalar("NaN"), "OutOfRange"),
    "a range": (success({"resultType": "matrix", "result": [{"metric": {}, "values": []}]}), "NotOneNumber"),
    "wrong PromQL": ((400, "application/json", '{"error":"parse error"}'), "QueryFailed"),
}


async def test_adapters_are_asked_for_only_where_they_are_loaded_at_run_time(server: Prometheus) -> None:
    await ask(server, healthy())
    assert promql.ADAPTERS not in server.queries


async def test_what_loaders_say_is_kept_by_pod(server: Prometheus) -> None:
    said = vector(
        ({"namespace": "team", "pod": "a", "adapter": "legal", "uri": "hf://x/y"}, 1),
        ({"namespace": "team", "pod": "b", "adapter": "legal", "uri": "hf://x/y", "error": "too high a rank"}, 0),
    )
    normal = healthy()
    server.answers = lambda query: said if query == promql.ADAPTERS else normal(query)
    answer = await PrometheusReader(timeout_seconds=2).read(replace(question(server.address), adapters=True))
    assert answer.adapters == {
        ("team", "a"): {"legal": LoadedAdapter("hf://x/y", loaded=True)},
        ("team", "b"): {"legal": LoadedAdapter("hf://x/y", loaded=False, error="too high a rank")},
    }


async def test_loaders_that_cannot_be_asked_for_spoil_nothing_else(server: Prometheus) -> None:
    normal = healthy()
    server.answers = lambda query: (422, "application/json", "{}") if query == promql.ADAPTERS else normal(query)
    answer = await PrometheusReader(timeout_seconds=2).read(replace(question(server.address), adapters=True))
    assert answer.adapters == {}
    assert isinstance(answer.services[CHAT], ServiceMetrics)


@pytest.mark.parametrize("name", QUERIES)
async def test_a_users_query_gives_one_share_or_says_why_not(server: Prometheus, name: str) -> None:
    reply, want = QUERIES[name]
    normal = healthy()
    answer = await ask(server, lambda query: reply if query == "mine" else normal(query), query="mine")
    if isinstance(want, float):
        assert answer.utilization == want
    else:
        assert isinstance(answer.utilization, Missing)
        assert answer.utilization.reason == want
        assert "utilizationQuery" in answer.utilization.message
    assert isinstance(answer.services[CHAT], ServiceMetrics)


async def test_without_a_query_of_the_users_there_is_no_such_figure(server: Prometheus) -> None:
    answer = await ask(server, healthy())
    assert isinstance(answer.utilization, Missing)
    assert answer.utilization.reason == "NoQuery"


# --- means of the utilization ----------------------------------------------------------------------------------------


def remembering(*series: Series, query: str | None = None) -> Callable[[str], Reply]:
    normal, wanted = healthy(), promql.means(query)
    return lambda text: vector(*series) if text == wanted else normal(text)


HOUR, DAY = {"window": "1h"}, {"window": "24h"}
MEANS: dict[str, tuple[tuple[Series, ...], str | None, tuple[float | str, float | str]]] = {
    "both": (((HOUR, 0.6), (DAY, 0.5)), None, (0.6, 0.5)),
    "an idle day": (((HOUR, 0.0), (DAY, 0.0)), None, (0.0, 0.0)),
    "half a day of data is not there yet": (((HOUR, 0.6),), None, (0.6, "TooFewSamples")),
    "the operator is not scraped": ((), None, ("TooFewSamples", "TooFewSamples")),
    "NaN": (((HOUR, "NaN"), (DAY, 0.5)), None, ("NotOneNumber", 0.5)),
    "a user's query of two series": (((HOUR, 0.1), (HOUR, 0.2), (DAY, 0.3)), "mine", ("NotOneNumber", 0.3)),
    "a user's query of percentages": (((HOUR, 60.0), (DAY, 50.0)), "mine", ("NotOneNumber", "NotOneNumber")),
    "a user's query without a past": ((), "mine", ("TooFewSamples", "TooFewSamples")),
}


@pytest.mark.parametrize("name", MEANS)
async def test_means_are_figures_or_say_what_is_missing(server: Prometheus, name: str) -> None:
    series, query, want = MEANS[name]
    means = (await ask(server, remembering(*series, query=query), query=query)).means
    shown = (means.hour, means.day)
    assert tuple(mean.reason if isinstance(mean, Missing) else mean for mean in shown) == want
    whose = "utilizationQuery" if query else promql.OWN_UTILIZATION
    if name != "NaN":
        assert all(whose in mean.message for mean in shown if isinstance(mean, Missing))


async def test_means_that_cannot_be_asked_for_spoil_nothing_else(server: Prometheus) -> None:
    normal, wanted = healthy(), promql.means(None)
    refused: Reply = (422, "application/json", '{"error":"too many samples"}')
    answer = await ask(server, lambda query: refused if query == wanted else normal(query))
    assert isinstance(answer.services[CHAT], ServiceMetrics)
    assert isinstance(answer.means.hour, Missing)
    assert "too many samples" in answer.means.hour.message


async def test_means_are_asked_for_once_a_minute_and_anew_for_another_query(server: Prometheus) -> None:
    clock, asked = Clock(), list[int]()
    reader = PrometheusReader(clock=clock)
    server.answers = remembering((HOUR, 0.6), (DAY, 0.5))
    for seconds, query in ((0, None), (59, None), (1, None), (5, "mine")):
        clock.now += seconds
        server.queries.clear()
        await reader.read(question(server.address, query))
        asked.append(server.queries.count(promql.means(query)))
    assert asked == [1, 0, 1, 1]


async def test_means_are_unknown_while_prometheus_does_not_answer() -> None:
    means = (await PrometheusReader().read(question(None))).means
    assert isinstance(means.hour, Missing)
    assert means.hour == means.day
    assert means.hour.reason == "NoAddress"


# --- histograms ------------------------------------------------------------------------------------------------------


def histogram(*series: Series) -> Callable[[str], Reply]:
    normal, wanted = healthy(), promql.buckets(promql.TTFT, WINDOWS)
    return lambda query: vector(*series) if query == wanted else normal(query)


async def test_buckets_that_fall_by_a_sample_are_smoothed(server: Prometheus) -> None:
    falling = [(row(le=bound, dialect="vllm"), value) for bound, value in (("1.0", 3.0), ("0.1", 1.0), ("+Inf", 2.9))]
    metrics = (await ask(server, histogram(*falling))).services[CHAT]
    assert isinstance(metrics, ServiceMetrics)
    assert metrics.ttft_buckets == ((0.1, 1.0), (1.0, 3.0), (math.inf, 3.0))


async def test_histograms_of_both_engines_are_one(server: Prometheus) -> None:
    both = [
        (row(le="1.0", dialect="vllm"), 4.0),
        (row(le="+Inf", dialect="vllm"), 4.0),
        (row(le="2.0", dialect="sglang"), 2.0),
        (row(le="+Inf", dialect="sglang"), 2.0),
    ]
    metrics = (await ask(server, histogram(*both))).services[CHAT]
    assert isinstance(metrics, ServiceMetrics)
    assert metrics.ttft_buckets == ((1.0, 5.0), (2.0, 6.0), (math.inf, 6.0))


Bounds = st.lists(st.floats(0.001, 100), min_size=1, max_size=4, unique=True).map(sorted)


@st.composite
def buckets(draw: st.DrawFn) -> tuple[tuple[float, float], ...]:
    bounds = [*draw(Bounds), math.inf]
    counts = sorted(draw(st.lists(st.floats(0, 100), min_size=len(bounds), max_size=len(bounds))))
    return tuple(zip(bounds, counts, strict=True))


@settings(max_examples=60)
@given(buckets(), buckets())
def test_merging_keeps_the_total_and_never_falls(
    left: tuple[tuple[float, float], ...], right: tuple[tuple[float, float], ...]
) -> None:
    merged = _merged(left, right)
    counts = [count for _, count in merged]
    assert counts[-1] == left[-1][1] + right[-1][1]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(counts))
    assert [count for _, count in _merged(right, left)] == pytest.approx(counts)
    assert _at(left, left[0][0]) == left[0][1]


@pytest.mark.parametrize(
    "address",
    # pragma: allowlist nextline secret
    ["http://reader:hunter2@127.0.0.1:1", "http://reader:hunter2@[::1", "reader:hunter2@x"],
)
async def test_a_password_in_the_address_is_told_to_nobody(address: str) -> None:
    """The message stands in the status of every TokenService."""
    missing = (await PrometheusReader().read(question(address))).services[CHAT]
    assert isinstance(missing, Missing)
    assert "hunter2" not in missing.message
