"""SGLang: `python3 -m sglang.launch_server --flags`, written for 0.5.

What matters here: it listens on the loopback only and exports no metrics unless told; SIGTERM drains without a limit,
so the pod's grace period is the only bound; and its histograms have no bound below 100 ms.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenservice.api.accelerator_class import Vendor
from tokenservice.api.token_service import EngineName, KVCacheDtype, Quantization, SpeculativeMethod, TokenServiceSpec
from tokenservice.core.engines.base import (
    GROUP_PORT,
    LEADER_ADDRESS,
    SHARED_ENVIRONMENT,
    WORKER_INDEX,
    EngineCommand,
    Vocabulary,
    base_environment,
    environment,
    literal,
    served_name,
    tpot_bounds,
    ttft_bounds,
)
from tokenservice.core.engines.sources import adapter_sources, draft_source, loading, model_source, sources
from tokenservice.core.engines.vllm import MAX_LORAS_IN_BATCH, QUANTIZATION
from tokenservice.core.model import Problem, Reason, ServiceKey, Variant
from tokenservice.core.names import ENGINE_PORT

TTFT_BOUNDS = (
    0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 60.0, 80.0,
    100.0, 200.0, 400.0,
)  # fmt: skip
"""SGLang's own from 100 ms on, vLLM's below."""

TPOT_BOUNDS = (
    0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035, 0.04, 0.06, 0.08, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0,
    2.0, 4.0, 6.0, 8.0,
)  # fmt: skip
"""SGLang's own."""

_ALGORITHMS = {
    SpeculativeMethod.NGRAM: "NGRAM",
    SpeculativeMethod.DRAFT_MODEL: "STANDALONE",
    SpeculativeMethod.EAGLE3: "EAGLE3",
}
_READ_OFF_THE_CHECKPOINT = (Quantization.MODEL, Quantization.AWQ, Quantization.GPTQ)
"""Told `awq` or `gptq` by name, SGLang leaves its Marlin kernels for slow ones, and ends where a dtype is bfloat16."""


def command(spec: TokenServiceSpec, variant: Variant, service: ServiceKey, *, worker: bool = False) -> EngineCommand:
    """What the container runs."""
    env = own_environment(spec, variant.accelerator.spec.vendor)
    secrets = [item for source in sources(spec) for item in source.env]
    return EngineCommand(
        command=("python3", "-m", "sglang.launch_server"),
        args=tuple(_arguments(spec, variant, service, worker=worker)),
        env=environment(env, secrets, spec.engine.env),
        port=ENGINE_PORT,
        startup_path="/health",
        readiness_path="/health",
        liveness_path="/health",
    )


def own_environment(spec: TokenServiceSpec, vendor: Vendor) -> dict[str, str]:
    """The variables that the operator sets, without those of the source."""
    offline = {} if any(source.downloaded for source in sources(spec)) else {"HF_HUB_OFFLINE": "1"}
    return base_environment(vendor) | offline | ({"SGLANG_USE_AITER": "1"} if vendor is Vendor.AMD else {})


def problems(spec: TokenServiceSpec) -> Iterator[Problem]:
    """Combinations that SGLang refuses at start (`check_server_args` and `check_lora_server_args` of 0.5.18)."""
    speculative, served = spec.engine.speculative, spec.model.adapters or spec.model.runtime_adapters
    # Auto takes vLLM for stages: no profile describes them, and estimates are made for vLLM.
    staged = spec.engine.pipeline_parallel_size > 1 and spec.engine.name is EngineName.SGLANG
    if staged and speculative is not None:
        yield Problem(
            Reason.CONFLICTING_ARGUMENTS,
            "spec.engine.speculative",
            "SGLang does not speculate with pipeline stages: use vLLM, or remove this or"
            " spec.engine.pipelineParallelSize",
        )
    if served and speculative is not None and speculative.method is not SpeculativeMethod.NGRAM:
        yield Problem(
            Reason.CONFLICTING_ARGUMENTS,
            "spec.engine.speculative.method",
            f"SGLang serves adapters with n-gram speculation only, not with {speculative.method}:"
            " use NGram, or remove spec.engine.speculative or spec.model.adapters",
        )


def _arguments(spec: TokenServiceSpec, variant: Variant, service: ServiceKey, *, worker: bool) -> Iterator[str]:
    yield from _model(spec, service)
    yield from _shape(spec, variant)
    yield from _nodes(variant, worker=worker)
    yield from _speculative(spec)
    yield from _adapters(spec)
    yield "--enable-metrics"
    yield from ("--bucket-time-to-first-token", *_bounds(ttft_bounds(spec.objectives, TTFT_BOUNDS)))
    yield from ("--bucket-inter-token-latency", *_bounds(tpot_bounds(spec.objectives, TPOT_BOUNDS)))
    yield from (literal(word) for word in spec.engine.extra_args)


