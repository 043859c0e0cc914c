"""vLLM: `vllm serve MODEL --flags`, written for 0.32 and newer.

What matters here: `--shutdown-timeout` above 0, or SIGTERM aborts what runs; usage in every stream, for metering;
histogram bounds at the objectives. Its port opens when the model is loaded, so /health serves all three probes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from tokenservice.api.accelerator_class import Vendor
from tokenservice.api.token_service import KVCacheDtype, Quantization, SpeculativeMethod, TokenServiceSpec
from tokenservice.core.engines.base import (
    CACHE_PATH,
    GROUP_PORT,
    GUARD_PATH,
    LEADER_ADDRESS,
    SHARED_ENVIRONMENT,
    WORKER_INDEX,
    EngineCommand,
    Vocabulary,
    base_environment,
    drain_seconds,
    environment,
    literal,
    served_name,
    tpot_bounds,
    ttft_bounds,
)
from tokenservice.core.engines.sources import adapter_sources, draft_source, loading, model_source, sources
from tokenservice.core.model import Problem, ServiceKey, Variant
from tokenservice.core.names import ENGINE_PORT

MAX_LORAS_IN_BATCH = 8
"""Every slot takes memory from the KV cache; SGLang's default is the same."""

LONGEST_THAT_FITS = "auto"
"""vLLM does not start where its cache holds less than one sequence of full length, unless it may shorten that."""

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that --max-lora-rank takes."""

TTFT_BOUNDS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
TPOT_BOUNDS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
"""vLLM's own bounds, as its metrics page shows them."""

QUANTIZATION = {
    Quantization.FP8: "fp8",
    Quantization.AWQ: "awq",
    Quantization.GPTQ: "gptq",
    Quantization.MXFP4: "mxfp4",
}
_METHODS = {
    SpeculativeMethod.NGRAM: "ngram",
    SpeculativeMethod.DRAFT_MODEL: "draft_model",
    SpeculativeMethod.EAGLE3: "eagle3",
}
_NGRAM_LOOKUP = {"prompt_lookup_max": 4, "prompt_lookup_min": 2}


def command(spec: TokenServiceSpec, variant: Variant, service: ServiceKey, *, worker: bool = False) -> EngineCommand:
    """What the container runs."""
    env = own_environment(spec, variant.accelerator.spec.vendor)
    secrets = [item for source in sources(spec) for item in source.env]
    return EngineCommand(
        command=("vllm", "serve"),
        args=tuple(_arguments(spec, variant, service, worker=worker)),
        env=environment(env, secrets, spec.engine.env),
        port=ENGINE_PORT,
        startup_path="/health",
        readiness_path="/health",
        liveness_path="/health",
    )


def own_environment(spec: TokenServiceSpec, vendor: Vendor) -> dict[str, str]:
    """The variables that the operator sets, without those of the source."""
    own = {
        "VLLM_CACHE_ROOT": f"{CACHE_PATH}/vllm",
        "VLLM_CONFIG_ROOT": f"{CACHE_PATH}/vllm-config",
        "VLLM_NO_USAGE_STATS": "1",
    }
    offline = {} if any(source.downloaded for source in sources(spec)) else {"HF_HUB_OFFLINE": "1"}
    if spec.model.runtime_adapters is not None:
        own |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "true", "PYTHONPATH": GUARD_PATH}
    return base_environment(vendor) | own | offline | ({"VLLM_ROCM_USE_AITER": "1"} if vendor is Vendor.AMD else {})


def problems(spec: TokenServiceSpec) -> Iterator[Problem]:
    """Combinations that vLLM refuses at start: none of those that a spec can say."""
    yield from ()


def _arguments(spec: TokenServiceSpec, variant: Variant, service: ServiceKey, *, worker: bool) -> Iterator[str]:
    yield from _model(spec, service)
    yield from _shape(spec, variant)
    yield from _nodes(variant, worker=worker)
    yield from _speculative(spec)
    yield from _adapters(spec)
    yield from ("--shutdown-timeout", str(drain_seconds(spec)))
    yield "--enable-force-include-usage"
    yield from _histograms(spec)
    yield from (literal(word) for word in spec.engine.extra_args)


def _model(spec: TokenServiceSpec, service: ServiceKey) -> Iterator[str]:
    source = model_source(spec.model)
    yield source.path
    yield from ("--served-model-name", served_name(spec, service))
    yield from ("--port", str(ENGINE_PORT))
    yield from loading(source)


def _shape(spec: TokenServiceSpec, variant: Variant) -> Iterator[str]:
    engine = spec.engine
    yield from ("--tensor-parallel-size", str(variant.tensor_parallel_size))
    if variant.pipeline_parallel_size > 1:
        yield from ("--pipeline-parallel-size", str(variant.pipeline_parallel_size))
    if engine.quantization is not Quantization.MODEL:
        yield from ("--quantization", QUANTIZATION[engine.quantization])
    if engine.kv_cache_dtype is KVCacheDtype.FP8:
        yield from ("--kv-cache-dtype", "fp8")
    yield from ("--max-model-len", str(engine.max_model_len or LONGEST_THAT_FITS))
    yield from ("--max-num-seqs", str(engine.max_num_seqs or variant.max_num_seqs))
    yield from ("--max-num-batched-tokens", str(variant.max_num_batched_tokens))
    yield "--enable-prefix-caching" if engine.prefix_caching else "--no-enable-prefix-caching"


