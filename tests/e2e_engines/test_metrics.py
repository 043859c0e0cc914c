"""The metrics pages: vLLM's against a real server's, SGLang's against what is known of it, and their arithmetic."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from e2e.engines.exposition import Exposition, Histogram
from e2e.engines.metrics import EngineMetrics, Load, Timing
from e2e.engines.sglang_metrics import SglangMetrics
from e2e.engines.vllm_metrics import VllmMetrics
from tests.e2e_engines.builders import DATA
from tokenservice.simulate.engine import Request

FACTS = Path(__file__).parent / "vllm_facts.txt"
REAL = Path(os.environ.get("TAAS_DATA", DATA)) / "engine" / "vllm-0.32-metrics.txt"
IDLE = Load(0, 0, 0, 0, 0)


def vllm() -> VllmMetrics:
    return VllmMetrics(model_name="tiny", kv_capacity_tokens=2**21, max_model_len=1024, started_epoch_s=1.75e9)


def sglang() -> SglangMetrics:
    return SglangMetrics(model_name="tiny", kv_capacity_tokens=1000, startup_seconds=50.0)


def serve_one(metrics: EngineMetrics) -> None:
    """100 prompt tokens, 40 of them cached, 11 out: 0.1 s queued, 0.2 s prefill, ten steps of 30 ms."""
    request = Request(0, 0.0, 100, 11, 40)
    metrics.ran(200.0, 0.0, 1, 0, 60)
    metrics.first_token(request, 0.3)
    metrics.ran(30.0, 0.0, 10, 1, 0)
    metrics.finished(request, Timing(0.0, 0.1, 0.3, 0.6), 0)


def value(page: str, name: str, **labels: str) -> float:
    """The one series of that name with those labels."""
    lines = [line for line in page.splitlines() if line.startswith(f"{name}{{")]
    wanted = [f'{label}="{text}"' for label, text in labels.items()]
    found = [line for line in lines if all(want in line for want in wanted)]
    assert len(found) == 1, f"{name}{labels}: {found}"
    return float(found[0].rpartition(" ")[2])


def test_the_pages_are_prometheus_text() -> None:
    for metrics, prefix in ((vllm(), "vllm:"), (sglang(), "sglang:")):
        serve_one(metrics)
        families = list(text_string_to_metric_families(metrics.render(IDLE)))
        assert len(families) > 20
        assert all(family.name.startswith(prefix) and family.samples for family in families)


def skeleton(page: str) -> list[str]:
    """The `vllm:` lines without what may differ: values, and the settings in cache_config_info."""
    lines = [line for line in page.splitlines() if re.match(r"(# \w+ )?vllm:", line)]
    bare = [line if line.startswith("#") else line.rpartition(" ")[0] for line in lines]
    return [re.sub(r'="[^"]*"', "", line) if "cache_config_info{" in line else line for line in bare]


@pytest.mark.skipif(not REAL.exists(), reason="needs TAAS_DATA: a real server's /metrics")
def test_the_vllm_page_is_the_real_servers_line_by_line() -> None:
    assert skeleton(vllm().render(IDLE)) == skeleton(REAL.read_text())


def facts(page: str) -> list[str]:
    """The page in the notation of vllm_facts.txt."""
    families: dict[str, tuple[str, dict[str, list[str]], list[str]]] = {}
    current = ""
    for line in page.splitlines():
        if declared := re.match(r"# TYPE (\S+) (\S+)", line):
            current = declared[1]
            families[current] = (declared[2], {}, [])
        elif not line.startswith("#"):
            _, labels, bounds = families[current]
            for name, text in re.findall(r'(\w+)="([^"]*)"', line):
                seen = bounds if name == "le" else labels.setdefault(name, [])
                if text not in [*seen, "+Inf"]:
                    seen.append(text)
    return [_fact(name, *family) for name, family in families.items() if not name.endswith("_created")]


def _fact(name: str, kind: str, labels: dict[str, list[str]], bounds: list[str]) -> str:
    is_open = {"engine", "model_name"} | (set(labels) if name.endswith("config_info") else set())
    shown = [label if label in is_open else f"{label}={'|'.join(labels[label])}" for label in sorted(labels)]
    buckets = [":", *(bound.removesuffix(".0") for bound in bounds)] if bounds else []
    return " ".join([name, kind, *shown, *buckets])


def test_the_vllm_page_has_the_families_labels_and_buckets_of_the_real_one() -> None:
    expected = [line for line in FACTS.read_text().splitlines() if not line.startswith("#")]
    assert facts(vllm().render(IDLE)) == expected


def test_every_vllm_counter_and_histogram_says_when_it_was_created() -> None:
    page = vllm().render(IDLE)
    kinds = dict(re.findall(r"# TYPE (\S+) (\S+)", page))
    for name, kind in kinds.items():
        if kind != "gauge":
            assert kinds[f"{name.removesuffix('_total') if kind == 'counter' else name}_created"] == "gauge"


def test_the_vllm_page_counts_a_request() -> None:
    metrics = vllm()
    serve_one(metrics)
    page = metrics.render(Load(3, 2, 2**19, 11, 1))
    expected = {
        "num_requests_running": 3,
        "num_requests_waiting": 2,
        "kv_cache_usage_perc": 0.25,
        "prompt_tokens_total": 100,
        "prefix_cache_queries_total": 100,
        "prefix_cache_hits_total": 40,
        "prompt_tokens_cached_total": 40,
        "generation_tokens_total": 11,
        "num_preemptions_total": 1,
        "time_to_first_token_seconds_sum": 0.3,
        "inter_token_latency_seconds_count": 10,
        "inter_token_latency_seconds_sum": 0.3,
        "request_time_per_output_token_seconds_sum": 0.03,
        "e2e_request_latency_seconds_sum": 0.6,
        "request_queue_time_seconds_sum": 0.1,
        "request_prefill_time_seconds_sum": 0.2,
        "request_decode_time_seconds_sum": 0.3,
        "request_inference_time_seconds_sum": 0.5,
        "request_prompt_tokens_sum": 100,
        "request_generation_tokens_sum": 11,
        "request_prefill_kv_computed_tokens_sum": 60,
        "iteration_tokens_total_count": 11,
    }
    assert {name: value(page, f"vllm:{name}") for name in expected} == pytest.approx(expected)
    assert value(page, "vllm:request_success_total", finished_reason="length") == 1
    assert value(page, "vllm:num_requests_waiting_by_reason", reason="capacity") == 2
    assert value(page, "vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 40
    assert value(page, "vllm:inter_token_latency_seconds_bucket", le="0.025") == 0
    assert value(page, "vllm:inter_token_latency_seconds_bucket", le="0.05") == 10
    assert value(page, "vllm:cache_config_info", num_gpu_blocks=str(2**21 // 16), block_size="16") == 1


def test_the_sglang_page_counts_a_request() -> None:
    metrics = sglang()
    serve_one(metrics)
    page = metrics.render(Load(3, 2, 250, 11, 1))
    expected = {
        "num_running_reqs": 3,
        "num_queue_reqs": 2,
        "token_usage": 0.25,
        "kv_available_tokens": 750,
        "max_total_num_tokens": 1000,
        "cache_hit_rate": 0.4,
        "prompt_tokens_total": 100,
        "generation_tokens_total": 11,
        "cached_tokens_total": 40,
        "num_requests_total": 1,
        "num_retracted_requests_total": 1,
        "time_to_first_token_seconds_sum": 0.3,
        "inter_token_latency_seconds_count": 10,
        "request_time_per_output_token_seconds_sum": 0.03,
        "e2e_request_latency_seconds_sum": 0.6,
        "queue_time_seconds_sum": 0.1,
        "uncached_prompt_tokens_histogram_sum": 60,
    }
    assert {name: value(page, f"sglang:{name}") for name in expected} == pytest.approx(expected)
    assert value(page, "sglang:realtime_tokens_total", mode="decode") == 11
    assert value(page, "sglang:time_to_first_token_seconds_bucket", le="0.4") == 1


def test_sglang_shows_request_metrics_only_once_there_was_a_request() -> None:
    metrics = sglang()
    assert "sglang:num_running_reqs" in metrics.render(IDLE)
    assert "sglang:prompt_tokens_total" not in metrics.render(IDLE)
    serve_one(metrics)
    assert "sglang:prompt_tokens_total" in metrics.render(IDLE)


def test_aborted_requests_are_counted_apart() -> None:
    one, other = vllm(), sglang()
    for metrics in (one, other):
        metrics.aborted(Request(0, 0.0, 10, 20), 5)
    assert value(one.render(IDLE), "vllm:request_success_total", finished_reason="abort") == 1
    assert value(other.render(IDLE), "sglang:num_aborted_requests_total") == 1


@given(
    st.floats(0.001, 0.2), st.floats(0, 0.01), st.integers(1, 300), st.integers(1, 50),
    st.lists(st.floats(0.001, 3), min_size=1, max_size=8, unique=True).map(sorted),
)  # fmt: skip
def test_a_run_of_steps_is_observed_as_each_of_them(
    first: float, slope: float, steps: int, times: int, bounds: list[float]
) -> None:
    together, apart = Histogram(tuple(bounds)), Histogram(tuple(bounds))
    together.observe_run(first, slope, steps, times)
    for step in range(steps):
        apart.observe(first + slope * step, times)
    assert together.count == apart.count
    assert together.total == pytest.approx(apart.total)
    # A step that falls on a bound to within rounding may be counted on either side of it.
    assert all(abs(a - b) <= times for a, b in zip(together.counts, apart.counts, strict=True))


def test_label_values_are_escaped() -> None:
    page = Exposition(None)
    page.gauge("x", "Help.", {"model": 'a"b\\c\nd'})
    (family,) = text_string_to_metric_families(page.render())
    assert family.samples[0].labels == {"model": 'a"b\\c\nd'}
