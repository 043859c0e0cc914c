"""vLLM's metrics page: the `vllm:` families of a real vLLM 0.32 server, name by name and in its order.

Names, help texts, labels and bucket bounds were taken from such a server's `/metrics`. What the simulation knows is
counted; the rest stands there at zero, as it does on a server without LoRA, multi-modal input or KV offloading.
"""

from __future__ import annotations

from e2e.engines.exposition import Exposition, Histogram, Labels
from e2e.engines.metrics import Load, Timing
from tokenservice.simulate.engine import Request

BLOCK_TOKENS = 16
TTFT_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
TOKEN_GAP_BOUNDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
PHASE_BOUNDS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
ITERATION_BOUNDS = (1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0)
PREEMPTION_BOUNDS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
N_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0)
FINISHED_REASONS = ("stop", "length", "abort", "error", "repetition")

_CACHE_CONFIG = {
    "_block_size_resolved": "True",
    "block_size": str(BLOCK_TOKENS),
    "cache_dtype": "auto",
    "cache_hit_alignment_tokens": "None",
    "effective_attention_block_size": str(BLOCK_TOKENS),
    "enable_mamba_shared_prefix_checkpoint": "False",
    "enable_prefix_caching": "True",
    "engine": "0",
    "gpu_memory_utilization": "0.92",
    "hash_block_size": "None",
    "is_attention_free": "False",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_layout": "None",
    "kv_cache_memory_bytes": "None",
    "kv_offloading_backend": "native",
    "kv_offloading_size": "None",
    "kv_sharing_fast_prefill": "False",
    "mamba_block_size": "None",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_page_size_padded": "None",
    "mamba_ssm_cache_dtype": "float32",
    "num_cpu_blocks": "None",
    "num_gpu_blocks_override": "None",
    "prefix_cache_retention_interval": "0",
    "prefix_caching_hash_algo": "sha256",
    "prefix_match_unit": "None",
    "replayssm_buffer_len": "16",
    "skip_page_size_padded": "None",
    "sliding_window": "None",
    "swa_bounded_replay": "True",
    "use_kda_recoverssm": "False",
    "use_replayssm": "False",
    "user_specified_block_size": "False",
}


