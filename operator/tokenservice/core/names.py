"""Names and keys that this operator writes, in one place.

Children are named by functions of their owner, so that a lost response cannot lead to a second child.
"""

from __future__ import annotations

import hashlib

FIELD_MANAGER = "tokenservice-operator"
STATUS_MANAGER = "tokenservice-operator-status"

SERVICE_LABEL = "taas.dev/service"
VARIANT_LABEL = "taas.dev/variant"
ENGINE_LABEL = "taas.dev/engine"
TIER_LABEL = "taas.dev/tier"
WARM_UP_LABEL = "taas.dev/warm-up"
"""On pods that hold images ready for a service; with another label of ours they would count as its replicas."""

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"

PROFILE_ANNOTATION = "taas.dev/profile"
"""On pods: name of the CapacityProfile that the variant was planned with."""

VERIFICATION_ANNOTATION = "taas.dev/verification"
"""On pods whose model is verified before the engine starts: which model, and whose signature it must carry."""

MANIFEST_HASH_ANNOTATION = "taas.dev/manifest-hash"
"""On children: hash of what was applied. Finds fields that we no longer want, which a comparison cannot."""

SCALED_AT_ANNOTATION = "taas.dev/scaled-at"
"""On Deployments: when their count last changed, RFC 3339. Never in a pod template."""

SURGE_ANNOTATION = "taas.dev/surge"
"""On Deployments: how many of their replicas only bridge the time until others have left. Never in a pod template."""

TEMPLATE_ANNOTATION = "taas.dev/template"
"""On Deployments: digest of the pod template that the spec asked for when it was applied. Never in a pod template."""

GOOD_TEMPLATE_ANNOTATION = "taas.dev/good-template"
"""On Deployments: the pod template that served before the last change, as JSON: what a rollback goes back to."""

FAILED_TEMPLATE_ANNOTATION = "taas.dev/failed-template"
"""On Deployments that were rolled back: digest of the template that did not come up. It is not tried again."""

FAILURE_ANNOTATION = "taas.dev/failure"
"""On Deployments that were rolled back: what the engine said then; its pod is gone."""

LEADER_WORKER_SET = "LeaderWorkerSet"
"""Kind of https://lws.sigs.k8s.io: makes groups of a leader and its workers, each group a replica across nodes."""

LEADER_WORKER_SET_CRD = "leaderworkersets.leaderworkerset.x-k8s.io"

ENGINE_KINDS = ("Deployment", LEADER_WORKER_SET)
"""Children that make engine pods, one of them for each variant of a service."""

GROUP_SET_LABEL = "leaderworkerset.sigs.k8s.io/name"
GROUP_INDEX_LABEL = "leaderworkerset.sigs.k8s.io/group-index"
WORKER_INDEX_LABEL = "leaderworkerset.sigs.k8s.io/worker-index"
GROUP_TEMPLATE_LABEL = "leaderworkerset.sigs.k8s.io/template-revision-hash"
"""On pods of a LeaderWorkerSet, put there by its controller; the leader of a group has the worker index 0."""

DELETION_COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"

PLACEMENT_GATE = "taas.dev/placement"
"""Scheduling gate that the webhook adds and a placement lifts."""

SERVING_CONDITION = "taas.dev/serving"
"""Readiness gate that the webhook adds; False takes a pod out of the endpoints while it finishes."""

PRIORITY_CLASSES = {"Guaranteed": "taas-guaranteed", "Elastic": "taas-elastic", "Spot": "taas-spot"}

HOSTNAME_LABEL = "kubernetes.io/hostname"
REGION_LABEL = "topology.kubernetes.io/region"
ZONE_LABEL = "topology.kubernetes.io/zone"

ENGINE_PORT = 8000
ENGINE_CONTAINER = "engine"
VERIFIER_CONTAINER = "verify-model"
LOADER_CONTAINER = "load-adapters"
LOADER_PORT = 8001
"""Where the loader of adapters says what it has loaded, and whether its pod may serve."""

MODEL_VOLUME = "model"

_LABEL_LIMIT = 63
_GROUP_SET_LIMIT = 46
"""StatefulSets of workers are named after the leader, with up to five characters more, and name their revision in a
label, with eleven more."""


def shortened(text: str, limit: int = _LABEL_LIMIT) -> str:
    """`text`, or its beginning and a hash when it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{text[: limit - 9].rstrip('-.')}-{digest}"


def variant_name(accelerator: str, engine: str, tensor_parallel_size: int, precision: str, nodes: int = 1) -> str:
    """`h100-vllm-tp2-fp8`, or `h100-vllm-tp8pp2-fp8` for replicas that span two nodes; fits a label."""
    stages = f"pp{nodes}" if nodes > 1 else ""
    return shortened(f"{accelerator}-{engine.lower()}-tp{tensor_parallel_size}{stages}-{precision}")


def deployment_name(service: str, variant: str) -> str:
    """Name of the Deployment of a (service, variant)."""
    return shortened(f"{service}-{variant}")


def group_set_name(service: str, variant: str) -> str:
    """Name of the LeaderWorkerSet of a (service, variant)."""
    return shortened(f"{service}-{variant}", _GROUP_SET_LIMIT)


def engine_account_name(service: str) -> str:
    """Name of the ServiceAccount of a service's engines; it has no token and no rights."""
    return f"{service}-engine"


def warm_up_name(service: str) -> str:
    """Name of the DaemonSet that holds images ready for a service, and of its NetworkPolicy."""
    return f"{service}-warm-up"


def adapters_name(service: str) -> str:
    """Name of the ConfigMap that lists the adapters which the engines of a service are to have."""
    return f"{service}-adapters"
