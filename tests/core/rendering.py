"""Specs and variants that together use everything that can be rendered."""

from __future__ import annotations

from typing import Any

from tests.support.build import H100, make_spec
from tokenservice.api.accelerator_class import AcceleratorClassSpec
from tokenservice.api.capacity_profile import Provenance
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.model import Accelerator, EngineImages, Settings, Variant
from tokenservice.core.names import variant_name
from tokenservice.core.step import StepModel

DIGEST = "sha256:" + "0123456789abcdef" * 4
MI300X = Accelerator(
    name="mi300x",
    spec=AcceleratorClassSpec.model_validate(
        {
            "vendor": "AMD",
            "nodeLabels": {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"},
            "resourceName": "amd.com/gpu",
            "memory": "192Gi",
            "bandwidthGigabytesPerSecond": 5300,
            "denseTeraflops": {"bf16": 1307, "fp8": 2614},
            "pricePerHour": 2.5,
            "idleWatts": 140,
            "busyWatts": 750,
        }
    ),
)
IMAGES = EngineImages(
    defaults={
        (engine, vendor): f"example.org/{engine.lower()}-{vendor.lower()}:1"
        for engine in ("vLLM", "SGLang")
        for vendor in ("NVIDIA", "AMD")
    },
    allowed=(f"example.org/own@{DIGEST}", "example.org/engines/", "example.org/tagless"),
    verifier=f"example.org/model-verifier@{DIGEST}",
    loader=f"example.org/adapter-loader@{DIGEST}",
)
PEERS = ({"podSelector": {}},)
SETTINGS = Settings(images=IMAGES, gateway_peers=PEERS, metrics_peers=PEERS)

SPECS: dict[str, dict[str, Any]] = {
    "the least one can say": {},
    "guaranteed, in residence, with wishes": {
        "tier": "Guaranteed",
        "objectives": {
            "timeToFirstToken": {"target": "1700ms"},
            "timePerOutputToken": {"target": "60ms"},
            "volume": {"guaranteedTokensPerSecond": 500},
        },
        "placement": {
            "regions": ["eu-west-1", "eu-central-1"],
            "zones": ["eu-central-1a"],
            "residency": {"regions": ["eu-central-1"]},
        },
    },
    "spot from a bucket": {
        "tier": "Spot",
        "model": {"uri": "s3://weights/qwen/32b", "credentials": {"name": "bucket", "key": "aws"}},
        "engine": {"env": [{"name": "AWS_ENDPOINT_URL", "value": "http://minio.storage:9000"}]},
    },
    "a private repository with adapters": {
        "model": {
            "uri": "hf://meta-llama/Llama-3.3-70B-Instruct",
            # pragma: allowlist nextline secret
            "revision": "6f6073b423013f6a7d4d9f39144961bfbfbc386b",
            "servedName": "llama-70b",
            "credentials": {"name": "hub"},
            "adapters": [
                {"name": "legal", "uri": "hf://acme/legal-lora"},
                {"name": "code", "uri": "pvc://adapters/code"},
                {"name": "chat", "uri": f"oci://example.org/chat-lora@{DIGEST}"},
            ],
        },
    },
    "adapters of every kind, loaded by running engines": {
        "model": {
            "uri": "pvc://weights/qwen/32b",
            "adapters": [
                {"name": "legal", "uri": "hf://acme/legal-lora@v2"},
                {"name": "code", "uri": "pvc://adapters/code"},
                {"name": "tone", "uri": "pvc://weights/tone"},
                {"name": "chat", "uri": f"oci://example.org/chat-lora@{DIGEST}"},
            ],
            "runtimeAdapters": {"maxActive": 4, "maxRank": 32},
        },
    },
    "a claim, offline": {"model": {"uri": "pvc://weights/qwen/32b"}},
    "an image by digest": {
        "model": {"uri": "oci://example.org/qwen", "digest": DIGEST, "credentials": {"name": "registry"}},
    },
    "a private repository, signed with a key": {
        "model": {
            "uri": "hf://meta-llama/Llama-3.3-70B-Instruct",
            "revision": "6f6073b423013f6a7d4d9f39144961bfbfbc386b",  # pragma: allowlist secret
            "credentials": {"name": "hub"},
            "verification": {"publicKey": {"name": "signers"}},
            "adapters": [{"name": "chat", "uri": f"oci://example.org/chat-lora@{DIGEST}"}],
        },
    },
    "a claim, signed by an identity": {
        "model": {
            "uri": "pvc://weights/qwen/32b",
            "verification": {
                "identity": "https://github.com/acme/models/.github/workflows/sign.yml@refs/heads/main",
                "issuer": "https://token.actions.githubusercontent.com",
                "signature": "signatures/model.sig",
            },
        },
    },
    "an image, pickled and signed": {
        "model": {
            "uri": f"oci://example.org/qwen@{DIGEST}",
            "verification": {
                "publicKey": {"kind": "Secret", "name": "signers", "key": "release"},
                "allowPickle": True,
            },
        },
    },
    "every knob of the engine": {
        "engine": {
            "quantization": "FP8",
            "kvCacheDtype": "FP8",
            "speculative": {"method": "Eagle3", "draftModel": "hf://acme/eagle3@v2", "tokens": 4},
            "prefixCaching": False,
            "maxModelLen": 16384,
            "maxNumSeqs": 64,
            "resources": {"cpu": "0.5", "memory": "2048Mi", "sharedMemory": "1536Mi", "ephemeralStorage": "100000Mi"},
        },
        "scaling": {"maxRequestSeconds": 900},
    },
    "speculation by n-gram": {"engine": {"quantization": "AWQ", "speculative": {"method": "NGram"}}},
}


def spec_of(case: str, **engine: Any) -> TokenServiceSpec:
    """The spec of a case; `engine` adds fields of spec.engine."""
    raw = SPECS[case]
    return make_spec(**(raw | {"engine": raw.get("engine", {}) | engine}))


def make_variant(
    engine: str = "vLLM",
    *,
    accelerator: Accelerator = H100,
    tp: int = 1,
    pp: int = 1,
    weight_bytes: float = 16e9,
    profile: str | None = "profile-a",
    **changes: Any,
) -> Variant:
    facts: dict[str, Any] = {
        "name": variant_name(accelerator.name, engine, tp, "bf16", pp if tp * pp > 8 else 1),
        "accelerator": accelerator,
        "engine": engine,
        "tensor_parallel_size": tp,
        "pipeline_parallel_size": pp,
        "precision": "bf16",
        "profile": profile,
        "step": StepModel(6.42, 0.01, 0.05, 0.0196),
        "kv_capacity_tokens": 400_000,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 8192,
        "cold_start_seconds": 60.0,
        "weight_bytes": weight_bytes,
        "provenance": Provenance.MEASURED,
    }
    return Variant(**(facts | changes))


VARIANTS = {
    "vLLM on one H100": make_variant(),
    "SGLang on one H100": make_variant("SGLang"),
    "vLLM on two stages of four MI300X": make_variant(accelerator=MI300X, tp=4, pp=2, weight_bytes=141e9),
    "SGLang on eight MI300X": make_variant("SGLang", accelerator=MI300X, tp=8, weight_bytes=700e9, profile=None),
}

ACROSS_NODES = {
    "vLLM on two nodes of eight H100": make_variant(tp=8, pp=2, weight_bytes=810e9, profile=None),
    "SGLang on three nodes of eight MI300X": make_variant(
        "SGLang", accelerator=MI300X, tp=8, pp=3, weight_bytes=2050e9, profile=None
    ),
}
"""Replicas that no node holds."""