def _model(spec: TokenServiceSpec, service: ServiceKey) -> Iterator[str]:
    source = model_source(spec.model)
    yield from ("--model-path", source.path)
    yield from ("--served-model-name", served_name(spec, service))
    yield from ("--host", "0.0.0.0")  # noqa: S104 - the kubelet and clients come from outside the pod
    yield from ("--port", str(ENGINE_PORT))
    yield from loading(source)


def _shape(spec: TokenServiceSpec, variant: Variant) -> Iterator[str]:
    engine = spec.engine
    yield from ("--tp-size", str(variant.tensor_parallel_size))
    if variant.pipeline_parallel_size > 1:
        yield from ("--pp-size", str(variant.pipeline_parallel_size))
    if engine.quantization not in _READ_OFF_THE_CHECKPOINT:
        yield from ("--quantization", QUANTIZATION[engine.quantization])
    if engine.kv_cache_dtype is KVCacheDtype.FP8:
        yield from ("--kv-cache-dtype", "fp8_e4m3")
    if engine.max_model_len is not None:
        yield from ("--context-length", str(engine.max_model_len))
    yield from ("--max-running-requests", str(engine.max_num_seqs or variant.max_num_seqs))
    yield from ("--chunked-prefill-size", str(variant.max_num_batched_tokens))
    if not engine.prefix_caching:
        yield "--disable-radix-cache"


def _nodes(variant: Variant, *, worker: bool) -> Iterator[str]:
    """A pipeline stage a node: SGLang deals ranks out node by node, tensor parallel first."""
    if variant.pods == 1:
        return
    yield from ("--nnodes", str(variant.pods))
    yield from ("--node-rank", WORKER_INDEX if worker else "0")
    yield from ("--dist-init-addr", f"{LEADER_ADDRESS}:{GROUP_PORT}")


def _speculative(spec: TokenServiceSpec) -> Iterator[str]:
    """One chain of drafts (topk 1): a tree helps single users and costs throughput in batches."""
    speculative, draft = spec.engine.speculative, draft_source(spec)
    if speculative is None:
        return
    yield from ("--speculative-algorithm", _ALGORITHMS[speculative.method])
    if draft is not None:
        yield from ("--speculative-draft-model-path", draft.path)
        yield from ("--speculative-num-steps", str(speculative.tokens))
        yield from ("--speculative-eagle-topk", "1")
    if draft is not None and draft.revision is not None:
        yield from ("--speculative-draft-model-revision", draft.revision)
    yield from ("--speculative-num-draft-tokens", str(speculative.tokens + 1))


def _adapters(spec: TokenServiceSpec) -> Iterator[str]:
    """The model itself takes a place of its own: without one its requests and an adapter's would wait for each other
    to leave the batch."""
    adapters, room = spec.model.adapters, spec.model.runtime_adapters
    if room is not None:
        yield "--enable-lora"
        yield from ("--max-loras-per-batch", str(room.max_active + 1))
        yield from ("--max-lora-rank", str(room.max_rank))
        yield from ("--lora-target-modules", "all")
        return
    if not adapters:
        return
    yield "--enable-lora"
    yield from ("--max-loras-per-batch", str(min(len(adapters), MAX_LORAS_IN_BATCH) + 1))
    yield "--lora-paths"
    for adapter, source in zip(adapters, adapter_sources(spec.model), strict=True):
        yield f"{adapter.name}={source.path}"


def _bounds(bounds: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f"{bound:g}" for bound in bounds)


_MULTI = "replicas of several processes are planned by the operator"
_RENAMED = "SGLang 0.5.18 gave it another name: use {}"

