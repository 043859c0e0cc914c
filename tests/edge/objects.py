"""Raw objects as an API server returns them."""

from __future__ import annotations

from typing import Any

from tokenservice.core.model import Json
from tokenservice.core.names import PLACEMENT_GATE, SERVICE_LABEL, SERVING_CONDITION, VARIANT_LABEL

CREATED = "2026-11-01T12:00:00Z"


def token_service(name: str = "chat", *, revision: int = 5, status: Json | None = None, **spec: Any) -> Json:
    return {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "TokenService",
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": f"uid-{name}",
            "generation": 3,
            "resourceVersion": str(revision),
            "creationTimestamp": CREATED,
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {"model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"}} | spec,
        "status": status or {},
    }


def node(name: str = "node-1", **changes: Any) -> Json:
    amounts = {"cpu": "127500m", "memory": "1900Gi", "nvidia.com/gpu": "8", "rdma/hca": "4", "hugepages-2Mi": "0"}
    obj: Json = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "9",
            "creationTimestamp": CREATED,
            "labels": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        },
        "spec": {"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]},
        "status": {
            "allocatable": amounts,
            "capacity": amounts,
            "conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": "True"}],
        },
    }
    for field, value in changes.items():
        obj[field] = {**obj[field], **value}
    return obj


def pod(name: str = "chat-1", *, gates: tuple[str, ...] = (PLACEMENT_GATE,), **changes: Any) -> Json:
    """An engine pod as the webhook leaves it: gated, without a node."""
    obj: Json = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": "11",
            "creationTimestamp": CREATED,
            "labels": {SERVICE_LABEL: "chat", VARIANT_LABEL: "h100-vllm-tp2-fp8", "pod-template-hash": "6c5c8f869d"},
        },
        "spec": {
            "containers": [container({"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "2"})],
            "schedulingGates": [{"name": gate} for gate in gates],
            "readinessGates": [{"conditionType": SERVING_CONDITION}],
        },
        "status": {"phase": "Pending"},
    }
    for field, value in changes.items():
        obj[field] = {**obj[field], **value}
    return obj


def container(requests: Json, **more: Any) -> Json:
    return {"name": "engine", "resources": {"requests": requests}} | more


def condition(kind: str, status: str, reason: str = "") -> Json:
    return {"type": kind, "status": status, "reason": reason, "lastTransitionTime": CREATED}


def deployment(name: str = "chat-h100", *, revision: int = 7, owner: str | None = "chat", replicas: int = 2) -> Json:
    owners = [{"apiVersion": "taas.dev/v1alpha1", "kind": "TokenService", "name": owner, "uid": "uid-chat"}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(revision),
            "managedFields": [{"manager": "tokenservice-operator"}],
            "ownerReferences": owners if owner else [],
        },
        "spec": {"replicas": replicas},
    }
