"""What the operator's pods and CapacityProfiles say to the thing that plays the engine.

The only module that knows their field names. Everything is read from raw JSON: typed models of the Kubernetes client
cost ten times the CPU for the few fields needed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from tokenservice.core.step import StepModel
from tokenservice.simulate.engine import EngineLimits

SERVICE_LABEL = "taas.dev/service"
VARIANT_LABEL = "taas.dev/variant"
ENGINE_LABEL = "taas.dev/engine"
PROFILE_ANNOTATION = "taas.dev/profile"
READY_ANNOTATION = "testbed.taas.dev/ready"
DRAINED_ANNOTATION = "testbed.taas.dev/drained"
GROUP_SET_LABEL = "leaderworkerset.sigs.k8s.io/name"
GROUP_INDEX_LABEL = "leaderworkerset.sigs.k8s.io/group-index"
GROUP_SIZE_ANNOTATION = "leaderworkerset.sigs.k8s.io/size"
CONTAINER = "engine"
LOADER = "load-adapters"
ADAPTER_LIST = "adapter-list"
"""The container that loads adapters while the engine runs, and the volume that it finds their list in."""


DEFAULT_MAX_MODEL_LEN = 32_768
DEFAULT_GRACE_SECONDS = 30.0

Json = Mapping[str, Any]


class Dialect(StrEnum):
    """Which engine's manners and metrics a pod has."""

    VLLM = "vllm"
    SGLANG = "sglang"


@dataclass(frozen=True, slots=True)
class PodKey:
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Deletion:
    """A pod was told to go: it is killed `grace_seconds` after that, at `kill_at_epoch_s` on the wall clock."""

    grace_seconds: float
    kill_at_epoch_s: float


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """What the engine's command line sets; None where it is left to the engine."""

    model_name: str = "model"
    tensor_parallel_size: int = 1
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_model_len: int | None = None
    shutdown_timeout_seconds: float = 0.0
    caches_prefixes: bool = True
    forces_usage: bool = False
    ttft_bounds: tuple[float, ...] | None = None
    token_gap_bounds: tuple[float, ...] | None = None
    max_lora_rank: int | None = None


@dataclass(frozen=True, slots=True)
class EnginePod:
    """One engine pod as the API server shows it; one that does not serve only works for another.

    `adapter_list` is the ConfigMap that a loader in it reads. A replica of several pods is a `group` of `group_size` in
    its namespace.
    """

    key: PodKey
    uid: str
    service: str
    variant: str
    dialect: Dialect
    profile: str
    command: EngineCommand
    node: str = ""
    running: bool = False
    finished: bool = False
    ready_reported: bool = False
    drained_reported: bool = False
    serves: bool = True
    prestop_seconds: float = 0.0
    deletion: Deletion | None = None
    adapter_list: str = ""
    group: str = ""
    group_size: int = 1


@dataclass(frozen=True, slots=True)
class Profile:
    """How fast the engine is: the parts of a CapacityProfile that playing it needs."""

    step: StepModel
    kv_capacity_tokens: int
    cold_start_seconds: float
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192

    def limits(self, command: EngineCommand) -> EngineLimits:
        """The command line wins over the profile."""
        seqs = command.max_num_seqs or self.max_num_seqs
        tokens = command.max_num_batched_tokens or self.max_num_batched_tokens
        return EngineLimits(seqs, max(seqs, tokens), self.kv_capacity_tokens)

    def max_model_len(self, command: EngineCommand) -> int:
        return min(command.max_model_len or DEFAULT_MAX_MODEL_LEN, self.kv_capacity_tokens)


def is_engine_pod(pod: Json) -> bool:
    return SERVICE_LABEL in (pod["metadata"].get("labels") or {})


def read_pod(pod: Json) -> EnginePod:
    """The engine pod in a Pod object."""
    metadata, spec = pod["metadata"], pod.get("spec") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    phase = (pod.get("status") or {}).get("phase", "")
    container = _engine_container(spec.get("containers") or [])
    words = [*container.get("command", ()), *container.get("args", ())]
    dialect = _dialect(labels.get(ENGINE_LABEL, ""), words)
    return EnginePod(
        key=PodKey(metadata["namespace"], metadata["name"]),
        uid=metadata.get("uid", ""),
        service=labels.get(SERVICE_LABEL, ""),
        variant=labels.get(VARIANT_LABEL, ""),
        dialect=dialect,
        profile=annotations.get(PROFILE_ANNOTATION, ""),
        command=read_command(words, dialect),
        node=spec.get("nodeName", ""),
        running=phase == "Running" and bool(spec.get("nodeName")),
        finished=phase in ("Succeeded", "Failed"),
        ready_reported=annotations.get(READY_ANNOTATION) == "true",
        drained_reported=annotations.get(DRAINED_ANNOTATION) == "true",
        serves=bool(container.get("ports")),
        prestop_seconds=_prestop_seconds(container),
        deletion=_deletion(metadata),
        adapter_list=_adapter_list(spec),
        group=f"{labels.get(GROUP_SET_LABEL, '')}/{labels.get(GROUP_INDEX_LABEL, '')}".strip("/"),
        group_size=int(annotations.get(GROUP_SIZE_ANNOTATION, 1)),
    )


def read_profile(profile: Json) -> Profile:
    """The figures of a CapacityProfile object."""
    spec = profile["spec"]
    step = spec["step"]
    return Profile(
        step=StepModel(step["alphaMs"], step["betaMs"], step["kappaMs"], step["deltaMs"]),
        kv_capacity_tokens=int(spec["kvCapacityTokens"]),
        cold_start_seconds=float(spec["coldStartSeconds"]),
        max_num_seqs=int(spec.get("maxNumSeqs", 256)),
        max_num_batched_tokens=int(spec.get("maxNumBatchedTokens", 8192)),
    )


