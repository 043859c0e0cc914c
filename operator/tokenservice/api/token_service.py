"""TokenService: which tokens are owed. Namespaced, short name `tsvc`.

Writing one gives no more than running its model: there is no pod template, no host access, no toleration.
"""

from __future__ import annotations

from enum import StrEnum
from math import inf
from typing import Any, ClassVar

from tokenservice.api.base import REQUIRED, ApiModel, Rule, field, matches
from tokenservice.api.conditions import CONDITIONS_SCHEMA, Condition, initial_conditions
from tokenservice.api.quantity import (
    NUMBER_OR_TEXT,
    SHARE_OF_CAPACITY,
    amount_rule,
    duration_seconds,
    latency_rules,
    percentile_fraction,
)

_ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
_KEYED: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}


_URI = matches(
    r"^(hf|oci|s3|pvc)://[A-Za-z0-9][A-Za-z0-9._/:@+-]*$",
    "unknown source: write hf://ORGANISATION/MODEL, oci://IMAGE, s3://BUCKET/PATH or pvc://CLAIM/PATH",
)
_DIGEST = matches(r"^sha256:[0-9a-f]{64}$", "malformed digest: write sha256: and 64 lower-case hexadecimal digits")
_IMAGE = matches(
    r"^[^@]+@sha256:[0-9a-f]{64}$",
    "pin the image by digest: write IMAGE@sha256: and 64 lower-case hexadecimal digits",
)
_MODEL_NAME = matches(
    r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$",
    "not a model name: use letters, digits and . _ / - between them, for example chat-70b",
)
_REVISION = matches(
    r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", "not a revision: write a branch, a tag or a commit, for example main"
)


def _name_of(kind: str) -> Rule:
    return matches(
        r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$",
        f"not the name of a {kind}: use lower-case letters, digits, - and . between them",
    )


def _key_of(kind: str) -> Rule:
    return matches(r"^[A-Za-z0-9._-]+$", f"not a key of a {kind}: use letters, digits and . _ -")


_SIGNATURE = matches(
    r"^\.?[A-Za-z0-9_-][A-Za-z0-9._-]*(/\.?[A-Za-z0-9_-][A-Za-z0-9._-]*)*$",
    "not a path inside the model's folder: write a name such as model.sig",
)
_WORD = matches(r"^[!-#%-~]+$", "one word without spaces or $, for example release@example.com")
_ISSUER = matches(r"^https://[!-#%-~]+$", "write the URL of an OpenID Connect issuer, with https://")
_VARIABLE = matches(
    r"^[A-Z_][A-Z0-9_]*$", "not an environment variable: use capitals, digits and _, for example NCCL_DEBUG"
)


def _names(items: list[dict[str, Any]]) -> set[str]:
    return {item["name"] for item in items}


def _guarantee_has_volume(spec: dict[str, Any]) -> bool:
    volume = spec["objectives"].get("volume", {})
    return spec["tier"] != "Guaranteed" or "guaranteedTokensPerSecond" in volume


class EngineName(StrEnum):
    VLLM = "vLLM"
    SGLANG = "SGLang"
    AUTO = "Auto"


class Quantization(StrEnum):
    """Weight format; `Model` serves the checkpoint as it is."""

    MODEL = "Model"
    FP8 = "FP8"
    AWQ = "AWQ"
    GPTQ = "GPTQ"
    MXFP4 = "MXFP4"


class KVCacheDtype(StrEnum):
    AUTO = "Auto"
    FP8 = "FP8"


class SpeculativeMethod(StrEnum):
    NGRAM = "NGram"
    DRAFT_MODEL = "DraftModel"
    EAGLE3 = "Eagle3"


class Tier(StrEnum):
    GUARANTEED = "Guaranteed"
    ELASTIC = "Elastic"
    SPOT = "Spot"


class KeyKind(StrEnum):
    """Where a public key stands."""

    CONFIG_MAP = "ConfigMap"
    SECRET = "Secret"  # noqa: S105  # pragma: allowlist secret


