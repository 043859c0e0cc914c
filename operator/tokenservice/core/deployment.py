"""The Deployment of one (service, variant), or the LeaderWorkerSet where no node holds a replica.

Its template carries hard rules and preferences only. A scheduling gate would roll every engine when it is removed, a
node name could not be escaped once the node is full, and anything measured would restart engines for being measured;
all three come from elsewhere, while pods are admitted. So engines schedule, restart and serve with the operator away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from urllib.parse import urlsplit

from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.engines import EngineCommand, Source, command, drain_seconds, sources
from tokenservice.core.engines.base import CACHE_PATH
from tokenservice.core.engines.sources import runtime_sources
from tokenservice.core.images import built_for
from tokenservice.core.model import EngineImages, Json, ServiceKey, Variant
from tokenservice.core.names import (
    ENGINE_CONTAINER,
    ENGINE_LABEL,
    FIELD_MANAGER,
    HOSTNAME_LABEL,
    MANAGED_BY_LABEL,
    PRIORITY_CLASSES,
    PROFILE_ANNOTATION,
    REGION_LABEL,
    SERVICE_LABEL,
    TIER_LABEL,
    VARIANT_LABEL,
    ZONE_LABEL,
    engine_account_name,
)
from tokenservice.core.quantities import canonical, gibibytes

USER_ID = 2000
"""The user that vLLM's image ships for running without root."""

PRESTOP_SECONDS = 5
"""Endpoints and proxies learn that a pod goes while it still accepts; only then SIGTERM."""

EXIT_SECONDS = 15
"""After the drain: SGLang looks every 5 s whether it is done, and processes of many GPUs take seconds to go."""

COMPILE_SECONDS = 180.0
"""Graph capture and kernel compilation with cold caches."""

STARTUP_PATIENCE = 3.0
"""A start may take this many times what is expected before the kubelet ends it: a restart would begin at nothing."""

GATED_SECONDS = 3600
"""Time that a pod may wait for room before the Deployment calls its rollout stuck; gated pods count as no progress."""

NODE_LOSS_SECONDS = 30
"""A replica on a lost node is replaced after this, not after the default of 300 s."""

_PROBE_SECONDS = 5
_NO_SPREADING = 2**31 - 1


def selector(service: ServiceKey, variant: Variant) -> dict[str, str]:
    """Immutable once the Deployment exists, so nothing that may change belongs here."""
    return {SERVICE_LABEL: service.name, VARIANT_LABEL: variant.name}


def labels(service: ServiceKey, spec: TokenServiceSpec, variant: Variant) -> dict[str, str]:
    """On the Deployment and on its pods."""
    return selector(service, variant) | {
        ENGINE_LABEL: variant.engine,
        MANAGED_BY_LABEL: FIELD_MANAGER,
        TIER_LABEL: spec.tier.value,
    }


def engine_image(spec: TokenServiceSpec, variant: Variant, images: EngineImages) -> str | None:
    """The user's image, else the administrator's for the engine; None without one for this vendor's accelerators."""
    vendor, own = variant.accelerator.spec.vendor, spec.engine.image
    if own is None:
        return images.defaults.get((variant.engine, vendor.value))
    return own if built_for(own, images) in (None, vendor) else None