_FLAGS = {
    Dialect.VLLM: {
        "max_num_seqs": ("--max-num-seqs",),
        "max_num_batched_tokens": ("--max-num-batched-tokens",),
        "max_model_len": ("--max-model-len",),
        "max_lora_rank": ("--max-lora-rank",),
        "tensor_parallel_size": ("--tensor-parallel-size", "-tp"),
    },
    Dialect.SGLANG: {
        "max_num_seqs": ("--max-running-requests",),
        "max_num_batched_tokens": ("--chunked-prefill-size",),
        "max_model_len": ("--context-length",),
        "max_lora_rank": ("--max-lora-rank",),
        "tensor_parallel_size": ("--tp-size", "--tensor-parallel-size", "--tp"),
    },
}


def read_command(words: Sequence[str], dialect: Dialect) -> EngineCommand:
    """The settings in `vllm serve MODEL --flag value …` or `python3 -m sglang.launch_server --flag=value …`."""
    flags = _flags(words)

    def number(field: str) -> int | None:
        given = [value for name in _FLAGS[dialect][field] for value in flags.get(name, ())]
        return _integer(given[0]) if given else None

    names = [value for name in ("--served-model-name", "--model-path", "--model") for value in flags.get(name, ())]
    ttft, token_gap = _vllm_bounds(flags) if dialect == Dialect.VLLM else _sglang_bounds(flags)
    return EngineCommand(
        model_name=(names or [_positional_model(words) or "model"])[0],
        tensor_parallel_size=number("tensor_parallel_size") or 1,
        max_num_seqs=number("max_num_seqs"),
        max_num_batched_tokens=number("max_num_batched_tokens"),
        max_model_len=number("max_model_len") if flags.get("--max-model-len") != ["auto"] else None,
        shutdown_timeout_seconds=float(flags.get("--shutdown-timeout", ["0"])[0]),
        caches_prefixes=not {"--no-enable-prefix-caching", "--disable-radix-cache"} & set(flags),
        forces_usage="--enable-force-include-usage" in flags,
        ttft_bounds=ttft,
        token_gap_bounds=token_gap,
        max_lora_rank=number("max_lora_rank") if "--enable-lora" in flags else None,
    )


def _flags(words: Sequence[str]) -> dict[str, list[str]]:
    """The values of `--a b`, `--a b c`, `--a=b` and bare `--a`, which has none."""
    flags: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("-"):
            name, equals, value = word.partition("=")
            values = flags[name] = [value] if equals else []
        else:
            values.append(word)
    return flags


Bounds = tuple[float, ...] | None


def _vllm_bounds(flags: Mapping[str, Sequence[str]]) -> tuple[Bounds, Bounds]:
    """One JSON object; its family `inter_token_latency` is for the per-request time per token as well."""
    families = json.loads(flags.get("--custom-histogram-buckets", ["{}"])[0])
    return _bounds(families.get("time_to_first_token")), _bounds(families.get("inter_token_latency"))


def _sglang_bounds(flags: Mapping[str, Sequence[str]]) -> tuple[Bounds, Bounds]:
    return _bounds(flags.get("--bucket-time-to-first-token")), _bounds(flags.get("--bucket-inter-token-latency"))


def _bounds(given: Sequence[str | float] | None) -> Bounds:
    return tuple(float(bound) for bound in given) if given else None


def _positional_model(words: Sequence[str]) -> str:
    after_serve = words[words.index("serve") + 1 :] if "serve" in words else []
    return after_serve[0] if after_serve and not after_serve[0].startswith("-") else ""


_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}


def _integer(text: str) -> int:
    """vLLM's human-readable integers: 4096, 4k (4000), 4K (4096)."""
    match = re.fullmatch(r"([\d.]+)([kmgKMG]?)", text)
    if match is None:
        raise ValueError(f"not a number of the engine's command line: {text!r}")
    return int(float(match[1]) * _MULTIPLES[match[2]])


def _dialect(label: str, words: Sequence[str]) -> Dialect:
    if label:
        return Dialect(label.lower())
    return Dialect.SGLANG if any("sglang" in word for word in words) else Dialect.VLLM


def _engine_container(containers: Sequence[Json]) -> Json:
    named = [container for container in containers if container.get("name") == CONTAINER]
    return named[0] if named else (containers[0] if containers else {})


def _adapter_list(spec: Json) -> str:
    loads = any(container["name"] == LOADER for container in spec.get("initContainers") or ())
    volumes = (volume for volume in spec.get("volumes") or () if loads and volume["name"] == ADAPTER_LIST)
    return next((str(volume["configMap"]["name"]) for volume in volumes), "")


def _prestop_seconds(container: Json) -> float:
    """SIGTERM comes after the preStop hook: `sleep: {seconds}` or a command that ends in `sleep N`."""
    hook = (container.get("lifecycle") or {}).get("preStop") or {}
    if "sleep" in hook:
        return float(hook["sleep"].get("seconds", 0))
    match = re.search(r"sleep\s+([\d.]+)", " ".join((hook.get("exec") or {}).get("command", ())))
    return float(match[1]) if match else 0.0


def _deletion(metadata: Json) -> Deletion | None:
    """`deletionTimestamp` is when the grace period ends, in whole seconds rounded down."""
    timestamp = metadata.get("deletionTimestamp")
    if not timestamp:
        return None
    grace = float(metadata.get("deletionGracePeriodSeconds", DEFAULT_GRACE_SECONDS))
    return Deletion(grace, datetime.fromisoformat(timestamp).timestamp() + 1)