class Rollback(StrEnum):
    """What becomes of a change that does not come up."""

    MANUAL = "Manual"
    AUTOMATIC = "Automatic"


class Mode(StrEnum):
    OBSERVE = "Observe"
    RECOMMEND = "Recommend"
    ACT = "Act"


class SecretReference(ApiModel):
    """A key of a Secret in the same namespace; mounted into the engine, never read by the operator."""

    name: str = field(REQUIRED, "Name of the Secret", min_length=1, max_length=253, rules=(_name_of("Secret"),))
    key: str = field("token", "Key in the Secret", min_length=1, max_length=253, rules=(_key_of("Secret"),))


class PublicKeyReference(ApiModel):
    """A public key in the same namespace, in PEM; mounted into the verifier, never read by the operator."""

    kind: KeyKind = field(KeyKind.CONFIG_MAP, "What holds the key: ConfigMap or Secret")
    name: str = field(
        REQUIRED, "Name of the object", min_length=1, max_length=253, rules=(_name_of("ConfigMap or Secret"),)
    )
    key: str = field(
        "model.pub", "Key in the object", min_length=1, max_length=253, rules=(_key_of("ConfigMap or Secret"),)
    )


class Verification(ApiModel):
    """Whose signature the model must carry: of a key, or of an identity that an issuer vouched for."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.publicKey) != has(self.identity)",
            "say who must have signed: either publicKey, or identity and issuer",
            check=lambda it: ("publicKey" in it) != ("identity" in it),
        ),
        Rule(
            "has(self.identity) == has(self.issuer)",
            "identity and issuer belong together: an identity counts only as its issuer's word",
            check=lambda it: ("identity" in it) == ("issuer" in it),
        ),
    )

    public_key: PublicKeyReference | None = field(
        None, "Public key that the signature must verify with; needs no network", default_text="identity and issuer"
    )
    identity: str | None = field(
        None,
        "Who must have signed, by Sigstore: an e-mail address or the URL of a workflow",
        default_text="publicKey",
        min_length=1,
        max_length=512,
        rules=(_WORD,),
    )
    issuer: str | None = field(
        None, "OpenID Connect issuer of the identity", default_text="publicKey", max_length=512, rules=(_ISSUER,)
    )
    signature: str = field(
        "model.sig", "File of the signature, inside the model's folder", max_length=255, rules=(_SIGNATURE,)
    )
    allow_pickle: bool = field(
        False, "Let weights be in formats that can run code when they are read (.bin, .pt, .pkl), if they are signed"
    )


class Architecture(ApiModel):
    """Shape of a model that the operator does not know; enough for a roofline estimate."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.heads % self.kvHeads == 0",
            "heads is no multiple of kvHeads: give num_attention_heads and num_key_value_heads of the model's"
            " config.json",
            ".kvHeads",
            check=lambda it: it["heads"] % it["kvHeads"] == 0,
        ),
        Rule(
            "!has(self.activeParameters) || self.activeParameters <= self.parameters",
            "activeParameters is above parameters: one token touches at most all weights, lower it or leave it out",
            ".activeParameters",
            check=lambda it: it.get("activeParameters", 0) <= it["parameters"],
        ),
    )

    parameters: int = field(REQUIRED, "Weights of the model", unit="parameters", ge=1, le=10**14)
    active_parameters: int | None = field(
        None,
        "Weights that one token touches, for mixtures of experts",
        unit="parameters",
        default_text="parameters",
        ge=1,
        le=10**14,
    )
    layers: int = field(REQUIRED, "Transformer layers", unit="layers", ge=1, le=10000)
    heads: int = field(REQUIRED, "Attention heads; tensorParallelSize divides them", unit="heads", ge=1, le=10000)
    kv_heads: int = field(REQUIRED, "Key-value heads", unit="heads", ge=1, le=10000)
    head_dim: int = field(REQUIRED, "Width of a head", unit="elements", ge=1, le=100000)
    dtype: str = field(
        "bf16",
        "Number format of the checkpoint",
        max_length=16,
        schema={"enum": ["bf16", "fp8", "int8", "int4", "mxfp4"]},
    )