def token_bounds(max_model_len: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 … up to the longest context: vLLM fits its token buckets to the model."""
    steps = (factor * 10**power for power in range(12) for factor in (1, 2, 5))
    return tuple(float(step) for step in steps if step <= max_model_len)


class VllmMetrics:
    """The metrics page of one vLLM process that started at `started_epoch_s`."""

    def __init__(
        self,
        *,
        model_name: str,
        kv_capacity_tokens: int,
        max_model_len: int,
        started_epoch_s: float,
        ttft_bounds: tuple[float, ...] | None = None,
        token_gap_bounds: tuple[float, ...] | None = None,
    ) -> None:
        self._page = Exposition(started_epoch_s)
        self._labels: Labels = {"engine": "0", "model_name": model_name}
        self._token_bounds = token_bounds(max_model_len)
        self._kv_capacity_tokens = kv_capacity_tokens
        self._declare_load()
        self._declare_counters(model_name)
        self._declare_sizes()
        self._declare_times(ttft_bounds or TTFT_BOUNDS, token_gap_bounds or TOKEN_GAP_BOUNDS)
        self._declare_config(max_model_len)

    # -- what happens

    def ran(self, first_ms: float, slope_ms: float, steps: int, decoding: int, prefill_tokens: int) -> None:
        self._iteration_tokens.observe(decoding + prefill_tokens, steps)
        if decoding:
            self._inter_token_latency.observe_run(first_ms / 1000, slope_ms / 1000, steps, decoding)

    def first_token(self, request: Request, ttft_s: float) -> None:
        cached = request.cached_tokens
        self._prefix_queries.value += request.input_tokens
        self._prefix_hits.value += cached
        self._prompt_tokens.value += request.input_tokens
        self._prompt_computed.value += request.input_tokens - cached
        for value in self._prompt_cached:
            value.value += cached
        self._ttft.observe(ttft_s)

    def finished(self, request: Request, timing: Timing, preemptions: int) -> None:
        self._count_request("length", request, request.output_tokens)
        self._tpot.observe(timing.tpot_s(request.output_tokens))
        self._e2e.observe(timing.e2e_s)
        self._queue.observe(timing.queued_s)
        self._inference.observe(timing.inference_s)
        self._prefill.observe(timing.prefill_s)
        self._decode.observe(timing.decode_s)
        self._request_preemptions.observe(preemptions)

    def aborted(self, request: Request, produced_tokens: int) -> None:
        self._count_request("abort", request, produced_tokens)

    def render(self, load: Load) -> str:
        self._running.value = load.running
        self._waiting.value = self._waiting_capacity.value = load.waiting
        self._kv_usage.value = load.kv_used_tokens / self._kv_capacity_tokens
        self._generation_tokens.value = load.generated_tokens
        self._preemptions.value = load.preemptions
        return self._page.render()

    def _count_request(self, reason: str, request: Request, produced_tokens: int) -> None:
        self._success[reason].value += 1
        self._request_prompt.observe(request.input_tokens)
        self._request_generation.observe(produced_tokens)
        self._request_max_generation.observe(produced_tokens)
        self._params_n.observe(1)
        self._params_max_tokens.observe(request.output_tokens)
        self._prefill_computed.observe(request.input_tokens - request.cached_tokens)

    # -- the page, in the server's order

    def _with(self, label: str, *values: str) -> tuple[Labels, ...]:
        return tuple({**self._labels, label: value} for value in values)

    def _declare_load(self) -> None:
        page, labels = self._page, self._labels
        mfu = "(for Model Flops Utilization calculations)."
        for name, what in (
            ("flops", "Estimated number of floating point operations per GPU"),
            ("read_bytes", "Estimated number of bytes read from memory per GPU"),
            ("write_bytes", "Estimated number of bytes written to memory per GPU"),
        ):
            page.counter(f"vllm:estimated_{name}_per_gpu", f"{what} {mfu}", labels)
        (self._running,) = page.gauge(
            "vllm:num_requests_running", "Number of requests in model execution batches.", labels
        )
        (self._waiting,) = page.gauge(
            "vllm:num_requests_waiting", "Number of requests waiting to be processed.", labels
        )
        self._waiting_capacity, _ = page.gauge(
            "vllm:num_requests_waiting_by_reason",
            "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling capacity; "
            "'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). "
            "Sum of all reasons equals vllm:num_requests_waiting.",
            *self._with("reason", "capacity", "deferred"),
        )
        awake, _, _ = page.gauge(
            "vllm:engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; "
            "weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
            *self._with("sleep_state", "awake", "weights_offloaded", "discard_all"),
        )
        awake.value = 1
        (self._kv_usage,) = page.gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", labels)

    def _declare_counters(self, model_name: str) -> None:
        page, labels = self._page, self._labels
        tokens = "in terms of number of queried tokens."
        cached = "in terms of number of cached tokens."
        external = "from KV connector cross-instance cache sharing"
        (self._prefix_queries,) = page.counter("vllm:prefix_cache_queries", f"Prefix cache queries, {tokens}", labels)
        (self._prefix_hits,) = page.counter("vllm:prefix_cache_hits", f"Prefix cache hits, {cached}", labels)
        page.counter(
            "vllm:external_prefix_cache_queries", f"External prefix cache queries {external}, {tokens}", labels
        )
        page.counter("vllm:external_prefix_cache_hits", f"External prefix cache hits {external}, {cached}", labels)
        page.counter("vllm:mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items.", labels)
        page.counter("vllm:mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items.", labels)
        (self._preemptions,) = page.counter(
            "vllm:num_preemptions", "Cumulative number of preemption from the engine.", labels
        )
        (self._prompt_tokens,) = page.counter("vllm:prompt_tokens", "Number of prefill tokens processed.", labels)
        self._prompt_computed, hit, _ = page.counter(
            "vllm:prompt_tokens_by_source",
            "Number of prompt tokens by source.",
            *self._with("source", "local_compute", "local_cache_hit", "external_kv_transfer"),
        )
        (total,) = page.counter(
            "vllm:prompt_tokens_cached", "Number of cached prompt tokens (local + external).", labels
        )
        device, *_ = page.counter(
            "vllm:prompt_tokens_cached_by_source",
            "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded to "
            "DRAM), disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at "
            "admission; sums to vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.",
            *self._with("source", "device", "host", "p2p", "disk", "external_unspecified"),
        )
        self._prompt_cached = (hit, total, device)
        (self._generation_tokens,) = page.counter(
            "vllm:generation_tokens", "Number of generation tokens processed.", labels
        )
        success = page.counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            *self._with("finished_reason", *FINISHED_REASONS),
        )
        self._success = dict(zip(FINISHED_REASONS, success, strict=True))
        page.counter(
            "vllm:admission_rejections",
            "Number of admission attempts rejected by a queue limit, by reason.",
            {"model_name": model_name, "reason": "max_num_queued_reqs"},
            {"model_name": model_name, "reason": "max_num_queued_tokens"},
        )

    def _declare_sizes(self) -> None:
        tokens = self._token_bounds
        self._request_prompt = self._histogram("request_prompt_tokens", "Number of prefill tokens processed.", tokens)
        self._request_generation = self._histogram(
            "request_generation_tokens", "Number of generation tokens processed.", tokens
        )
        self._iteration_tokens = self._histogram(
            "iteration_tokens_total", "Histogram of number of tokens per engine_step.", ITERATION_BOUNDS
        )
        self._request_max_generation = self._histogram(
            "request_max_num_generation_tokens",
            "Histogram of maximum number of requested generation tokens.",
            tokens,
        )
        self._params_n = self._histogram("request_params_n", "Histogram of the n request parameter.", N_BOUNDS)
        self._params_max_tokens = self._histogram(
            "request_params_max_tokens", "Histogram of the max_tokens request parameter.", tokens
        )

    def _declare_times(self, ttft_bounds: tuple[float, ...], token_gap_bounds: tuple[float, ...]) -> None:
        self._ttft = self._histogram(
            "time_to_first_token_seconds", "Histogram of time to first token in seconds.", ttft_bounds
        )
        self._inter_token_latency = self._histogram(
            "inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", token_gap_bounds
        )
        self._tpot = self._histogram(
            "request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            token_gap_bounds,
        )
        self._e2e = self._histogram(
            "e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", PHASE_BOUNDS
        )
        self._queue = self._phase("queue", "WAITING")
        self._inference = self._phase("inference", "RUNNING")
        self._prefill = self._phase("prefill", "PREFILL")
        self._decode = self._phase("decode", "DECODE")
        self._request_preemptions = self._histogram(
            "request_num_preemptions",
            "Histogram of the number of times a request was preempted.",
            PREEMPTION_BOUNDS,
        )
        self._prefill_computed = self._histogram(
            "request_prefill_kv_computed_tokens",
            "Histogram of new KV tokens computed during prefill (excluding cached tokens).",
            self._token_bounds,
        )

    def _phase(self, name: str, state: str) -> Histogram:
        return self._histogram(
            f"request_{name}_time_seconds", f"Histogram of time spent in {state} phase for request.", PHASE_BOUNDS
        )

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> Histogram:
        return self._page.histogram(f"vllm:{name}", text, self._labels, bounds)

    def _declare_config(self, max_model_len: int) -> None:
        blocks = self._kv_capacity_tokens // BLOCK_TOKENS
        tokens = blocks * BLOCK_TOKENS
        (info,) = self._page.gauge(
            "vllm:cache_config_info",
            "Information of the LLMEngine CacheConfig",
            {
                **_CACHE_CONFIG,
                "num_gpu_blocks": str(blocks),
                "kv_cache_size_tokens": str(tokens),
                "kv_cache_max_concurrency": str(tokens / max_model_len),
            },
        )
        info.value = 1