def _nodes(variant: Variant, *, worker: bool) -> Iterator[str]:
    """A pipeline stage a node: vLLM deals ranks out node by node, tensor parallel first. Workers open no port."""
    if variant.pods == 1:
        return
    yield from ("--nnodes", str(variant.pods))
    yield from ("--node-rank", WORKER_INDEX if worker else "0")
    yield from ("--master-addr", LEADER_ADDRESS)
    yield from ("--master-port", str(GROUP_PORT))
    yield from ("--distributed-executor-backend", "mp")
    if worker:
        yield "--headless"


def _speculative(spec: TokenServiceSpec) -> Iterator[str]:
    speculative, draft = spec.engine.speculative, draft_source(spec)
    if speculative is None:
        return
    config: dict[str, str | int] = {
        "method": _METHODS[speculative.method],
        "num_speculative_tokens": speculative.tokens,
    }
    config |= _NGRAM_LOOKUP if speculative.method is SpeculativeMethod.NGRAM else {}
    config |= {"model": draft.path} if draft is not None else {}
    config |= {"revision": draft.revision} if draft is not None and draft.revision else {}
    yield from ("--speculative-config", json.dumps(config, sort_keys=True))


def _adapters(spec: TokenServiceSpec) -> Iterator[str]:
    adapters, room = spec.model.adapters, spec.model.runtime_adapters
    if room is not None:
        yield "--enable-lora"
        yield from ("--max-loras", str(room.max_active))
        yield from ("--max-lora-rank", str(min(rank for rank in LORA_RANKS if rank >= room.max_rank)))
        yield from ("--middleware", "adapter_guard.Guard")
        return
    if not adapters:
        return
    yield "--enable-lora"
    yield from ("--max-loras", str(min(len(adapters), MAX_LORAS_IN_BATCH)))
    yield "--lora-modules"
    for adapter, source in zip(adapters, adapter_sources(spec.model), strict=True):
        yield f"{adapter.name}={source.path}"


def _histograms(spec: TokenServiceSpec) -> Iterator[str]:
    """Nothing where vLLM's own bounds have the objectives already."""
    ttft, tpot = ttft_bounds(spec.objectives, TTFT_BOUNDS), tpot_bounds(spec.objectives, TPOT_BOUNDS)
    families = {
        "inter_token_latency": tpot if tpot != TPOT_BOUNDS else None,
        "time_to_first_token": ttft if ttft != TTFT_BOUNDS else None,
    }
    changed = {family: list(bounds) for family, bounds in families.items() if bounds is not None}
    if changed:
        yield from ("--custom-histogram-buckets", json.dumps(changed, sort_keys=True))


_CODE = "it loads code of the user's choice"
_MULTI = "replicas of several processes are planned by the operator"
_TLS = "TLS ends at the gateway"