VOCABULARY = Vocabulary(
    engine="SGLang",
    rendered={
        "--model-path": "spec.model.uri",
        "--model": "spec.model.uri",
        "--load-format": "spec.model.uri",
        "--download-dir": "spec.model.uri",
        "--revision": "spec.model.revision",
        "--served-model-name": "spec.model.servedName",
        "--enable-lora": "spec.model.adapters",
        "--lora-paths": "spec.model.adapters",
        "--max-loras-per-batch": "spec.model.adapters",
        "--host": "the operator",
        "--port": "the operator",
        "--tp-size": "spec.engine.tensorParallelSize",
        "--tp": "spec.engine.tensorParallelSize",
        "--tensor-parallel-size": "spec.engine.tensorParallelSize",
        "--pp-size": "spec.engine.pipelineParallelSize",
        "--pipeline-parallel-size": "spec.engine.pipelineParallelSize",
        "--nnodes": "spec.engine.pipelineParallelSize",
        "--node-rank": "spec.engine.pipelineParallelSize",
        "--dist-init-addr": "spec.engine.pipelineParallelSize",
        "--nccl-init-addr": "spec.engine.pipelineParallelSize",
        "--quantization": "spec.engine.quantization",
        "--kv-cache-dtype": "spec.engine.kvCacheDtype",
        "--context-length": "spec.engine.maxModelLen",
        "--max-running-requests": "spec.engine.maxNumSeqs",
        "--chunked-prefill-size": "maxNumBatchedTokens of the CapacityProfile",
        "--disable-radix-cache": "spec.engine.prefixCaching",
        "--speculative-algorithm": "spec.engine.speculative",
        "--speculative-draft-model-path": "spec.engine.speculative",
        "--speculative-draft-model-revision": "spec.engine.speculative",
        "--speculative-num-steps": "spec.engine.speculative",
        "--speculative-eagle-topk": "spec.engine.speculative",
        "--speculative-num-draft-tokens": "spec.engine.speculative",
        "--enable-metrics": "the operator, which decides on metrics",
        "--bucket-time-to-first-token": "spec.objectives",
        "--bucket-inter-token-latency": "spec.objectives",
    },
    refused={
        "--api-key": "arguments can be read by anyone who may read pods, and keys end at the gateway",
        "--admin-api-key": "arguments can be read by anyone who may read pods, and keys end at the gateway",
        "--trust-remote-code": "it runs code from the model's repository",
        "--config": "it hides arguments in a file",
        "--custom-sigquit-handler": "it loads code of the user's choice",
        "--tool-server": "it calls other servers for requests",
        "--log-requests": "it writes prompts to the log",
        "--crash-dump-folder": "it writes prompts to disk",
        "--grpc-mode": "engines are reached over HTTP",
        "--fastapi-root-path": "engines are reached by their Service",
        "--otlp-traces-endpoint": "the network policy lets engines reach their model's source only",
        "--dp-size": _MULTI,
        "--dp": _MULTI,
        "--data-parallel-size": _MULTI,
        "--disaggregation-mode": _MULTI,
        "--cuda-graph-bs": _RENAMED.format("--cuda-graph-bs-decode"),
        "--cuda-graph-max-bs": _RENAMED.format("--cuda-graph-max-bs-decode"),
        "--disable-cuda-graph": _RENAMED.format("--cuda-graph-backend-decode=disabled"),
    },
    switches=frozenset(
        {
            "--disable-custom-all-reduce",
            "--disable-overlap-schedule",
            "--enable-cache-report",
            "--enable-mixed-chunk",
            "--enable-multimodal",
            "--enable-p2p-check",
            "--enable-priority-scheduling",
            "--enable-torch-compile",
            "--sleep-on-idle",
        }
    ),
    valued=frozenset(
        {
            "--attention-backend",
            "--chat-template",
            "--cuda-graph-backend-decode",
            "--cuda-graph-backend-prefill",
            "--cuda-graph-max-bs-decode",
            "--decode-attention-backend",
            "--dtype",
            "--ep-size",
            "--hf-chat-template-name",
            "--json-model-override-args",
            "--log-level",
            "--log-level-http",
            "--lora-backend",
            "--max-lora-rank",
            "--max-prefill-tokens",
            "--max-queued-requests",
            "--max-total-tokens",
            "--mem-fraction-static",
            "--model-impl",
            "--moe-runner-backend",
            "--page-size",
            "--prefill-attention-backend",
            "--random-seed",
            "--reasoning-parser",
            "--sampling-backend",
            "--sampling-defaults",
            "--schedule-conservativeness",
            "--schedule-policy",
            "--stream-interval",
            "--tool-call-parser",
            "--watchdog-timeout",
        }
    ),
    listed=frozenset({"--cuda-graph-bs-decode", "--lora-target-modules"}),
    roomy=frozenset({"--lora-target-modules", "--max-loaded-loras", "--max-lora-rank"}),
    environment=SHARED_ENVIRONMENT
    | {
        "SGLANG_ENABLE_JIT_DEEPGEMM",
        "SGLANG_ENABLE_TORCH_COMPILE",
        "SGLANG_MOE_PADDING",
        "SGLANG_TIMEOUT_KEEP_ALIVE",
        "SGLANG_USE_AITER",
    },
)