def deployment_spec(
    service: ServiceKey,
    spec: TokenServiceSpec,
    variant: Variant,
    replicas: int,
    template: Json,
    *,
    in_place: bool = False,
) -> Json:
    """`spec` of the Deployment of this pod template. `in_place` exchanges a replica by taking it away first."""
    return {
        "replicas": replicas,
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": ceil(startup_seconds(spec, variant)) + GATED_SECONDS,
        "selector": {"matchLabels": selector(service, variant)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": int(in_place)}},
        "template": template,
    }


def leader_worker_set_spec(replicas: int, leader: Json, worker: Json, size: int, *, in_place: bool = False) -> Json:
    """`spec` of the LeaderWorkerSet of these two pod templates: `size` pods make a replica, a leader and its workers.

    A replica of which one pod ends begins anew as a whole: what is left of it could not serve, and waits for nobody.
    """
    return {
        "replicas": replicas,
        "leaderWorkerTemplate": {
            "size": size,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": leader,
            "workerTemplate": worker,
        },
        "networkConfig": {"subdomainPolicy": "Shared"},
        "rolloutStrategy": {
            "type": "RollingUpdate",
            "rollingUpdateConfiguration": {"maxSurge": 1, "maxUnavailable": int(in_place), "partition": 0},
        },
        "startupPolicy": "LeaderCreated",
    }


def pod_template(
    service: ServiceKey,
    spec: TokenServiceSpec,
    variant: Variant,
    image: str,
    fleet: TokenFleetSpec,
    *,
    worker: bool = False,
) -> Json:
    """The pods of a replica, or its workers' where they are other than the one that serves.

    Admissible under Pod Security level restricted.
    """
    found = sources(spec)
    pod: Json = {
        **confined_pod(service, variant, found),
        "affinity": _affinity(spec, variant, fleet),
        "containers": [_container(service, spec, variant, image, found, worker=worker)],
        "priorityClassName": PRIORITY_CLASSES[spec.tier],
        "terminationGracePeriodSeconds": grace_seconds(spec),
        "topologySpreadConstraints": [_no_spreading(service)],
        "volumes": _volumes(spec, variant, found),
    }
    return {"metadata": _metadata(service, spec, variant), "spec": pod}


def confined_pod(service: ServiceKey, variant: Variant, found: Sequence[Source]) -> Json:
    """What every pod for a service says of its rights, of where it may stand and of whose images it may pull."""
    secrets = sorted({source.pull_secret for source in found if source.pull_secret is not None})
    pod: Json = {
        "automountServiceAccountToken": False,
        # A Service called vllm would otherwise set VLLM_PORT, which vLLM reads.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "serviceAccountName": engine_account_name(service.name),
        "tolerations": _tolerations(variant),
    }
    return pod | ({"imagePullSecrets": [{"name": name} for name in secrets]} if secrets else {})


def grace_seconds(spec: TokenServiceSpec) -> int:
    """Until SIGKILL: the hook, the drain and the exit."""
    return PRESTOP_SECONDS + drain_seconds(spec) + EXIT_SECONDS


def startup_seconds(spec: TokenServiceSpec, variant: Variant) -> float:
    """How long a start may take, from the size of the checkpoint and the kind of source alone.

    Not from measured cold starts: a bad measurement would then keep engines from ever starting.
    """
    speed = min(source.bytes_per_second for source in sources(spec))
    return STARTUP_PATIENCE * (variant.bytes_on_disk / speed + COMPILE_SECONDS)


def _metadata(service: ServiceKey, spec: TokenServiceSpec, variant: Variant) -> Json:
    metadata: Json = {"labels": labels(service, spec, variant)}
    if variant.profile is not None:
        metadata["annotations"] = {PROFILE_ANNOTATION: variant.profile}
    return metadata


def confined() -> Json:
    """What every container in a pod of ours is held to, whatever it runs."""
    return {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        # The end of the log stands in the pod's status then: the operator tells it without a right to read logs.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _container(
    service: ServiceKey,
    spec: TokenServiceSpec,
    variant: Variant,
    image: str,
    found: tuple[Source, ...],
    *,
    worker: bool = False,
) -> Json:
    run = command(spec, variant, service, worker=worker)
    return {
        "name": ENGINE_CONTAINER,
        "image": image,
        "command": list(run.command),
        "args": list(run.args),
        "env": list(run.env),
        "resources": _resources(spec, variant, found),
        **confined(),
        "volumeMounts": [
            {"name": "cache", "mountPath": CACHE_PATH},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            *(mount for source in found for mount in source.mounts),
        ],
    } | ({} if worker else _serving(run, startup_seconds(spec, variant)))


def _serving(run: EngineCommand, startup: float) -> Json:
    """What a worker lacks: it is asked nothing, so Services and scrapers find no port, and its leader answers for it.

    Liveness is slow to judge: a full engine answers late, and a restart would drop everything it runs."""
    return {
        "ports": [{"name": "http", "containerPort": run.port, "protocol": "TCP"}],
        "lifecycle": {"preStop": {"sleep": {"seconds": PRESTOP_SECONDS}}},
        "startupProbe": _probe(run.startup_path, run.port, timeout=5, failures=ceil(startup / _PROBE_SECONDS)),
        "readinessProbe": _probe(run.readiness_path, run.port, timeout=5, failures=3),
        "livenessProbe": _probe(run.liveness_path, run.port, timeout=10, failures=12),
    }


def _probe(path: str, port: int, *, timeout: int, failures: int) -> Json:
    return {
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": _PROBE_SECONDS,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def _resources(spec: TokenServiceSpec, variant: Variant, found: tuple[Source, ...]) -> Json:
    """Memory is requested as it is limited; CPU and disk have no limit, which would slow or evict a busy engine."""
    asked = spec.engine.resources
    memory = (
        canonical(str(asked.memory))
        if asked.memory is not None
        else gibibytes(16 * 2**30 + variant.weight_bytes / 2 / variant.pods)
    )
    disk = 20 * 2**30 + 1.2 * variant.bytes_on_disk
    accelerators = {variant.accelerator.spec.resource_name: str(variant.accelerators_per_pod)}
    return {
        "limits": accelerators | {"memory": memory},
        "requests": accelerators
        | {
            "cpu": canonical(str(asked.cpu)) if asked.cpu is not None else str(4 * variant.accelerators_per_pod),
            "ephemeral-storage": canonical(str(asked.ephemeral_storage))
            if asked.ephemeral_storage is not None
            else gibibytes(disk),
            "memory": memory,
        },
    }


def _volumes(spec: TokenServiceSpec, variant: Variant, found: tuple[Source, ...]) -> list[Json]:
    """Tensor parallel workers talk through /dev/shm; the container's default of 64 MiB breaks them."""
    shared = spec.engine.resources.shared_memory
    size = canonical(str(shared)) if shared is not None else f"{2 * variant.accelerators_per_pod}Gi"
    return [
        {"name": "cache", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}},
        {"name": "tmp", "emptyDir": {}},
        *(volume for source in found for volume in source.volumes),
    ]


def _affinity(spec: TokenServiceSpec, variant: Variant, fleet: TokenFleetSpec) -> Json:
    packed = {
        "weight": 100,
        "podAffinityTerm": {
            "labelSelector": {"matchLabels": {MANAGED_BY_LABEL: FIELD_MANAGER}},
            "namespaceSelector": {},
            "topologyKey": HOSTNAME_LABEL,
        },
    }
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": node_terms(spec, variant, fleet)}
        },
        "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [packed]},
    }


