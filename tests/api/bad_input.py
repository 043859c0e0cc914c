"""Bad input, and some that only looks bad: judged here by the API server, there by `tokenservice lint`.

One corpus for both, so that the Python checks beside the CEL rules cannot drift from them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

SERVICE: Json = {
    "apiVersion": "taas.dev/v1alpha1",
    "kind": "TokenService",
    "metadata": {"name": "chat", "namespace": "default"},
    "spec": {"model": {"uri": "hf://Qwen/Qwen3-32B"}},
}
FLEET: Json = {"apiVersion": "taas.dev/v1alpha1", "kind": "TokenFleet", "metadata": {"name": "default"}, "spec": {}}
ACCELERATOR: Json = {
    "apiVersion": "taas.dev/v1alpha1",
    "kind": "AcceleratorClass",
    "metadata": {"name": "x100"},
    "spec": {
        "vendor": "NVIDIA",
        "nodeLabels": {"nvidia.com/gpu.product": "X100"},
        "resourceName": "nvidia.com/gpu",
        "memory": "80Gi",
        "bandwidthGigabytesPerSecond": 3350,
        "denseTeraflops": {"bf16": 989},
        "pricePerHour": 3.13,
        "idleWatts": 80,
        "busyWatts": 700,
    },
}
PROFILE: Json = {
    "apiVersion": "taas.dev/v1alpha1",
    "kind": "CapacityProfile",
    "metadata": {"name": "qwen3-32b-bf16-vllm-x100-tp2"},
    "spec": {
        "model": "Qwen/Qwen3-32B",
        "engine": "vLLM",
        "engineVersion": "0.12.0",
        "accelerator": "x100",
        "tensorParallelSize": 2,
        "precision": "bf16",
        "step": {"alphaMs": 14, "betaMs": 0.06, "kappaMs": 0.05, "deltaMs": 0.05},
        "kvCapacityTokens": 300000,
        "coldStartSeconds": 65,
        "provenance": "Measured",
    },
}


@dataclass(frozen=True)
class Bad:
    """A change to a sound object, the field that must be named, and what must be said of it.

    `server` is what the API server says where its own words differ from ours.
    """

    name: str
    change: Json
    field: str
    says: str
    server: str = ""
    base: Json = field(default_factory=lambda: SERVICE)

    @property
    def resource(self) -> Json:
        return changed(self.base, self.change)


def changed(base: Json, change: Json) -> Json:
    """`base` with `change` merged into it; None removes."""
    result = copy.deepcopy(base)
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = changed(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _spec(**spec: Any) -> Json:
    return {"spec": spec}


def _target(objective: str, target: object) -> Json:
    return _spec(objectives={objective: {"target": target}})


_TTFT, _TPOT = "timeToFirstToken", "timePerOutputToken"
_UNIT = "give a positive number with the unit ms or s"
_IMPOSSIBLE = "no engine answers in less than 1ms"
_SOURCE = "unknown source: write hf://ORGANISATION/MODEL"
_DIGEST = "malformed digest: write sha256: and 64 lower-case hexadecimal digits"
_AMOUNT = "give a positive amount"
_NAME = "metadata.name also names a Service"
_SIGNER = {"identity": "release@example.com", "issuer": "https://issuer.example.com"}
_SHAPE = {"parameters": 32 * 10**9, "layers": 64, "heads": 64, "kvHeads": 8, "headDim": 128}
_GOOD_DIGEST = "sha256:" + "0a" * 32

BAD = (
    Bad("unknown engine", _spec(engine={"name": "vllm"}), "spec.engine.name", "vLLM, SGLang", '"vLLM", "SGLang"'),
    Bad("unknown tier", _spec(tier="Gold"), "spec.tier", "Guaranteed, Elastic", '"Guaranteed", "Elastic"'),
    Bad("unknown mode", _spec(mode="Off"), "spec.mode", "Observe, Recommend", '"Observe", "Recommend"'),
    Bad(
        "minReplicas above maxReplicas",
        _spec(scaling={"minReplicas": 5, "maxReplicas": 2}),
        "spec.scaling.minReplicas",
        "minReplicas is above maxReplicas: lower it or raise maxReplicas",
    ),
    Bad(
        "minReplicas above the default of maxReplicas",
        _spec(scaling={"minReplicas": 65}),
        "spec.scaling.minReplicas",
        "minReplicas is above maxReplicas",
    ),
    Bad(
        "standbyReplicas above maxReplicas",
        _spec(scaling={"standbyReplicas": 5, "maxReplicas": 2}),
        "spec.scaling.standbyReplicas",
        "standbyReplicas is above maxReplicas: lower it or raise maxReplicas",
    ),
    Bad(
        "scaling to zero",
        _spec(scaling={"minReplicas": 0}),
        "spec.scaling.minReplicas",
        "at least 1",
        "greater than or equal to 1",
    ),
    Bad("latency without a unit", _target(_TTFT, 2), f"spec.objectives.{_TTFT}.target", _UNIT),
    Bad("latency in text without a unit", _target(_TTFT, "2"), f"spec.objectives.{_TTFT}.target", _UNIT),
    Bad("latency in minutes", _target(_TTFT, "2m"), f"spec.objectives.{_TTFT}.target", _UNIT),
    Bad("negative latency", _target(_TPOT, "-20ms"), f"spec.objectives.{_TPOT}.target", _UNIT),
    Bad("latency with a space", _target(_TPOT, "20 ms"), f"spec.objectives.{_TPOT}.target", _UNIT),
    Bad("latency with a line break", _target(_TPOT, "20ms\n"), f"spec.objectives.{_TPOT}.target", _UNIT),
    Bad("latency too long to be read", _target(_TPOT, "12345678s"), f"spec.objectives.{_TPOT}.target", _UNIT),
    Bad("zero latency", _target(_TPOT, "0ms"), f"spec.objectives.{_TPOT}.target", _IMPOSSIBLE),
    Bad("zero latency with decimals", _target(_TPOT, "0.0s"), f"spec.objectives.{_TPOT}.target", _IMPOSSIBLE),
    Bad("latency of half a millisecond", _target(_TPOT, "0.5ms"), f"spec.objectives.{_TPOT}.target", _IMPOSSIBLE),
    Bad(
        "latency of microseconds in seconds",
        _target(_TTFT, "0.000999s"),
        f"spec.objectives.{_TTFT}.target",
        _IMPOSSIBLE,
    ),
    Bad(
        "latency as a fraction",
        _target(_TTFT, 0.5),
        f"spec.objectives.{_TTFT}.target",
        "text or a whole number",
        "must be of type integer,string",
    ),
    Bad(
        "latency without a target",
        _spec(objectives={_TTFT: {"percentile": "p95"}}),
        f"spec.objectives.{_TTFT}.target",
        "required",
        "Required",
    ),
    Bad(
        "unknown percentile",
        _spec(objectives={_TTFT: {"percentile": "p98", "target": "2s"}}),
        f"spec.objectives.{_TTFT}.percentile",
        "p50, p90",
        '"p50", "p90"',
    ),
    Bad(
        "no volume is zero volume",
        _spec(objectives={"volume": {"guaranteedTokensPerSecond": 0}}),
        "spec.objectives.volume.guaranteedTokensPerSecond",
        "greater than 0",
    ),
    Bad(
        "negative volume",
        _spec(objectives={"volume": {"maxTokensPerSecond": -1}}),
        "spec.objectives.volume.maxTokensPerSecond",
        "greater than 0",
    ),
    Bad(
        "impossible volume",
        _spec(objectives={"volume": {"guaranteedTokensPerSecond": 1e12}}),
        "spec.objectives.volume.guaranteedTokensPerSecond",
        "at most",
        "less than or equal",
    ),
    Bad(
        "guarantee above the maximum",
        _spec(objectives={"volume": {"guaranteedTokensPerSecond": 10, "maxTokensPerSecond": 5}}),
        "spec.objectives.volume.guaranteedTokensPerSecond",
        "above maxTokensPerSecond: lower it or raise the maximum",
    ),
    Bad(
        "free of charge",
        _spec(objectives={"maxCostPerMillionTokens": 0}),
        "spec.objectives.maxCostPerMillionTokens",
        "greater than 0",
    ),
    Bad(
        "Guaranteed without a volume",
        _spec(tier="Guaranteed"),
        "spec.objectives",
        "tier Guaranteed needs objectives.volume.guaranteedTokensPerSecond",
    ),
    Bad(
        "Guaranteed with a maximum only",
        _spec(tier="Guaranteed", objectives={"volume": {"maxTokensPerSecond": 5}}),
        "spec.objectives",
        "tier Guaranteed needs objectives.volume.guaranteedTokensPerSecond",
    ),
    Bad("unknown URI scheme", _spec(model={"uri": "gs://bucket/model"}), "spec.model.uri", _SOURCE),
    Bad("model without a scheme", _spec(model={"uri": "Qwen/Qwen3-32B"}), "spec.model.uri", _SOURCE),
    Bad("scheme without a model", _spec(model={"uri": "hf://"}), "spec.model.uri", _SOURCE),
    Bad("model that climbs out", _spec(model={"uri": "pvc://../etc"}), "spec.model.uri", _SOURCE),
    Bad("model with a command", _spec(model={"uri": "hf://a/b;reboot"}), "spec.model.uri", _SOURCE),
    Bad("no model", {"spec": {"model": None}}, "spec.model", "required", "Required"),
    Bad("no spec", {"spec": None}, "spec", "required", "Required"),
    Bad("empty model", {"spec": {"model": {"uri": ""}}}, "spec.model.uri", _SOURCE),
    Bad("digest too short", _spec(model={"digest": "sha256:abc"}), "spec.model.digest", _DIGEST),
    Bad("digest in capitals", _spec(model={"digest": _GOOD_DIGEST.upper()}), "spec.model.digest", _DIGEST),
    Bad("digest of another kind", _spec(model={"digest": "md5:" + "0a" * 16}), "spec.model.digest", _DIGEST),
    Bad(
        "served name with a space", _spec(model={"servedName": "my chat"}), "spec.model.servedName", "not a model name"
    ),
    Bad(
        "empty served name",
        _spec(model={"servedName": ""}),
        "spec.model.servedName",
        "at least 1 characters",
        "at least 1 chars",
    ),
    Bad(
        "adapter with the served name",
        _spec(model={"servedName": "chat", "adapters": [{"name": "chat", "uri": "hf://a/b"}]}),
        "spec.model.adapters",
        "an adapter has the name of the model",
    ),
    Bad(
        "adapter with the name of the service",
        _spec(model={"adapters": [{"name": "chat", "uri": "hf://a/b"}]}),
        "spec.model.adapters",
        "an adapter has the name of the TokenService",
    ),
    Bad(
        "two adapters of one name",
        _spec(model={"adapters": [{"name": "x", "uri": "hf://a/b"}, {"name": "x", "uri": "hf://a/c"}]}),
        "spec.model.adapters[1]",
        "twice",
        "Duplicate value",
    ),
    Bad(
        "adapter from nowhere",
        _spec(model={"adapters": [{"name": "x", "uri": "hf://a/b"}, {"name": "y", "uri": "ftp://a"}]}),
        "spec.model.adapters[1].uri",
        _SOURCE,
    ),
    Bad(
        "image by tag",
        _spec(engine={"image": "vllm/vllm-openai:v0.32.0"}),
        "spec.engine.image",
        "pin the image by digest",
    ),
    Bad(
        "no accelerators",
        _spec(engine={"tensorParallelSize": 0}),
        "spec.engine.tensorParallelSize",
        "at least 1",
        "greater than or equal to 1",
    ),
    Bad(
        "half an accelerator",
        _spec(engine={"tensorParallelSize": 1.5}),
        "spec.engine.tensorParallelSize",
        "a whole number",
        "must be of type integer",
    ),
    Bad(
        "number in quotes",
        _spec(engine={"tensorParallelSize": "2"}),
        "spec.engine.tensorParallelSize",
        "a whole number",
        "must be of type integer",
    ),
    Bad(
        "yes as text",
        _spec(paused="yes"),
        "spec.paused",
        "true or false",
        "must be of type boolean",
    ),
    Bad(
        "list instead of a mapping",
        _spec(placement=["h100"]),
        "spec.placement",
        "a mapping",
        "must be of type object",
    ),
    Bad(
        "text instead of a list",
        _spec(placement={"accelerators": "h100"}),
        "spec.placement.accelerators",
        "a list",
        "must be of type array",
    ),
    Bad(
        "empty text in a list",
        _spec(placement={"accelerators": ["h100", ""]}),
        "spec.placement.accelerators[1]",
        "at least 1 characters",
        "at least 1 chars",
    ),
    Bad(
        "residency nowhere",
        _spec(placement={"residency": {"regions": []}}),
        "spec.placement.residency.regions",
        "at least 1 items",
    ),
    Bad(
        "draft without a model",
        _spec(engine={"speculative": {"method": "DraftModel"}}),
        "spec.engine.speculative.draftModel",
        "this method drafts with a second model",
    ),
    Bad(
        "lower-case environment variable",
        _spec(engine={"env": [{"name": "hf_home", "value": "/x"}]}),
        "spec.engine.env[0].name",
        "not an environment variable",
    ),
    Bad("no CPU", _spec(engine={"resources": {"cpu": 0}}), "spec.engine.resources.cpu", _AMOUNT),
    Bad("negative memory", _spec(engine={"resources": {"memory": "-1Gi"}}), "spec.engine.resources.memory", _AMOUNT),
    Bad("unknown suffix", _spec(engine={"resources": {"memory": "64GB"}}), "spec.engine.resources.memory", _AMOUNT),
    Bad("no memory", _spec(engine={"resources": {"memory": "0.0Gi"}}), "spec.engine.resources.memory", _AMOUNT),
    Bad(
        "utilization in percent",
        _spec(scaling={"targetUtilization": 70}),
        "spec.scaling.targetUtilization",
        "give a share between 0.05 and 0.95",
    ),
    Bad(
        "nothing used",
        _spec(scaling={"targetUtilization": 0}),
        "spec.scaling.targetUtilization",
        "give a share between 0.05 and 0.95",
    ),
    Bad("name with a dot", {"metadata": {"name": "chat.70b"}}, "", _NAME),
    Bad("name that begins with a digit", {"metadata": {"name": "70b-chat"}}, "", _NAME),
    Bad("name too long", {"metadata": {"name": "c" * 41}}, "", _NAME),
    Bad("second fleet", {"metadata": {"name": "other"}}, "", "metadata.name must be default", base=FLEET),
    Bad(
        "Prometheus without a scheme",
        _spec(prometheus={"address": "prometheus:9090"}),
        "spec.prometheus.address",
        "give a URL, for example http://prometheus.monitoring.svc:9090",
        base=FLEET,
    ),
    Bad(
        "Prometheus with a password in its address",
        # pragma: allowlist nextline secret
        _spec(prometheus={"address": "https://reader:secret@prometheus:9090"}),
        "spec.prometheus.address",
        "put no user and password into the address",
        base=FLEET,
    ),
    Bad(
        "fleet utilization in percent",
        _spec(targetUtilization=70),
        "spec.targetUtilization",
        "give a share between 0.05 and 0.95",
        base=FLEET,
    ),
    Bad("memory of an accelerator", _spec(memory="80GB"), "spec.memory", _AMOUNT, base=ACCELERATOR),
    Bad("unknown vendor", _spec(vendor="Acme"), "spec.vendor", "NVIDIA, AMD", '"NVIDIA", "AMD"', base=ACCELERATOR),
    Bad(
        "class of every node",
        {"spec": {"nodeLabels": {"nvidia.com/gpu.product": None}}},
        "spec.nodeLabels",
        "at least 1 entries",
        "at least 1 properties",
        base=ACCELERATOR,
    ),
    Bad(
        "negative price",
        _spec(pricePerHour=-1),
        "spec.pricePerHour",
        "at least 0",
        "greater than or equal to 0",
        base=ACCELERATOR,
    ),
    Bad("unknown precision", _spec(precision="fp3"), "spec.precision", "bf16, fp8", '"bf16", "fp8"', base=PROFILE),
    Bad(
        "profile of Auto",
        _spec(engine="Auto"),
        "spec.engine",
        "vLLM, SGLang",
        '"vLLM", "SGLang"',
        base=PROFILE,
    ),
    Bad(
        "negative step time",
        _spec(step={"alphaMs": -1}),
        "spec.step.alphaMs",
        "at least 0",
        "greater than or equal to 0",
        base=PROFILE,
    ),
    Bad(
        "key-value heads that do not divide the heads",
        _spec(model={"architecture": _SHAPE | {"kvHeads": 7}}),
        "spec.model.architecture.kvHeads",
        "heads is no multiple of kvHeads",
    ),
    Bad(
        "more active parameters than there are",
        _spec(model={"architecture": _SHAPE | {"activeParameters": 32 * 10**9 + 1}}),
        "spec.model.architecture.activeParameters",
        "activeParameters is above parameters",
    ),
    Bad(
        "a profile of a URI",
        _spec(model="hf://Qwen/Qwen3-32B"),
        "spec.model",
        "write the repository alone, ORGANISATION/MODEL without hf://",
        base=PROFILE,
    ),
    Bad(
        "steps that take no time",
        _spec(step={"alphaMs": 0, "betaMs": 0, "kappaMs": 0, "deltaMs": 0}),
        "spec.step.alphaMs",
        "give the measured alphaMs, it is above 0",
        base=PROFILE,
    ),
    Bad(
        "typo",
        {"spec": {"objectves": {}}},
        "spec.objectves",
        "did you mean objectives?",
        'unknown field "spec.objectves"',
    ),
    Bad(
        "field in the wrong place",
        _spec(minReplicas=2),
        "spec.minReplicas",
        "did you mean scaling.minReplicas?",
        'unknown field "spec.minReplicas"',
    ),
    Bad(
        "typo in a list",
        _spec(model={"adapters": [{"name": "x", "uri": "hf://a/b", "rank": 8}]}),
        "spec.model.adapters[0].rank",
        "unknown field",
    ),
    Bad(
        "a revision that would read the environment",
        _spec(model={"revision": "$(HF_TOKEN)"}),
        "spec.model.revision",
        "not a revision: write a branch, a tag or a commit",
    ),
    Bad(
        "a Secret by path",
        _spec(model={"credentials": {"name": "../admin"}}),
        "spec.model.credentials.name",
        "not the name of a Secret",
    ),
    Bad(
        "a key by path",
        _spec(model={"credentials": {"name": "hub", "key": "../token"}}),
        "spec.model.credentials.key",
        "not a key of a Secret",
    ),
    Bad(
        "a signature of nobody",
        _spec(model={"verification": {}}),
        "spec.model.verification",
        "say who must have signed: either publicKey, or identity and issuer",
    ),
    Bad(
        "a signature of a key and of an identity",
        _spec(model={"verification": {"publicKey": {"name": "signers"}, **_SIGNER}}),
        "spec.model.verification",
        "say who must have signed: either publicKey, or identity and issuer",
    ),
    Bad(
        "an identity that nobody vouches for",
        _spec(model={"verification": {"identity": "release@example.com"}}),
        "spec.model.verification",
        "identity and issuer belong together",
    ),
    Bad(
        "an identity that would read the environment",
        _spec(model={"verification": {**_SIGNER, "identity": "$(HF_TOKEN)"}}),
        "spec.model.verification.identity",
        "one word without spaces or $",
    ),
    Bad(
        "an issuer without TLS",
        _spec(model={"verification": {**_SIGNER, "issuer": "http://issuer.example.com"}}),
        "spec.model.verification.issuer",
        "write the URL of an OpenID Connect issuer, with https://",
    ),
    Bad(
        "a public key in an object by path",
        _spec(model={"verification": {"publicKey": {"name": "../signers"}}}),
        "spec.model.verification.publicKey.name",
        "not the name of a ConfigMap or Secret",
    ),
    Bad(
        "a public key by path",
        _spec(model={"verification": {"publicKey": {"name": "signers", "key": "../../model.pub"}}}),
        "spec.model.verification.publicKey.key",
        "not a key of a ConfigMap or Secret",
    ),
    Bad(
        "a signature outside the model",
        _spec(model={"verification": {**_SIGNER, "signature": "../model.sig"}}),
        "spec.model.verification.signature",
        "not a path inside the model's folder",
    ),
    Bad(
        "a fleet limit without a namespace",
        _spec(namespaces=[{"maxAccelerators": 8}]),
        "spec.namespaces[0].name",
        "required",
        "Required value",
        base=FLEET,
    ),
    Bad(
        "a limit below zero",
        _spec(namespaces=[{"name": "team", "maxAccelerators": -1}]),
        "spec.namespaces[0].maxAccelerators",
        "at least 0",
        "should be greater than or equal to 0",
        base=FLEET,
    ),
    Bad(
        "a tier that there is not",
        _spec(namespaces=[{"name": "team", "tiers": ["Gold"]}]),
        "spec.namespaces[0].tiers[0]",
        "Guaranteed, Elastic",
        '"Guaranteed", "Elastic"',
        base=FLEET,
    ),
)

GOOD: dict[str, Json] = {
    "the least": SERVICE,
    "a generated name": changed(SERVICE, {"metadata": {"name": None, "generateName": "chat-"}}),
    "a name of 40 characters": changed(SERVICE, {"metadata": {"name": "c" * 40}}),
    "one millisecond": changed(SERVICE, _target(_TPOT, "1ms")),
    "a thousandth of a second": changed(SERVICE, _target(_TPOT, "0.001s")),
    "decimals": changed(SERVICE, _target(_TTFT, "1.5s")),
    "a fixed count of zero": changed(SERVICE, _spec(replicas=0)),
    "CPU as a number and as text": changed(SERVICE, _spec(engine={"resources": {"cpu": 4, "memory": "64Gi"}})),
    "empty objects": changed(SERVICE, _spec(engine={}, objectives={}, scaling={}, placement={})),
    "an empty field that has a default": SERVICE | {"spec": SERVICE["spec"] | {"engine": None}},
    "as many replicas as may be": changed(SERVICE, _spec(scaling={"minReplicas": 3, "maxReplicas": 3})),
    "guaranteed": changed(SERVICE, _spec(tier="Guaranteed", objectives={"volume": {"guaranteedTokensPerSecond": 0.5}})),
    "every source": changed(
        SERVICE,
        _spec(
            model={
                "uri": "oci://registry.example.com:5000/models/chat@" + _GOOD_DIGEST,
                "digest": _GOOD_DIGEST,
                "adapters": [
                    {"name": "a", "uri": "s3://bucket/path/to"},
                    {"name": "b/c.d_e-f", "uri": "pvc://claim/path"},
                ],
            }
        ),
    ),
    "a signature of a key": changed(
        SERVICE,
        _spec(model={"verification": {"publicKey": {"kind": "Secret", "name": "a.b-c", "key": "x.y_z-1.pub"}}}),
    ),
    "a signature of an identity": changed(
        SERVICE,
        _spec(
            model={
                "verification": {
                    "identity": "https://github.com/org/repo/.github/workflows/sign.yml@refs/heads/main",
                    "issuer": "https://token.actions.githubusercontent.com",
                    "signature": ".attestations/model.sig",
                }
            }
        ),
    ),
    "a shape with experts": changed(
        SERVICE, _spec(model={"architecture": _SHAPE | {"activeParameters": 32 * 10**9, "kvHeads": 64}})
    ),
    "an image by digest": changed(SERVICE, _spec(engine={"name": "vLLM", "image": "a.b/c:5000/d@" + _GOOD_DIGEST})),
    "drafting without a model": changed(SERVICE, _spec(engine={"speculative": {"method": "NGram"}})),
    "a fleet with nothing in it": {key: value for key, value in FLEET.items() if key != "spec"},
    "an accelerator": ACCELERATOR,
    "memory as a number": changed(ACCELERATOR, _spec(memory=85899345920)),
    "a profile": PROFILE,
    "limits of namespaces": changed(
        FLEET, _spec(namespaces=[{"name": "team", "maxAccelerators": 0, "accelerators": ["h100"], "tiers": ["Spot"]}])
    ),
}
