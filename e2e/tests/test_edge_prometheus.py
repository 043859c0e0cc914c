"""The queries against a real Prometheus that scrapes engines whose figures are known by construction."""

from __future__ import annotations

import asyncio
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import pytest_asyncio

from e2e.testbed import prometheus as testbed
from e2e.testbed.prometheus import Prometheus
from tokenservice.core.model import Missing, ServiceKey, ServiceMetrics
from tokenservice.core.windows import Windows
from tokenservice.edge.prometheus import Answer, PrometheusReader, Question

pytestmark = pytest.mark.asyncio(loop_scope="module")

WINDOWS = Windows(rate=6, peak=20, staleness=5)
NAMES = (
    "chat",
    "code",
    "mixed",
    "idle",
    "asleep",
    "queue",
    "parallel",
    "older",
    "rolling",
    "uneven",
    "mute",
    "both",
    "framed",
    "doubled",
    "ranked",
)
SERVICES = {("team", name): ServiceKey("team", name) for name in NAMES}

VLLM = """
vllm:num_requests_running{{{labels}}} 8
vllm:num_requests_waiting{{{labels}}} {waiting}
vllm:kv_cache_usage_perc{{{labels}}} 0.5
vllm:time_to_first_token_seconds_count{{{labels}}} {requests}
vllm:time_to_first_token_seconds_bucket{{{labels},le="0.1"}} {half}
vllm:time_to_first_token_seconds_bucket{{{labels},le="+Inf"}} {requests}
vllm:request_time_per_output_token_seconds_bucket{{{labels},le="0.05"}} {requests}
vllm:request_time_per_output_token_seconds_bucket{{{labels},le="+Inf"}} {requests}
vllm:prompt_tokens_total{{{labels}}} {prompt}
vllm:generation_tokens_total{{{labels}}} {output}
vllm:prefix_cache_queries_total{{{labels}}} {prompt}
vllm:prefix_cache_hits_total{{{labels}}} {cached}
vllm:request_prompt_tokens_sum{{{labels}}} {prompt}
vllm:request_prompt_tokens_count{{{labels}}} {requests}
vllm:request_generation_tokens_sum{{{labels}}} {output}
vllm:request_generation_tokens_count{{{labels}}} {requests}
"""
SGLANG_GAUGES = """
sglang:num_running_reqs{{{labels}}} {running}
sglang:num_queue_reqs{{{labels}}} 0
sglang:token_usage{{{labels}}} 0.25
"""
SGLANG = (
    SGLANG_GAUGES
    + """
sglang:time_to_first_token_seconds_count{{{labels}}} {requests}
sglang:time_to_first_token_seconds_bucket{{{labels},le="0.2"}} {requests}
sglang:time_to_first_token_seconds_bucket{{{labels},le="+Inf"}} {requests}
sglang:prompt_tokens_total{{{labels}}} {prompt}
sglang:generation_tokens_total{{{labels}}} {output}
sglang:cached_tokens_total{{{labels}}} {cached}
sglang:prompt_tokens_histogram_sum{{{labels}}} {prompt}
sglang:prompt_tokens_histogram_count{{{labels}}} {requests}
sglang:generation_tokens_histogram_sum{{{labels}}} {output}
sglang:generation_tokens_histogram_count{{{labels}}} {requests}
"""
)
GAPS = """
sglang:inter_token_latency_seconds_sum{{{labels}}} {output}
sglang:inter_token_latency_seconds_count{{{labels}}} {output}
sglang:inter_token_latency_seconds_bucket{{{labels},le="0.06"}} {output}
sglang:inter_token_latency_seconds_bucket{{{labels},le="+Inf"}} {output}
"""
LENGTHS = """
vllm:request_prompt_tokens_sum{{{labels}}} {prompt}
vllm:request_prompt_tokens_count{{{labels}}} 1
"""
PER_REQUEST = """
sglang:request_time_per_output_token_seconds_sum{{{labels}}} {half}
sglang:request_time_per_output_token_seconds_count{{{labels}}} {requests}
sglang:request_time_per_output_token_seconds_bucket{{{labels},le="0.08"}} {requests}
sglang:request_time_per_output_token_seconds_bucket{{{labels},le="+Inf"}} {requests}
"""


@dataclass
class Engine:
    """Counts `rate` requests a second, each of 100 prompt tokens (a quarter of them cached) and 20 output tokens."""

    model: str
    rate: float
    template: str = VLLM
    ranks: int = 1
    queue_growth: float = 0.0
    running: int = 4
    rank: str = "engine"

    def text(self, seconds: float) -> str:
        return "".join(self._rank(rank, seconds) for rank in range(self.ranks))

    def _rank(self, rank: int, seconds: float) -> str:
        requests = self.rate / self.ranks * seconds
        return self.template.format(
            labels=f'model_name="{self.model}",{self.rank}="{rank}"',
            requests=requests,
            half=requests / 2,
            prompt=100 * requests,
            cached=25 * requests,
            output=20 * requests,
            waiting=self.queue_growth * seconds,
            running=self.running,
        )