VOCABULARY = Vocabulary(
    engine="vLLM",
    rendered={
        "--model": "spec.model.uri",
        "--load-format": "spec.model.uri",
        "--download-dir": "spec.model.uri",
        "--revision": "spec.model.revision",
        "--served-model-name": "spec.model.servedName",
        "--hf-token": "spec.model.credentials",
        "--enable-lora": "spec.model.adapters",
        "--lora-modules": "spec.model.adapters",
        "--max-loras": "spec.model.adapters",
        "--port": "the operator",
        "--tensor-parallel-size": "spec.engine.tensorParallelSize",
        "-tp": "spec.engine.tensorParallelSize",
        "--pipeline-parallel-size": "spec.engine.pipelineParallelSize",
        "-pp": "spec.engine.pipelineParallelSize",
        "--nnodes": "spec.engine.pipelineParallelSize",
        "--node-rank": "spec.engine.pipelineParallelSize",
        "--master-addr": "spec.engine.pipelineParallelSize",
        "--master-port": "spec.engine.pipelineParallelSize",
        "--distributed-executor-backend": "spec.engine.pipelineParallelSize",
        "--headless": "spec.engine.pipelineParallelSize",
        "--quantization": "spec.engine.quantization",
        "-q": "spec.engine.quantization",
        "--kv-cache-dtype": "spec.engine.kvCacheDtype",
        "--max-model-len": "spec.engine.maxModelLen",
        "--max-num-seqs": "spec.engine.maxNumSeqs",
        "--max-num-batched-tokens": "maxNumBatchedTokens of the CapacityProfile",
        "--enable-prefix-caching": "spec.engine.prefixCaching",
        "--speculative-config": "spec.engine.speculative",
        "-sc": "spec.engine.speculative",
        "--spec-method": "spec.engine.speculative",
        "--spec-model": "spec.engine.speculative",
        "--spec-tokens": "spec.engine.speculative",
        "--shutdown-timeout": "spec.scaling.maxRequestSeconds and spotDrainSeconds",
        "--enable-force-include-usage": "the operator, which meters tokens",
        "--custom-histogram-buckets": "spec.objectives",
    },
    refused={
        "--host": "engines are reached by their Service",
        "--uds": "engines are reached by their Service",
        "--root-path": "engines are reached by their Service",
        "--grpc": "engines are reached over HTTP",
        "--grpc-port": "engines are reached over HTTP",
        "--api-key": "arguments can be read by anyone who may read pods, and keys end at the gateway",
        "--ssl-keyfile": _TLS,
        "--ssl-certfile": _TLS,
        "--ssl-ca-certs": _TLS,
        "--trust-remote-code": "it runs code from the model's repository",
        "--trust-request-chat-template": "it lets requests bring templates that run",
        "--trust-request-mm-kwargs": "it lets requests set the processor's arguments",
        "--middleware": _CODE,
        "--tool-parser-plugin": _CODE,
        "--reasoning-parser-plugin": _CODE,
        "--structured-outputs-config": "its field reasoning_parser_plugin loads code",
        "--logits-processors": _CODE,
        "--io-processor-plugin": _CODE,
        "--model-class-overrides": _CODE,
        "--worker-cls": _CODE,
        "--worker-extension-cls": _CODE,
        "--scheduler-cls": _CODE,
        "--config": "it hides arguments in a file",
        "--allowed-local-media-path": "it opens the container's files to requests",
        "--tool-server": "it calls other servers for requests",
        "--disable-log-stats": "decisions rest on the engine's metrics",
        "--enable-log-requests": "it writes prompts to the log",
        "--enable-log-outputs": "it writes answers to the log",
        "--otlp-traces-endpoint": "the network policy lets engines reach their model's source only",
        "--data-parallel-size": _MULTI,
        "-dp": _MULTI,
    },
    switches=frozenset(
        {
            "--async-scheduling",
            "--no-async-scheduling",
            "--cudagraph-metrics",
            "--disable-custom-all-reduce",
            "--disable-fastapi-docs",
            "--disable-hybrid-kv-cache-manager",
            "--disable-sliding-window",
            "--disable-uvicorn-access-log",
            "--enable-auto-tool-choice",
            "--enable-chunked-prefill",
            "--no-enable-chunked-prefill",
            "--enable-eplb",
            "--enable-expert-parallel",
            "--enable-flashinfer-autotune",
            "--no-enable-flashinfer-autotune",
            "--enable-mfu-metrics",
            "--enable-prompt-tokens-details",
            "--enable-request-id-headers",
            "--enforce-eager",
            "--exclude-tools-when-tool-choice-none",
            "--fully-sharded-loras",
            "--interleave-mm-strings",
            "--kv-cache-metrics",
            "--language-model-only",
            "--skip-mm-profiling",
        }
    ),
    valued=frozenset(
        {
            "--attention-backend",
            "--block-size",
            "--chat-template",
            "--chat-template-content-format",
            "--config-format",
            "--cpu-offload-gb",
            "--default-chat-template-kwargs",
            "--dtype",
            "--generation-config",
            "--gpu-memory-utilization",
            "--hf-overrides",
            "--kv-cache-memory-bytes",
            "--kv-offloading-backend",
            "--kv-offloading-size",
            "--limit-mm-per-prompt",
            "--long-prefill-token-threshold",
            "--lora-dtype",
            "--max-cpu-loras",
            "--max-cudagraph-capture-size",
            "--max-logprobs",
            "--max-lora-rank",
            "--max-num-queued-reqs",
            "--max-num-queued-tokens",
            "--max-parallel-loading-workers",
            "--mm-processor-cache-gb",
            "--model-impl",
            "--moe-backend",
            "--optimization-level",
            "--override-generation-config",
            "--performance-mode",
            "--prefix-caching-hash-algo",
            "--reasoning-parser",
            "--response-role",
            "--safetensors-load-strategy",
            "--scheduling-policy",
            "--seed",
            "--sse-keep-alive-interval",
            "--stream-interval",
            "--tokenizer-mode",
            "--tool-call-parser",
            "--uvicorn-log-level",
        }
    ),
    listed=frozenset({"--cudagraph-capture-sizes"}),
    roomy=frozenset({"--max-lora-rank"}),
    environment=SHARED_ENVIRONMENT
    | {
        "VLLM_ENGINE_READY_TIMEOUT_S",
        "VLLM_FLASHINFER_MOE_BACKEND",
        "VLLM_LOGGING_LEVEL",
        "VLLM_ROCM_USE_AITER",
        "VLLM_ROCM_USE_AITER_MHA",
        "VLLM_ROCM_USE_AITER_MLA",
        "VLLM_ROCM_USE_AITER_MOE",
        "VLLM_SLEEP_WHEN_IDLE",
        "VLLM_USE_DEEP_GEMM",
        "VLLM_USE_FLASHINFER_MOE_FP4",
        "VLLM_USE_FLASHINFER_MOE_FP8",
        "VLLM_USE_FLASHINFER_SAMPLER",
    },
)
