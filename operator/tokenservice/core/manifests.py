"""Everything that a TokenService owns, as the objects to apply.

Names are functions of the owner, so that a lost response cannot lead to a second child. Each object carries the hash
of what was applied: a comparison finds what is missing, only the hash finds what is no longer wanted. Labels of the
owner are not inherited: Argo CD would prune children that carry its tracking label.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.adapters import wanted, with_loader
from tokenservice.core.deployment import deployment_spec, engine_image, labels, leader_worker_set_spec, pod_template
from tokenservice.core.model import Json, Service, Settings, Variant
from tokenservice.core.names import (
    FIELD_MANAGER,
    LEADER_WORKER_SET,
    MANAGED_BY_LABEL,
    MANIFEST_HASH_ANNOTATION,
    SCALED_AT_ANNOTATION,
    SERVICE_LABEL,
    SURGE_ANNOTATION,
    adapters_name,
    deployment_name,
    engine_account_name,
    group_set_name,
)
from tokenservice.core.network import disruption_spec, monitor_spec, policy_spec, service_spec
from tokenservice.core.verification import verified

_GROUP_API = "leaderworkerset.x-k8s.io/v1"
_NEVER_SCALED: Mapping[str, str] = MappingProxyType({})


def children(
    service: Service,
    deployments: Sequence[tuple[Variant, int]],
    settings: Settings,
    *,
    needed: int,
    fleet: TokenFleetSpec,
    scaled_at: Mapping[str, str] = _NEVER_SCALED,
) -> tuple[Json, ...]:
    """The manifests of a service that has no Problems, what others refer to first.

    `needed` replicas may not be evicted; `scaled_at` is the annotation of each Deployment by variant name. Raises
    ValueError for a service that the checks would have stopped.
    """
    if service.spec is None:
        raise ValueError(f"{service.key} has no valid spec")
    replicas = sum(count for _, count in deployments)
    workers = sum(count * (variant.pods - 1) for variant, count in deployments)
    shared = shared_children(service, service.spec, settings, replicas, needed, workers=workers, groups=workers > 0)
    engines = [
        engines_of(service, variant, count, settings, fleet=fleet, scaled_at=scaled_at.get(variant.name))
        for variant, count in deployments
    ]
    return (*shared, *engines)


def shared_children(
    service: Service,
    spec: TokenServiceSpec,
    settings: Settings,
    replicas: int,
    needed: int,
    *,
    workers: int = 0,
    groups: bool = False,
) -> tuple[Json, ...]:
    """What there is once for all variants.

    `workers` is how many pods the replicas have beside the ones that serve, `groups` whether there are any to talk to.
    """
    key = service.key
    account = shared(service, "v1", "ServiceAccount", engine_account_name(key.name))
    found = [
        account | {"automountServiceAccountToken": False},
        shared(service, "v1", "Service", key.name) | {"spec": service_spec(key)},
        shared(service, "networking.k8s.io/v1", "NetworkPolicy", key.name)
        | {"spec": policy_spec(key, spec, settings, groups=groups)},
        shared(service, "policy/v1", "PodDisruptionBudget", key.name)
        | {"spec": disruption_spec(key, replicas, needed, workers)},
    ]
    if settings.pod_monitors:
        monitor = shared(service, "monitoring.coreos.com/v1", "PodMonitor", key.name)
        monitor["metadata"]["labels"] = {**settings.monitor_labels, **monitor["metadata"]["labels"]}
        found.append(monitor | {"spec": monitor_spec(key, spec)})
    if spec.model.runtime_adapters is not None:
        found.append(shared(service, "v1", "ConfigMap", adapters_name(key.name)) | {"data": wanted(spec)})
    return tuple(hashed(manifest) for manifest in found)


def engines_of(
    service: Service,
    variant: Variant,
    replicas: int,
    settings: Settings,
    *,
    fleet: TokenFleetSpec,
    scaled_at: str | None = None,
    surge: int = 0,
    in_place: bool = False,
) -> Json:
    """The Deployment of one variant, `surge` of its replicas being there for a while only.

    A LeaderWorkerSet where a replica takes several nodes. Raises ValueError without a valid spec or an image for it.
    """
    spec, key = service.spec, service.key
    image = engine_image(spec, variant, settings.images) if spec is not None else None
    if spec is None or image is None:
        raise ValueError(f"{key} cannot run {variant.name}: no valid spec or no image")

    def template(*, worker: bool = False) -> Json:
        rendered = merged(pod_template(key, spec, variant, image, fleet, worker=worker), settings.pod_patch)
        loading = with_loader(rendered, spec, key, variant.engine, settings.images.loader)
        return verified(loading, spec, settings.images.verifier)

    marks = labels(key, spec, variant)
    if variant.pods == 1:
        body = deployment_spec(key, spec, variant, replicas, template(), in_place=in_place)
        kind = _object(service, "apps/v1", "Deployment", deployment_name(key.name, variant.name), marks)
    else:
        pods = (template(), template(worker=True))
        body = leader_worker_set_spec(replicas, *pods, variant.pods, in_place=in_place)
        kind = _object(service, _GROUP_API, LEADER_WORKER_SET, group_set_name(key.name, variant.name), marks)
    made = hashed(kind | {"spec": body})
    made["metadata"]["annotations"][SURGE_ANNOTATION] = str(surge)
    if scaled_at is not None:
        made["metadata"]["annotations"][SCALED_AT_ANNOTATION] = scaled_at
    return made


def merged(base: Any, patch: Any) -> Any:
    """RFC 7386: objects are merged, null removes, everything else (lists too) replaces."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(base) if isinstance(base, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def hashed(manifest: Json) -> Json:
    """The manifest with the hash of itself; replicas do not count, for scaling is no change of what runs."""
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), MANIFEST_HASH_ANNOTATION: _digest(manifest)}
    return manifest | {"metadata": metadata | {"annotations": annotations}}


def _digest(manifest: Json) -> str:
    spec = {key: value for key, value in manifest.get("spec", {}).items() if key != "replicas"}
    text = json.dumps(manifest | {"spec": spec}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shared(service: Service, api_version: str, kind: str, name: str) -> Json:
    """A child that is there once for all variants, without its spec."""
    ours = {SERVICE_LABEL: service.key.name, MANAGED_BY_LABEL: FIELD_MANAGER}
    return _object(service, api_version, kind, name, ours)


def _object(service: Service, api_version: str, kind: str, name: str, labels: Mapping[str, str]) -> Json:
    owner = {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "TokenService",
        "name": service.key.name,
        "uid": service.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    metadata = {
        "name": name,
        "namespace": service.key.namespace,
        "labels": dict(labels),
        "ownerReferences": [owner],
    }
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}