@dataclass
class Farm:
    """Serves every engine under its own path, and where they are."""

    engines: dict[str, Engine] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    epoch: float = field(default_factory=time.time)
    port: int = 0
    hanging: bool = False
    again: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Pods that are scraped once more, and the labels that differ then."""
    clock: Callable[[], float] | None = None
    """Samples are those of this time (Unix, seconds) and say so, as where another Prometheus passes them on."""

    def answer(self, path: str) -> str | None:
        if path == "/sd":
            again = [self._target(pod, **labels) for pod, labels in self.again]
            return json.dumps([*(self._target(pod) for pod in self.engines), *again])
        engine = self.engines.get(path.removeprefix("/pods/"))
        if engine is None or self.hanging:
            return None
        if self.clock is None:
            return engine.text(time.monotonic() - self.began)
        now = self.clock()
        samples = engine.text(now - self.epoch).split("\n")
        return "".join(f"{sample} {now * 1000:.0f}\n" for sample in samples if sample)

    def _target(self, pod: str, **labels: str) -> dict[str, object]:
        """`job` and `instance` may be given."""
        known = {"__metrics_path__": f"/pods/{pod}", "namespace": "team", "pod": pod}
        return {"targets": [f"127.0.0.1:{self.port}"], "labels": known | labels}


def _serve(farm: Farm) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = farm.answer(self.path)
            self.send_response(200 if body is not None else 503)
            kind = "application/json" if self.path == "/sd" else "text/plain; version=0.0.4"
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, *_: object) -> None:
            """Quiet."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


