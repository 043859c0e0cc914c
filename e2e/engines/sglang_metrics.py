"""SGLang's metrics page: the `sglang:` families an autoscaler reads, as SGLang 0.5 exposes them.

Names, help texts and bucket bounds follow its `metrics_collector.py`. The server runs prometheus_client in
multiprocess mode, so there are no `_created` series and a request metric is absent until its first request is done.
Prompt and generation tokens are counted when a request finishes; `realtime_tokens_total` counts as they are produced.
"""

from __future__ import annotations

from e2e.engines.exposition import Exposition, Labels
from e2e.engines.metrics import Load, Timing
from tokenservice.simulate.engine import Request

TTFT_BOUNDS = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400)
E2E_BOUNDS = (*TTFT_BOUNDS, 600, 1200, 1800, 2400)
TOKEN_GAP_BOUNDS = (
    0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035, 0.040, 0.060, 0.080, 0.100,
    0.200, 0.400, 0.600, 0.800, 1, 2, 4, 6, 8,
)  # fmt: skip
QUEUE_BOUNDS = (
    0, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 100, 200, 300, 400, 500, 600, 700,
    800, 900, 1000, 1200, 1400, 1600, 1800, 2000, 2500, 3000,
)  # fmt: skip
TOKEN_BOUNDS = (
    100, 300, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10000, 12500, 15000, 17500,
    20000, 22500, 25000, 27500, 30000, 35000, 40000, 60000, 80000, 100000, 200000, 300000, 400000, 600000, 800000,
    1000000, 1100000,
)  # fmt: skip