def node_terms(spec: TokenServiceSpec, variant: Variant, fleet: TokenFleetSpec) -> list[Json]:
    """Where a replica may run at all. Terms are alternatives: to lack one of the untouched labels is enough."""
    must = [_in(key, value) for key, value in _node_labels(variant, fleet)]
    must += [_in(key, *values) for key, values in _locations(spec)]
    untouched = sorted(fleet.never_touch.node_labels.items())
    if not untouched:
        return [{"matchExpressions": must}]
    return [{"matchExpressions": [*must, _in(key, value, operator="NotIn")]} for key, value in untouched]


def _node_labels(variant: Variant, fleet: TokenFleetSpec) -> Iterator[tuple[str, str]]:
    yield from sorted(variant.accelerator.spec.node_labels.items())
    yield from sorted(fleet.accelerator_nodes.items())


def _locations(spec: TokenServiceSpec) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Residency stands beside the wished regions, not instead of them: both must hold."""
    placement = spec.placement
    if placement.residency is not None:
        yield REGION_LABEL, placement.residency.regions
    if placement.regions:
        yield REGION_LABEL, placement.regions
    if placement.zones:
        yield ZONE_LABEL, placement.zones


def _in(key: str, *values: str, operator: str = "In") -> Json:
    return {"key": key, "operator": operator, "values": sorted(values)}


def _tolerations(variant: Variant) -> list[Json]:
    """Clouds taint accelerator nodes with the resource's own name; no other taint is ours to ignore."""
    lost = [
        {"key": f"node.kubernetes.io/{state}", "operator": "Exists", "effect": "NoExecute"}
        | {"tolerationSeconds": NODE_LOSS_SECONDS}
        for state in ("not-ready", "unreachable")
    ]
    return [{"key": variant.accelerator.spec.resource_name, "operator": "Exists"}, *lost]


def _no_spreading(service: ServiceKey) -> Json:
    """Any constraint of ours switches the scheduler's default spreading off; this skew makes all nodes score alike."""
    return {
        "labelSelector": {"matchLabels": {SERVICE_LABEL: service.name}},
        "maxSkew": _NO_SPREADING,
        "topologyKey": HOSTNAME_LABEL,
        "whenUnsatisfiable": "ScheduleAnyway",
    }


def egress_ports(spec: TokenServiceSpec) -> tuple[int, ...]:
    """TCP ports by which the sources are fetched; none when nothing is remote.

    An S3 endpoint of one's own often has a port of its own, which AWS_ENDPOINT_URL then names.
    """
    later = runtime_sources(spec.model) if spec.model.runtime_adapters is not None else ()
    if not any(source.remote for source in (*sources(spec), *later)):
        return ()
    endpoint = _variable(spec, "AWS_ENDPOINT_URL")
    port = _port_of(endpoint)
    plain = {80} if endpoint.startswith("http://") and port is None else set()
    return tuple(sorted({443} | plain | ({port} if port else set())))


def _port_of(url: str) -> int | None:
    """The port that a URL names; none where it is no URL."""
    try:
        return urlsplit(url).port
    except ValueError:
        return None


def _variable(spec: TokenServiceSpec, name: str) -> str:
    values: Mapping[str, str] = {item.name: item.value for item in spec.engine.env}
    return values.get(name, "")