ENGINES = {
    "chat-1": Engine("chat", 10),
    "chat-2": Engine("chat", 30),
    "code-1": Engine("code", 5, SGLANG),
    "mixed-1": Engine("mixed", 8),
    "mixed-2": Engine("mixed", 2, SGLANG),
    "idle-1": Engine("idle", 0, SGLANG_GAUGES, running=0),
    "mute-1": Engine("mute", 0, SGLANG_GAUGES),
    "asleep-1": Engine("asleep", 0),
    "queue-1": Engine("queue", 10, queue_growth=3),
    "parallel-1": Engine("parallel", 12, ranks=4),
    "older-1": Engine("older", 5, SGLANG + GAPS),
    "rolling-1": Engine("rolling", 5, SGLANG + GAPS),
    "rolling-2": Engine("rolling", 5, SGLANG + GAPS + PER_REQUEST),
    "both-1": Engine("both", 6, VLLM + SGLANG),
    "framed-1": Engine("framed", 5),
    "forger": Engine("framed", 5, LENGTHS),
    "doubled-1": Engine("doubled", 5),
    "ranked-1": Engine("ranked", 5, SGLANG, ranks=4, rank="dp_rank"),
    "uneven-1": Engine("uneven", 2),
    "uneven-2": Engine("uneven", 20),
    "uneven-3": Engine("uneven", 22),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scraped(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Farm, Prometheus]]:
    farm = Farm(dict(ENGINES))
    server = _serve(farm)
    farm.port = int(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    folder: Path = tmp_path_factory.mktemp("prometheus")
    running = testbed.create(folder, f"http://127.0.0.1:{farm.port}/sd", scrape_seconds=1)
    running.start()
    yield farm, running
    running.stop()
    server.shutdown()
    server.server_close()
    thread.join()


async def read(prometheus: Prometheus) -> Answer:
    question = Question(address=prometheus.address, services=SERVICES, windows=WINDOWS)
    return await PrometheusReader().read(question)


async def read_until(prometheus: Prometheus, condition: Callable[[Answer], bool], seconds: float = 60) -> Answer:
    async with asyncio.timeout(seconds):
        while not condition(answer := await read(prometheus)):  # noqa: ASYNC110 - nothing tells us
            await asyncio.sleep(0.5)
    return answer


def known(answer: Answer, name: str) -> ServiceMetrics:
    metrics = answer.services[ServiceKey("team", name)]
    assert isinstance(metrics, ServiceMetrics), metrics
    return metrics


def is_known(answer: Answer, name: str) -> bool:
    return isinstance(answer.services[ServiceKey("team", name)], ServiceMetrics)


def all_known(answer: Answer) -> bool:
    return all(is_known(answer, name) for name in NAMES if name != "mute")


def reason_of(answer: Answer, name: str) -> str:
    metrics = answer.services[ServiceKey("team", name)]
    return metrics.reason if isinstance(metrics, Missing) else ""


async def settled(prometheus: Prometheus) -> Answer:
    """Once a whole window has been scraped."""
    await read_until(prometheus, all_known)
    await asyncio.sleep(WINDOWS.rate + 1)
    return await read_until(prometheus, all_known)


WANT: dict[str, tuple[float, int, float]] = {
    "chat": (40.0, 2, 0.5),
    "code": (5.0, 1, 0.25),
    "mixed": (10.0, 2, 0.5),
    "idle": (0.0, 1, 0.25),
    "queue": (13.0, 1, 0.5),
    "parallel": (12.0, 1, 0.5),
    "both": (6.0, 1, 0.5),
}
"""Arrivals per second, engines, KV usage."""


async def test_what_engines_count_is_what_is_read(scraped: tuple[Farm, Prometheus]) -> None:
    _, prometheus = scraped
    answer = await settled(prometheus)
    for name, (arrivals, engines, kv_usage) in WANT.items():
        metrics = known(answer, name)
        assert metrics.requests_per_second == pytest.approx(arrivals, rel=0.05), name
        assert metrics.peak_requests_per_second >= metrics.requests_per_second
        assert (metrics.engines_reporting, metrics.kv_usage) == (engines, kv_usage), name
    chat = known(answer, "chat")
    assert chat.output_tokens_per_second == pytest.approx(800, rel=0.05)
    assert chat.input_tokens_per_second == pytest.approx(4000, rel=0.05)
    assert chat.mean_input_tokens == pytest.approx(100)
    assert chat.mean_output_tokens == pytest.approx(20)
    assert chat.prefix_hit_rate == pytest.approx(0.25)
    assert (chat.running, known(answer, "code").running, known(answer, "parallel").running) == (16, 4, 32)
    assert [count for _, count in chat.ttft_buckets] == pytest.approx([20, 40], rel=0.05)
    assert [bound for bound, _ in known(answer, "mixed").ttft_buckets] == [0.1, 0.2, float("inf")]
    assert isinstance(known(answer, "idle").mean_output_tokens, Missing)
    assert known(answer, "idle").ttft_buckets == known(answer, "asleep").ttft_buckets == ()


async def test_an_engine_without_time_per_token_of_requests_is_judged_by_the_gaps_between_tokens(
    scraped: tuple[Farm, Prometheus],
) -> None:
    """As SGLang 0.5.18; where one replica of a service tells the one and another both, the two are not mixed."""
    _, prometheus = scraped
    answer = await settled(prometheus)
    older, rolling = known(answer, "older"), known(answer, "rolling")
    assert older.tpot_buckets == ((0.06, pytest.approx(100, rel=0.05)), (math.inf, pytest.approx(100, rel=0.05)))
    assert older.mean_tpot_seconds == pytest.approx(1.0)
    assert rolling.tpot_buckets == ((0.08, pytest.approx(5, rel=0.05)), (math.inf, pytest.approx(5, rel=0.05)))
    assert rolling.mean_tpot_seconds == pytest.approx(0.5)


async def test_engines_are_told_apart_where_one_gives_far_less_than_the_others(
    scraped: tuple[Farm, Prometheus],
) -> None:
    _, prometheus = scraped
    answer = await settled(prometheus)
    paces = {pace.pod: pace for pace in known(answer, "uneven").paces}
    assert list(paces) == ["uneven-1", "uneven-2", "uneven-3"]
    assert [pace.running for pace in paces.values()] == [8, 8, 8]
    assert [pace.tokens_per_second for pace in paces.values()] == pytest.approx([40, 400, 440], rel=0.05)
    assert known(answer, "parallel").paces == known(answer, "idle").paces == ()


async def test_an_engine_that_runs_requests_and_counts_none_is_not_idle(scraped: tuple[Farm, Prometheus]) -> None:
    farm, prometheus = scraped
    answer = await settled(prometheus)
    missing = answer.services[ServiceKey("team", "mute")]
    assert isinstance(missing, Missing)
    assert missing.reason == "NoCounters"
    assert known(answer, "idle").requests_per_second == 0
    farm.engines["mute-1"] = Engine("mute", 5, SGLANG)
    came = time.monotonic()
    answer = await read_until(prometheus, lambda found: is_known(found, "mute"))
    assert known(answer, "mute").engines_reporting == 0
    await read_until(prometheus, lambda found: known(found, "mute").engines_reporting == 1)
    assert time.monotonic() - came >= WINDOWS.rate - 1, "its share in the rates was not whole"
    farm.engines["mute-1"] = ENGINES["mute-1"]


async def test_who_speaks_in_the_name_of_a_service_is_counted_and_teaches_nothing(
    scraped: tuple[Farm, Prometheus],
) -> None:
    """A pod of a tenant's may export a length or a duration under the name of a model whose profile all decide by."""
    farm, prometheus = scraped
    answer = await settled(prometheus)
    own = {name: known(answer, name) for name in ("chat", "mixed", "parallel", "older", "both")}
    assert all(metrics.engines_heard == metrics.engines_reporting for metrics in own.values())
    assert (known(answer, "framed").engines_reporting, known(answer, "framed").engines_heard) == (1, 2)
    del farm.engines["forger"]
    await asyncio.sleep(WINDOWS.rate)
    assert known(await read(prometheus), "framed").engines_heard == 2  # its figures are in the means still
    await read_until(prometheus, lambda found: known(found, "framed").engines_heard == 1, WINDOWS.mean + 20)


AGAIN = {
    "another job": {"job": "annotated-pods"},
    "another job that names addresses otherwise": {"job": "annotated-pods", "instance": "doubled-1"},
    "another replica of Prometheus": {"prometheus_replica": "b"},
}


@pytest.mark.parametrize("case", AGAIN)
async def test_what_is_scraped_twice_is_no_demand(scraped: tuple[Farm, Prometheus], case: str) -> None:
    """Every request would count twice, in demand and in what profiles learn; ranks of one engine are no doubles."""
    farm, prometheus = scraped
    await settled(prometheus)
    farm.again = [("doubled-1", AGAIN[case])]
    answer = await read_until(prometheus, lambda found: reason_of(found, "doubled") == "ScrapedTwice")
    assert (is_known(answer, "parallel"), is_known(answer, "chat"), is_known(answer, "both")) == (True,) * 3
    farm.again = []
    answer = await read_until(prometheus, lambda found: is_known(found, "doubled") and is_known(found, "ranked"))
    assert known(answer, "doubled").running == 8


async def test_the_peak_outlives_the_load(scraped: tuple[Farm, Prometheus]) -> None:
    farm, prometheus = scraped
    await settled(prometheus)
    farm.engines["chat-2"] = Engine("chat", 0)
    answer = await read_until(prometheus, lambda found: known(found, "chat").requests_per_second < 15)
    assert known(answer, "chat").peak_requests_per_second > 35
    farm.engines["chat-2"] = ENGINES["chat-2"]


async def test_an_engine_that_cannot_be_scraped_is_not_counted(scraped: tuple[Farm, Prometheus]) -> None:
    farm, prometheus = scraped
    await settled(prometheus)
    del farm.engines["chat-1"]
    await read_until(prometheus, lambda found: known(found, "chat").engines_reporting == 1)
    await asyncio.sleep(WINDOWS.rate)  # what was counted before a shorter gap is still in the window
    farm.engines["chat-1"] = ENGINES["chat-1"]
    came = time.monotonic()
    await read_until(prometheus, lambda found: known(found, "chat").engines_reporting == 2)
    assert time.monotonic() - came >= WINDOWS.rate - 1, "its share in the rates was not whole"


async def test_engines_that_fall_silent_are_missing_soon_and_back_at_once(scraped: tuple[Farm, Prometheus]) -> None:
    farm, prometheus = scraped
    await settled(prometheus)
    farm.hanging = True
    began = time.monotonic()
    gone = await read_until(
        prometheus, lambda found: all(isinstance(metrics, Missing) for metrics in found.services.values())
    )
    assert time.monotonic() - began < 15
    assert {metrics.reason for metrics in gone.services.values() if isinstance(metrics, Missing)} == {"NoSeries"}
    farm.hanging = False
    await read_until(prometheus, all_known)


async def test_samples_that_grow_old_on_their_way_are_stale(scraped: tuple[Farm, Prometheus]) -> None:
    """Prometheus calls a failed scrape stale at once; samples with a time of their own only grow old."""
    farm, prometheus = scraped
    await settled(prometheus)
    farm.clock = time.time
    await settled(prometheus)
    stopped = time.time()
    farm.clock = lambda: stopped
    old = await read_until(
        prometheus, lambda found: all(isinstance(metrics, Missing) for metrics in found.services.values())
    )
    assert time.time() - stopped > WINDOWS.staleness
    assert {metrics.reason for metrics in old.services.values() if isinstance(metrics, Missing)} == {"Stale"}
    farm.clock = None
    await read_until(prometheus, all_known)


async def test_prometheus_gone_and_back(scraped: tuple[Farm, Prometheus]) -> None:
    _, prometheus = scraped
    await settled(prometheus)
    prometheus.pause()
    missing = (await read(prometheus)).services[ServiceKey("team", "chat")]
    assert isinstance(missing, Missing)
    assert missing.reason == "Unreachable"
    prometheus.start()
    await read_until(prometheus, all_known)


async def test_a_round_is_quick(scraped: tuple[Farm, Prometheus]) -> None:
    _, prometheus = scraped
    await settled(prometheus)
    began = time.monotonic()
    for _ in range(5):
        await read(prometheus)
    assert (time.monotonic() - began) / 5 < 1.0