class SglangMetrics:
    """The metrics page of one SGLang process."""

    def __init__(
        self,
        *,
        model_name: str,
        kv_capacity_tokens: int,
        startup_seconds: float,
        ttft_bounds: tuple[float, ...] | None = None,
        token_gap_bounds: tuple[float, ...] | None = None,
    ) -> None:
        self._page = Exposition(None)
        self._kv_capacity_tokens = kv_capacity_tokens
        self._scheduler: Labels = {
            "model_name": model_name,
            "engine_type": "unified",
            "tp_rank": "0",
            "pp_rank": "0",
            "moe_ep_rank": "0",
        }
        self._tokenizer: Labels = {"model_name": model_name}
        self._window_s = self._window_tokens = 0.0
        self._declare_scheduler(startup_seconds)
        self._declare_requests()
        self._declare_latencies(ttft_bounds or TTFT_BOUNDS, token_gap_bounds or TOKEN_GAP_BOUNDS)

    # -- what happens

    def ran(self, first_ms: float, slope_ms: float, steps: int, decoding: int, prefill_tokens: int) -> None:
        self._realtime_prefill.value += prefill_tokens
        self._window_s += (steps * first_ms + slope_ms * steps * (steps - 1) / 2) / 1000
        self._window_tokens += steps * decoding
        if decoding:
            self._inter_token_latency.observe_run(first_ms / 1000, slope_ms / 1000, steps, decoding)

    def first_token(self, request: Request, ttft_s: float) -> None:
        self._realtime_cache.value += request.cached_tokens
        self._ttft.observe(ttft_s)

    def finished(self, request: Request, timing: Timing, preemptions: int) -> None:
        cached = request.cached_tokens
        self._requests.value += 1
        self._prompt_tokens.value += request.input_tokens
        self._generation_tokens.value += request.output_tokens
        self._cached_tokens.value += cached
        self._e2e.observe(timing.e2e_s)
        self._tpot.observe(timing.tpot_s(request.output_tokens))
        self._queue_time.observe(timing.queued_s)
        self._prompt_sizes.observe(request.input_tokens)
        self._uncached_sizes.observe(request.input_tokens - cached)
        self._generation_sizes.observe(request.output_tokens)

    def aborted(self, request: Request, produced_tokens: int) -> None:
        self._aborted.value += 1

    def render(self, load: Load) -> str:
        self._running.value, self._queued.value = load.running, load.waiting
        self._used_tokens.value = self._kv_used.value = load.kv_used_tokens
        self._kv_available.value = self._kv_capacity_tokens - load.kv_used_tokens
        self._token_usage.value = self._full_token_usage.value = load.kv_used_tokens / self._kv_capacity_tokens
        self._realtime_decode.value = load.generated_tokens
        self._retracted_total.value = load.preemptions
        prompt = self._prompt_tokens.value
        self._hit_rate.value = self._cached_tokens.value / prompt if prompt else 0.0
        # The engine's own figure is over its last decode batches: here, over what ran since the last scrape.
        self._throughput.value = self._window_tokens / self._window_s if load.running and self._window_s else 0.0
        self._window_s = self._window_tokens = 0.0
        return self._page.render()

    # -- the page

    def _declare_scheduler(self, startup_seconds: float) -> None:
        gauge, labels = self._page.gauge, self._scheduler
        (self._running,) = gauge("sglang:num_running_reqs", "The number of running requests.", labels)
        (self._used_tokens,) = gauge("sglang:num_used_tokens", "The number of used tokens.", labels)
        (self._token_usage,) = gauge("sglang:token_usage", "The token usage.", labels)
        (self._full_token_usage,) = gauge(
            "sglang:full_token_usage", "The token usage for full attention layers.", labels
        )
        gauge("sglang:swa_token_usage", "The token usage for SWA layers.", labels)
        (self._throughput,) = gauge("sglang:gen_throughput", "The generation throughput (token/s).", labels)
        (self._queued,) = gauge("sglang:num_queue_reqs", "The number of requests in the waiting queue.", labels)
        gauge("sglang:num_grammar_queue_reqs", "The number of requests in the grammar waiting queue.", labels)
        (self._hit_rate,) = gauge("sglang:cache_hit_rate", "The prefix cache hit rate.", labels)
        (capacity,) = gauge(
            "sglang:max_total_num_tokens", "Maximum total number of tokens in the KV cache pool.", labels
        )
        (self._kv_available,) = gauge(
            "sglang:kv_available_tokens", "The number of available tokens in the KV cache pool.", labels
        )
        gauge("sglang:kv_evictable_tokens", "The number of evictable tokens in the KV cache pool.", labels)
        (self._kv_used,) = gauge("sglang:kv_used_tokens", "The number of used tokens in the KV cache pool.", labels)
        (page_size,) = gauge("sglang:page_size", "The page size of the KV cache.", labels)
        (pages,) = gauge("sglang:num_pages", "The number of pages of the KV cache.", labels)
        capacity.value = pages.value = self._kv_capacity_tokens
        page_size.value = 1
        gauge("sglang:num_retracted_reqs", "The number of retracted requests.", labels)
        gauge("sglang:spec_accept_length", "The average acceptance length of speculative decoding.", labels)
        gauge("sglang:utilization", "The utilization.", labels)
        (startup,) = gauge(
            "sglang:startup_time_seconds",
            "The time taken for the engine to start up, by phase.",
            {**labels, "phase": "total"},
        )
        startup.value = startup_seconds
        (self._retracted_total,) = self._page.counter(
            "sglang:num_retracted_requests", "Total number of retracted requests.", labels, lazy=True
        )
        modes: tuple[Labels, ...] = tuple(
            {**labels, "mode": mode} for mode in ("prefill_compute", "prefill_cache", "decode")
        )
        self._realtime_prefill, self._realtime_cache, self._realtime_decode = self._page.counter(
            "sglang:realtime_tokens",
            "Total number of tokens processed (updated on each log interval). "
            "mode: prefill_compute, prefill_cache, decode.",
            *modes,
            lazy=True,
        )
        self._queue_time = self._page.histogram(
            "sglang:queue_time_seconds", "Histogram of queueing time in seconds.", labels, QUEUE_BOUNDS, lazy=True
        )

    def _declare_requests(self) -> None:
        counter, histogram, labels = self._page.counter, self._page.histogram, self._tokenizer
        (self._prompt_tokens,) = counter(
            "sglang:prompt_tokens", "Number of prefill tokens processed.", labels, lazy=True
        )
        (self._generation_tokens,) = counter(
            "sglang:generation_tokens", "Number of generation tokens processed.", labels, lazy=True
        )
        (self._cached_tokens,) = counter(
            "sglang:cached_tokens",
            "Number of cached prompt tokens by source (device/host/storage).",
            {**labels, "cache_source": "device"},
            lazy=True,
        )
        (self._requests,) = counter("sglang:num_requests", "Number of requests processed.", labels, lazy=True)
        (self._aborted,) = counter("sglang:num_aborted_requests", "Number of requests aborted.", labels, lazy=True)
        self._prompt_sizes = histogram(
            "sglang:prompt_tokens_histogram",
            "Histogram of prompt token length.",
            labels,
            TOKEN_BOUNDS,
            lazy=True,
        )
        self._uncached_sizes = histogram(
            "sglang:uncached_prompt_tokens_histogram",
            "Histogram of uncached (compute) prompt token length.",
            labels,
            TOKEN_BOUNDS,
            lazy=True,
        )
        self._generation_sizes = histogram(
            "sglang:generation_tokens_histogram",
            "Histogram of generation token length.",
            labels,
            TOKEN_BOUNDS,
            lazy=True,
        )

    def _declare_latencies(self, ttft_bounds: tuple[float, ...], token_gap_bounds: tuple[float, ...]) -> None:
        histogram, labels = self._page.histogram, self._tokenizer
        self._ttft = histogram(
            "sglang:time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            labels,
            ttft_bounds,
            lazy=True,
        )
        self._inter_token_latency = histogram(
            "sglang:inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            labels,
            token_gap_bounds,
            lazy=True,
        )
        self._tpot = histogram(
            "sglang:request_time_per_output_token_seconds",
            "Histogram of time per output token per request in seconds.",
            labels,
            token_gap_bounds,
            lazy=True,
        )
        self._e2e = histogram(
            "sglang:e2e_request_latency_seconds",
            "Histogram of End-to-end request latency in seconds",
            labels,
            E2E_BOUNDS,
            lazy=True,
        )