class Adapter(ApiModel):
    """A LoRA adapter served under a name of its own."""

    name: str = field(
        REQUIRED,
        "Name that requests use; with SGLang after the model's name and a colon, for example chat:legal",
        min_length=1,
        max_length=128,
        rules=(_MODEL_NAME,),
    )
    uri: str = field(REQUIRED, "Where the adapter is", max_length=512, rules=(_URI,))


class RuntimeAdapters(ApiModel):
    """Room for adapters that engines load while they run; a change of it replaces replicas."""

    max_active: int = field(
        8,
        "Adapters active in one batch; memory for so many is taken from the KV cache when an engine starts",
        unit="adapters",
        ge=1,
        le=64,
    )
    max_rank: int = field(16, "Highest rank that an adapter may have", unit="rank", ge=1, le=512)


class ModelSource(ApiModel):
    """The model and where it comes from."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.servedName) == has(oldSelf.servedName)"
            " && (!has(self.servedName) || self.servedName == oldSelf.servedName)",
            "servedName is immutable, clients and metrics use it: put it back and create another TokenService",
            ".servedName",
        ),
        Rule(
            "!has(self.servedName) || !has(self.adapters) || !self.adapters.exists(a, a.name == self.servedName)",
            "an adapter has the name of the model: requests could not tell them apart, rename one",
            ".adapters",
            check=lambda model: model.get("servedName") not in _names(model.get("adapters", [])),
        ),
    )

    uri: str = field(
        REQUIRED,
        "Where the model is: hf://ORGANISATION/MODEL, oci://IMAGE, s3://BUCKET/PATH or pvc://CLAIM/PATH"
        " (mounted read-only)",
        max_length=512,
        rules=(_URI,),
    )
    revision: str | None = field(
        None,
        "Branch, tag or commit of the source",
        default_text="the source's own",
        max_length=128,
        rules=(_REVISION,),
    )
    digest: str | None = field(
        None,
        "sha256 digest that the source must have",
        default_text="not checked",
        max_length=71,
        rules=(_DIGEST,),
    )
    served_name: str | None = field(
        None,
        "Model name that requests use; immutable, unique in the namespace, adapters included",
        default_text="the name of the TokenService",
        min_length=1,
        max_length=128,
        rules=(_MODEL_NAME,),
    )
    credentials: SecretReference | None = field(None, "Secret with the source's token", default_text="anonymous access")
    architecture: Architecture | None = field(
        None, "Shape of the model, for models that have no CapacityProfile", default_text="looked up by uri"
    )
    verification: Verification | None = field(
        None,
        "Signature (OpenSSF Model Signing) that is verified in each pod before the engine starts; hf://, oci:// and"
        " pvc:// sources",
        default_text="not verified",
    )
    adapters: tuple[Adapter, ...] = field(
        (),
        "LoRA adapters to serve beside the model",
        max_length=64,
        schema=_KEYED,
    )
    runtime_adapters: RuntimeAdapters | None = field(
        None,
        "Load adapters into running engines: adding, changing or removing one replaces no replica",
        default_text="adapters are loaded when an engine starts, and a change of them replaces replicas",
    )


class Speculative(ApiModel):
    """Speculative decoding."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.method == 'NGram' || has(self.draftModel)",
            "this method drafts with a second model: name it in draftModel, or use method NGram",
            ".draftModel",
            check=lambda it: it["method"] == "NGram" or "draftModel" in it,
        ),
    )

    method: SpeculativeMethod = field(REQUIRED, "How drafts are made: NGram, DraftModel or Eagle3")
    draft_model: str | None = field(None, "Source of the draft model", max_length=512, rules=(_URI,))
    tokens: int = field(3, "Tokens drafted at a time", unit="tokens", ge=1, le=16)


class EnvVar(ApiModel):
    """One environment variable of the engine, from the allow-list of its engine."""

    name: str = field(REQUIRED, "Name", min_length=1, max_length=128, rules=(_VARIABLE,))
    value: str = field(REQUIRED, "Value", max_length=1024)


