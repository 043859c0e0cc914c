"""What the run asks the operator for: a class for the stand-in accelerator, what one delivers, model and service.

`python -m e2e.real.service` prints the service as it is applied.
"""

from __future__ import annotations

from typing import Any

import yaml

from e2e.real.bed import ACCELERATOR, ACCELERATORS_PER_NODE, MODEL_FOLDER, RESOURCE

Json = dict[str, Any]
NAMESPACE = "models"
NAME = "tiny"
CLAIM = "tiny-llama"
URI = f"pvc://{CLAIM}/tiny"
MAX_REPLICAS = 2

OUTPUT_TOKENS = 256
LOW, HIGH = 0.375, 2.0
"""Requests a second of 64 prompt tokens and such answers. The profile's capacity is 1.1 of them, and what is learned
moves it between 0.55 and 2.2: LOW is always one replica at the target of 0.7, HIGH always two. Two cores carry HIGH and
an engine that starts beside it, not replicas that are never idle: with answers of 512 tokens an engine was not there
within five minutes."""

BUSY, LONGER_TOKENS = 2 * MAX_REPLICAS, 896
"""Where no engine starts, answers at HIGH are so long while fewer than two requests run per replica: a replica that is
never idle takes a core, and there are two. Longer answers ask for no fewer replicas, and HIGH has all there may be."""

WINDOW_SECONDS = 30
"""Over which the operator looks at rates."""


def accelerator() -> Json:
    """A core and its memory, described as an accelerator; figures of a small server, rounded."""
    return _object(
        "AcceleratorClass",
        ACCELERATOR,
        {
            "vendor": "NVIDIA",
            "nodeLabels": {f"{RESOURCE}.product": ACCELERATOR},
            "resourceName": RESOURCE,
            "memory": "4Gi",
            "bandwidthGigabytesPerSecond": 10,
            "denseTeraflops": {"bf16": 0.1},
            "acceleratorsPerNode": ACCELERATORS_PER_NODE,
            "interconnectDomain": 1,
            "pricePerHour": 0.05,
            "idleWatts": 5,
            "busyWatts": 20,
        },
    )


def profile() -> Json:
    """Slower than the engine is when the machine is idle: the operator learns the rest."""
    return _object(
        "CapacityProfile",
        "tiny-bf16-vllm-cpu",
        {
            "model": URI,
            "engine": "vLLM",
            "engineVersion": "0.32.0",
            "accelerator": ACCELERATOR,
            "tensorParallelSize": 1,
            "precision": "bf16",
            "step": {"alphaMs": 20, "betaMs": 3, "kappaMs": 0, "deltaMs": 0.12},
            "kvCapacityTokens": 100_000,
            "maxNumSeqs": 64,
            "maxNumBatchedTokens": 2048,
            "coldStartSeconds": 90,
            "provenance": "Roofline",
            "source": "Set for this test, not measured",
        },
    )


def fleet() -> Json:
    """Windows as short as the scrapes allow."""
    return _object(
        "TokenFleet",
        "default",
        {
            "prometheus": {"windowSeconds": WINDOW_SECONDS, "stalenessSeconds": 30},
            "consolidation": {"scaleDownWindowSeconds": 30, "cooldownSeconds": 30},
        },
    )


def weights() -> tuple[Json, Json]:
    """A volume of a folder that each node has, and the claim that the service names."""
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
        "hostPath": {"path": str(MODEL_FOLDER), "type": "Directory"},
        "claimRef": {"namespace": NAMESPACE, "name": CLAIM},
    }
    claim = {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
        "resources": {"requests": {"storage": "1Gi"}},
        "volumeName": CLAIM,
    }
    volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": CLAIM}, "spec": spec}
    metadata = {"name": CLAIM, "namespace": NAMESPACE}
    return volume, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}


TOO_LONG = 8192
"""A context beyond the model's: the operator does not know the model's shape, so the engine says it."""

ADAPTER = "tiny-tuned"
SEQUENCES = 4
OPTIMIZED: Json = {"speculative": {"method": "NGram", "tokens": 3}, "maxNumSeqs": SEQUENCES}
"""An engine that drafts by itself."""

DRAFTED: Json = {"speculative": {"method": "DraftModel", "draftModel": f"pvc://{CLAIM}/draft", "tokens": 3}}
"""One that a second model drafts for; an engine has one way of drafting."""

ROOM: Json = {"runtimeAdapters": {"maxActive": 1, "maxRank": 8}}
ADAPTED: Json = ROOM | {"adapters": [{"name": ADAPTER, "uri": f"pvc://{CLAIM}/adapter"}]}
"""The adapter comes to an engine that runs."""


def token_service(max_model_len: int | None = None, model: Json | None = None, engine: Json | None = None) -> Json:
    """The contract, with more of a model or an engine; objectives so wide that a busy test machine keeps them.

    Where more of a model is asked for, one replica is looked at: questions to it are no demand for a second.
    """
    most = MAX_REPLICAS if model is None else 1
    spec = {
        "model": {"uri": URI} | (model or {}),
        "engine": {
            "name": "vLLM",
            "extraArgs": ["--enforce-eager"],
            **({"maxModelLen": max_model_len} if max_model_len is not None else {}),
            **(engine or {}),
            "resources": {"cpu": "200m", "memory": "5Gi", "sharedMemory": "1Gi", "ephemeralStorage": "1Gi"},
        },
        "objectives": {
            "timeToFirstToken": {"percentile": "p95", "target": "10s"},
            "timePerOutputToken": {"percentile": "p95", "target": "1s"},
        },
        "scaling": {"minReplicas": 1, "maxReplicas": most, "maxRequestSeconds": 60},
        "placement": {"accelerators": [ACCELERATOR]},
    }
    return _object("TokenService", NAME, spec, namespace=NAMESPACE)


def _object(kind: str, name: str, spec: Json, **metadata: str) -> Json:
    return {"apiVersion": "taas.dev/v1alpha1", "kind": kind, "metadata": {"name": name} | metadata, "spec": spec}


if __name__ == "__main__":
    print(yaml.safe_dump(token_service(), sort_keys=False), end="")
