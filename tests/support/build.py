"""Builders of facts: say what matters to a test, the rest is plausible."""

from __future__ import annotations

from typing import Any

from tokenservice.api.accelerator_class import AcceleratorClassSpec
from tokenservice.api.capacity_profile import CapacityProfileSpec
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.model import (
    Accelerator,
    Child,
    EngineImages,
    Node,
    ObjectKey,
    Pod,
    Profile,
    Service,
    ServiceKey,
    ServiceMetrics,
    Settings,
    Snapshot,
)
from tokenservice.core.names import SERVICE_LABEL, VARIANT_LABEL, deployment_name

NOW = 1_800_000_000.0
FLEET = TokenFleetSpec.model_validate({"consolidation": {"scaleDownWindowSeconds": 120}})
"""With a window of its own, counts follow the peak that metrics tell, and nothing needs to be learned first."""
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
GPU = "nvidia.com/gpu"
H100 = Accelerator(
    name="h100",
    spec=AcceleratorClassSpec.model_validate(
        {
            "vendor": "NVIDIA",
            "nodeLabels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
            "resourceName": GPU,
            "memory": "80Gi",
            "bandwidthGigabytesPerSecond": 3350,
            "denseTeraflops": {"bf16": 989, "fp8": 1979},
            "pricePerHour": 3.0,
            "idleWatts": 100,
            "busyWatts": 700,
        }
    ),
)
H100_8B = Profile(
    name="llama-3.1-8b-bf16-vllm-h100-tp1",
    spec=CapacityProfileSpec.model_validate(
        {
            "model": MODEL,
            "engine": "vLLM",
            "engineVersion": "0.32",
            "accelerator": "h100",
            "tensorParallelSize": 1,
            "precision": "bf16",
            "step": {"alphaMs": 6.42, "betaMs": 0.01, "kappaMs": 0.05, "deltaMs": 0.0196},
            "kvCapacityTokens": 400_000,
            "coldStartSeconds": 60,
            "provenance": "Measured",
        }
    ),
)
VARIANT = "h100-vllm-tp1-bf16"
SETTINGS = Settings(images=EngineImages(defaults={("vLLM", "NVIDIA"): "example.org/vllm:v0.32.0"}))


def make_spec(**changes: Any) -> TokenServiceSpec:
    """A spec in the shape users write, camelCase; `changes` replace whole top-level fields."""
    return TokenServiceSpec.model_validate({"model": {"uri": f"hf://{MODEL}"}} | changes)


def make_service(name: str = "chat", *, namespace: str = "default", created_at: float = 0.0, **spec: Any) -> Service:
    return Service(
        key=ServiceKey(namespace, name),
        uid=f"uid-{namespace}-{name}",
        generation=1,
        resource_version="1",
        created_at=created_at,
        spec=make_spec(**spec),
    )


def make_node(name: str, *, accelerators: int = 8, ready: bool = True, cordoned: bool = False, **labels: str) -> Node:
    return Node(
        name=name,
        labels=dict(H100.spec.node_labels) | labels,
        allocatable={GPU: accelerators},
        cpu_cores=128.0,
        memory_bytes=2e12,
        ready=ready,
        schedulable=not cordoned,
        created_at=0.0,
        taints=({"key": GPU, "effect": "NoSchedule"},),
    )


def make_pod(name: str, *, node: str | None = "n1", service: str | None = "chat", **changes: Any) -> Pod:
    """A pod that serves with one accelerator, unless told otherwise; `gpus` sets the accelerators."""
    facts: dict[str, Any] = {
        "namespace": "default",
        "name": name,
        "uid": f"uid-{name}",
        "resource_version": "1",
        "created_at": 0.0,
        "accelerators": {GPU: changes.pop("gpus", 1)},
        "service": ServiceKey("default", service) if service else None,
        "variant": VARIANT if service else "",
        "node": node,
        "ready": node is not None,
        "containers_ready": node is not None,
        "serving": True,
    }
    return Pod(**(facts | changes))


def make_deployment(
    service: Service, replicas: int, *, variant: str = VARIANT, annotations: dict[str, str] | None = None, **status: Any
) -> Child:
    """A live Deployment that has finished its last rollout."""
    name = deployment_name(service.key.name, variant)
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": name,
            "namespace": service.key.namespace,
            "generation": 1,
            "labels": {SERVICE_LABEL: service.key.name, VARIANT_LABEL: variant},
            "annotations": annotations or {},
        },
        "spec": {"replicas": replicas},
        "status": {"observedGeneration": 1, "replicas": replicas, "updatedReplicas": replicas} | status,
    }
    key = ObjectKey("Deployment", service.key.namespace, name)
    return Child(key=key, uid=f"uid-{name}", resource_version="1", owner=service.key, body=body)


def make_metrics(requests_per_second: float = 1.0, **changes: Any) -> ServiceMetrics:
    facts: dict[str, Any] = {
        "requests_per_second": requests_per_second,
        "peak_requests_per_second": requests_per_second,
        "output_tokens_per_second": requests_per_second * 200,
        "input_tokens_per_second": requests_per_second * 1000,
        "mean_input_tokens": 1000.0,
        "mean_output_tokens": 200.0,
        "prefix_hit_rate": 0.0,
        "running": 1.0,
        "waiting": 0.0,
        "kv_usage": 0.1,
        "engines_reporting": 1,
    }
    return ServiceMetrics(**(facts | changes))


def make_snapshot(*services: Service, **changes: Any) -> Snapshot:
    facts: dict[str, Any] = {
        "services": services,
        "nodes": (make_node("n1"), make_node("n2")),
        "pods": (),
        "children": {},
        "accelerators": (H100,),
        "profiles": (H100_8B,),
        "architectures": {},
        "metrics": {},
        "settings": SETTINGS,
        "fleet": FLEET,
    }
    if "deployments" in changes:
        changes["children"] = {child.key: child for child in changes.pop("deployments")}
    return Snapshot(**(facts | changes))