class Resources(ApiModel):
    """What each pod of a replica needs beside accelerators; requests and limits are equal for memory."""

    cpu: str | None = field(
        None,
        "CPU of a pod",
        unit="cores, as a quantity",
        default_text="4 per accelerator",
        max_length=16,
        schema=NUMBER_OR_TEXT,
        rules=(amount_rule("4"),),
    )
    memory: str | None = field(
        None,
        "Host memory of a pod",
        unit="bytes, as a quantity",
        default_text="16Gi and half the size of the weights",
        max_length=16,
        schema=NUMBER_OR_TEXT,
        rules=(amount_rule("64Gi"),),
    )
    shared_memory: str | None = field(
        None,
        "Size of /dev/shm",
        unit="bytes, as a quantity",
        default_text="2Gi per accelerator",
        max_length=16,
        schema=NUMBER_OR_TEXT,
        rules=(amount_rule("8Gi"),),
    )
    ephemeral_storage: str | None = field(
        None,
        "Local disk of a pod",
        unit="bytes, as a quantity",
        default_text="20Gi and 1.2 times the weights",
        max_length=16,
        schema=NUMBER_OR_TEXT,
        rules=(amount_rule("200Gi"),),
    )


class Engine(ApiModel):
    """How the model is run. Leave fields out unless you have measured better."""

    name: EngineName = field(
        EngineName.AUTO, "vLLM, SGLang, or Auto for the cheaper one with a profile; Auto takes vLLM for adapters"
    )
    image: str | None = field(
        None,
        "Engine image, by digest and from the administrator's allow-list",
        default_text="the chart's image for the engine",
        max_length=512,
        rules=(_IMAGE,),
    )
    tensor_parallel_size: int | None = field(
        None,
        "Accelerators of one replica",
        unit="accelerators",
        default_text="the cheapest that meets the objectives",
        ge=1,
        le=1024,
    )
    pipeline_parallel_size: int = field(
        1, "Pipeline stages of one replica; a pod each where no node holds them all", unit="stages", ge=1, le=64
    )
    quantization: Quantization = field(Quantization.MODEL, "Weight format; Model serves the checkpoint as it is")
    kv_cache_dtype: KVCacheDtype = field(KVCacheDtype.AUTO, "Number format of the KV cache")
    speculative: Speculative | None = field(None, "Speculative decoding", default_text="off")
    prefix_caching: bool = field(True, "Reuse the KV cache of equal prompt prefixes")
    max_model_len: int | None = field(
        None,
        "Longest prompt and answer together",
        unit="tokens",
        default_text="the model's own, or as much of it as the accelerators' memory holds",
        ge=16,
        le=10**8,
    )
    max_num_seqs: int | None = field(
        None, "Sequences that run at once", unit="sequences", default_text="the profile's", ge=1, le=65536
    )
    extra_args: tuple[str, ...] = field(
        (),
        "Further engine arguments, from the allow-list of the engine",
        max_length=32,
        schema=_ATOMIC | {"items": {"type": "string", "maxLength": 512}},
    )
    env: tuple[EnvVar, ...] = field(
        (),
        "Further environment variables, from the allow-list of the engine",
        max_length=32,
        schema=_KEYED,
    )
    resources: Resources = field(Resources(), "CPU, memory and disk of a replica")


class Latency(ApiModel):
    """A percentile of a latency and its bound."""

    percentile: str = field(
        "p99",
        "Percentile of requests that must meet the target",
        max_length=4,
        schema={"enum": ["p50", "p90", "p95", "p99"]},
    )
    target: str = field(
        REQUIRED,
        "Upper bound",
        unit="duration with ms or s, for example 2s",
        max_length=16,
        schema=NUMBER_OR_TEXT,
        rules=latency_rules("500ms"),
    )

    @property
    def seconds(self) -> float:
        return duration_seconds(self.target)

    @property
    def fraction(self) -> float:
        return percentile_fraction(self.percentile)


class Volume(ApiModel):
    """How many tokens are owed; output tokens."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.guaranteedTokensPerSecond) || !has(self.maxTokensPerSecond)"
            " || self.guaranteedTokensPerSecond <= self.maxTokensPerSecond",
            "guaranteedTokensPerSecond is above maxTokensPerSecond: lower it or raise the maximum",
            ".guaranteedTokensPerSecond",
            check=lambda it: it.get("guaranteedTokensPerSecond", 0) <= it.get("maxTokensPerSecond", inf),
        ),
    )

    guaranteed_tokens_per_second: float | None = field(
        None, "Output that capacity is always kept for", unit="output tokens per second", gt=0, le=1e9
    )
    max_tokens_per_second: float | None = field(
        None,
        "Output beyond which nothing is promised",
        unit="output tokens per second",
        default_text="no bound",
        gt=0,
        le=1e9,
    )


class Objectives(ApiModel):
    """What is promised."""

    time_to_first_token: Latency = field(
        Latency(target="2s"), "Bound on the time to the first token", default_text="p99 within 2s"
    )
    time_per_output_token: Latency = field(
        Latency(target="200ms"),
        "Bound on the mean time between output tokens of a request",
        default_text="p99 within 200ms",
    )
    volume: Volume | None = field(None, "How many output tokens are owed", default_text="as many as capacity allows")
    max_cost_per_million_tokens: float | None = field(
        None,
        "Highest acceptable cost of output",
        unit="US dollars per million output tokens",
        default_text="no bound",
        gt=0,
        le=1e6,
    )


class Scaling(ApiModel):
    """Bounds of automatic scaling."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "minReplicas is above maxReplicas: lower it or raise maxReplicas",
            ".minReplicas",
            check=lambda it: it["minReplicas"] <= it["maxReplicas"],
        ),
        Rule(
            "!has(self.standbyReplicas) || !has(self.maxReplicas) || self.standbyReplicas <= self.maxReplicas",
            "standbyReplicas is above maxReplicas: lower it or raise maxReplicas",
            ".standbyReplicas",
            check=lambda it: it["standbyReplicas"] <= it["maxReplicas"],
        ),
    )

    min_replicas: int = field(1, "Fewest replicas", unit="replicas", ge=1, le=10000)
    max_replicas: int = field(64, "Most replicas", unit="replicas", ge=1, le=10000)
    target_utilization: float | None = field(
        None,
        "Share of the capacity at the objectives that demand should fill",
        unit="ratio",
        default_text="the TokenFleet's",
        rules=(SHARE_OF_CAPACITY,),
    )
    standby_replicas: int = field(0, "Warm replicas beyond what demand needs", unit="replicas", ge=0, le=1000)
    warm_nodes: int = field(
        0,
        "Nodes, of those where the next replicas would go, that hold the engine's image and oci:// models ready",
        unit="nodes",
        ge=0,
        le=64,
    )
    max_request_seconds: int = field(
        300, "Longest request; the grace period of pods follows from it", unit="seconds", ge=1, le=86400
    )
    spot_drain_seconds: int = field(
        10, "How long requests of tier Spot may still run when their pod goes", unit="seconds", ge=0, le=3600
    )


class Residency(ApiModel):
    """Where data may be. A hard rule, not even an objective overrides it."""

    regions: tuple[str, ...] = field(
        REQUIRED,
        "Allowed values of topology.kubernetes.io/region",
        min_length=1,
        max_length=32,
        schema=_ATOMIC | {"items": {"type": "string", "maxLength": 63, "minLength": 1}},
    )


class Placement(ApiModel):
    """Where replicas may run."""

    accelerators: tuple[str, ...] = field(
        (),
        "AcceleratorClasses in order of preference",
        default_text="the cheapest that fits",
        max_length=16,
        schema=_ATOMIC | {"items": {"type": "string", "maxLength": 63, "minLength": 1}},
    )
    regions: tuple[str, ...] = field(
        (),
        "Allowed regions",
        default_text="any",
        max_length=32,
        schema=_ATOMIC | {"items": {"type": "string", "maxLength": 63, "minLength": 1}},
    )
    zones: tuple[str, ...] = field(
        (),
        "Allowed zones",
        default_text="any",
        max_length=32,
        schema=_ATOMIC | {"items": {"type": "string", "maxLength": 63, "minLength": 1}},
    )
    residency: Residency | None = field(None, "Where data may be; a hard rule", default_text="anywhere")


class TokenServiceSpec(ApiModel):
    """The contract."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.tier != 'Guaranteed' || (has(self.objectives.volume)"
            " && has(self.objectives.volume.guaranteedTokensPerSecond))",
            "tier Guaranteed needs objectives.volume.guaranteedTokensPerSecond: say how many output tokens per second"
            " are guaranteed, or choose tier Elastic",
            ".objectives",
            check=_guarantee_has_volume,
        ),
    )

    model: ModelSource = field(REQUIRED, "The model and where it comes from")
    engine: Engine = field(Engine(), "How the model is run")
    objectives: Objectives = field(Objectives(), "What is promised: latency, volume and price")
    tier: Tier = field(Tier.ELASTIC, "What happens when capacity is short: Guaranteed, Elastic or Spot")
    replicas: int | None = field(
        None,
        "A fixed count, for kubectl scale, HPA or KEDA",
        unit="replicas",
        default_text="automatic",
        ge=0,
        le=10000,
    )
    scaling: Scaling = field(Scaling(), "Bounds of automatic scaling")
    placement: Placement = field(Placement(), "Where replicas may run")
    mode: Mode = field(Mode.ACT, "Observe reports, Recommend also decides, Act carries decisions out")
    paused: bool = field(False, "Leave everything of this service as it is")
    rollback: Rollback = field(
        Rollback.MANUAL,
        "What becomes of a change of engines that does not come up; the last good version serves on in any case."
        " Manual keeps trying, Automatic goes back to the last good version until the spec changes",
    )


class VariantStatus(ApiModel):
    """Replicas of one variant."""

    name: str = field(REQUIRED, "Accelerator, engine, TP and precision in one word", max_length=128)
    accelerator: str = field(REQUIRED, "AcceleratorClass", max_length=63)
    engine: str = field(REQUIRED, "Engine", max_length=16)
    tensor_parallel_size: int = field(REQUIRED, "Accelerators of one replica", unit="accelerators")
    precision: str = field(REQUIRED, "Number format of the weights", max_length=16)
    replicas: int = field(REQUIRED, "Replicas wanted", unit="replicas")
    ready_replicas: int = field(REQUIRED, "Replicas that serve", unit="replicas")
    provenance: str | None = field(
        None,
        "How far its figures can be trusted: Measured, Calibrated or Roofline, an estimate that nobody measured",
        max_length=16,
    )


class AdapterStatus(ApiModel):
    """One adapter of those that engines load while they run."""

    name: str = field(REQUIRED, "Name that requests use", max_length=128)
    state: str = field(
        REQUIRED,
        "Ready: every replica that serves has it; Loading; Failed: a replica could not load it; Unknown: no replica"
        " reports",
        max_length=16,
    )
    ready_replicas: int = field(REQUIRED, "Replicas that serve and have it", unit="replicas")
    message: str | None = field(None, "Why it is not Ready, in the words of the engine", max_length=512)


class MeasuredObjectives(ApiModel):
    """What was delivered, at the percentiles of the objectives."""

    time_to_first_token_seconds: float | None = field(None, "Time to first token", unit="seconds")
    time_per_output_token_seconds: float | None = field(None, "Time per output token", unit="seconds")
    summary: str = field("", "Both against their targets", max_length=128)


class PlannedWorkload(ApiModel):
    """What requests are taken to be: measured lengths on a grid of 5 %, or the usual ones before there are any."""

    input_tokens: float = field(REQUIRED, "Mean prompt", unit="tokens")
    output_tokens: float = field(REQUIRED, "Mean answer", unit="tokens")
    cached_share: float = field(REQUIRED, "Share of prompts found in the prefix cache", unit="ratio")


class Loading(ApiModel):
    """Replicas on their way."""

    replicas: int = field(REQUIRED, "Replicas that start", unit="replicas")
    oldest_seconds: float = field(REQUIRED, "Age of the oldest of them", unit="seconds")
    expected_seconds: float = field(REQUIRED, "How long a start should take", unit="seconds")


class Decision(ApiModel):
    """The last decision and the numbers behind it."""

    reason: str = field(REQUIRED, "CamelCase reason", max_length=64)
    message: str = field(REQUIRED, "One sentence", max_length=1024)
    inputs: dict[str, str] = field(
        {},
        "The numbers that it rests on, by name",
        max_length=32,
        schema={"additionalProperties": {"type": "string", "maxLength": 256}},
    )
    rejected: tuple[str, ...] = field(
        (),
        "Alternatives and why not",
        max_length=16,
        schema=_ATOMIC | {"items": {"type": "string", "maxLength": 512}},
    )


class TokenServiceStatus(ApiModel):
    """What is there."""

    observed_generation: int | None = field(None, "Generation of the spec that the status speaks of", unit="generation")
    conditions: tuple[Condition, ...] = field(
        (),
        "Ready, Reconciling, Stalled, ObjectivesMet, CapacityAvailable, MetricsAvailable, ModelVerified",
        default_text="Ready is Unknown",
        max_length=16,
        schema=CONDITIONS_SCHEMA | {"default": initial_conditions()},
    )
    endpoint: str | None = field(None, "URL of the OpenAI-compatible API inside the cluster", max_length=512)
    replicas: int | None = field(None, "Replicas that exist", unit="replicas")
    ready_replicas: int | None = field(None, "Replicas that serve", unit="replicas")
    desired_replicas: int | None = field(None, "Replicas wanted", unit="replicas")
    replica_summary: str | None = field(None, "Ready and wanted replicas, as 2/3", max_length=32)
    variant_summary: str | None = field(None, "Variants in use", max_length=256)
    selector: str | None = field(None, "Label selector of the pods, for the scale subresource", max_length=512)
    variants: tuple[VariantStatus, ...] = field((), "Replicas by variant", max_length=16, schema=_ATOMIC)
    adapters: tuple[AdapterStatus, ...] = field(
        (), "Adapters, where spec.model.runtimeAdapters is set", max_length=64, schema=_ATOMIC
    )
    warm_nodes: tuple[str, ...] = field(
        (),
        "Nodes that hold the images of the next replicas, of those that spec.scaling.warmNodes asks for",
        max_length=64,
        schema=_ATOMIC | {"items": {"type": "string", "maxLength": 253}},
    )
    tokens_per_second: float | None = field(None, "Output delivered", unit="output tokens per second")
    requests_per_second: float | None = field(None, "Requests arriving", unit="requests per second")
    utilization: float | None = field(None, "Demand as a share of the capacity at the objectives", unit="ratio")
    objectives: MeasuredObjectives | None = field(None, "Measured latency")
    cost_per_million_tokens: float | None = field(
        None, "Accelerator cost of the output delivered", unit="US dollars per million output tokens"
    )
    joules_per_token: float | None = field(
        None, "Energy, estimated from the class's idle and busy watts", unit="joules per output token"
    )
    forecast: str | None = field(None, "Demand expected when a replica started now would serve", max_length=256)
    workload: PlannedWorkload | None = field(
        None, "Requests that the service is planned for; while metrics are missing, as last measured"
    )
    capacity_factor: float | None = field(
        None,
        "What objectives kept and missed have taught of the modelled capacity; a restart goes on from it",
        unit="ratio",
        default_text="nothing was learned yet",
    )
    overrun_share: float | None = field(
        None,
        "Of the misses that the objectives allow, what demand that came before its replicas took over the last hours; "
        "the capacity factor spends the rest",
        unit="ratio",
        default_text="nothing was learned yet",
    )
    loading: Loading | None = field(None, "Replicas on their way")
    decision: Decision | None = field(None, "The last decision and the numbers behind it")
