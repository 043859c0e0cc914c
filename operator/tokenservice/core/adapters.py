"""Adapters that engines load while they run, and the container that has them loaded.

The wanted adapters of a service stand in a ConfigMap, which the kubelet keeps up to date in running pods. The loader,
a sidecar of every engine pod, reads them there, downloads what must be downloaded, and asks its engine over loopback
to load and to forget. So a pod that is made or restarted has its adapters with the operator away too, and nobody else
needs a way to the engine. What the loader says of itself comes back through Prometheus.

The pod template depends on the room that is reserved, and on the volumes that adapters lie in: a claim or an image
that no pod has mounted yet needs other pods. As the verifier, the loader is added after the administrator's patch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.deployment import confined
from tokenservice.core.engines import drain_seconds, model_source
from tokenservice.core.engines.base import GUARD_PATH
from tokenservice.core.engines.sources import DOWNLOADS_PATH, runtime_sources
from tokenservice.core.model import Json, LoadedAdapter, Pod, PodAdapters, ServiceKey
from tokenservice.core.names import ENGINE_CONTAINER, ENGINE_PORT, LOADER_CONTAINER, LOADER_PORT, adapters_name

LIST_FILE = "adapters.json"
_LIST_PATH = "/wanted"
_DOWNLOADS, _GUARD, _LIST = "adapter-downloads", "adapter-guard", "adapter-list"
_TOLD = 400
"""Characters of an engine's words that a status shows."""


def wanted(spec: TokenServiceSpec) -> Json:
    """`data` of the ConfigMap: what the loader is to see to."""
    listed = [
        {"name": adapter.name, "uri": adapter.uri, "path": source.path}
        | ({"repository": source.fetched} if source.fetched is not None else {})
        | ({"revision": source.revision} if source.revision is not None else {})
        for adapter, source in zip(spec.model.adapters, runtime_sources(spec.model), strict=True)
    ]
    return {LIST_FILE: json.dumps({"adapters": listed}, indent=1, sort_keys=True)}


def with_loader(template: Json, spec: TokenServiceSpec, service: ServiceKey, engine: str, image: str | None) -> Json:
    """The pod template with the loader in it, where the spec asks for one.

    Raises ValueError without an image for it, which the checks would have stopped.
    """
    if spec.model.runtime_adapters is None:
        return template
    if image is None:
        raise ValueError("adapters are to be loaded at run time, and no image of the loader is configured")
    pod = template["spec"]
    volumes, mounts = _volumes(spec)
    own: list[Json] = [
        {"name": _DOWNLOADS, "emptyDir": {}},
        {"name": _GUARD, "emptyDir": {}},
        {"name": _LIST, "configMap": {"name": adapters_name(service.name)}},
    ]
    seen = [_mount(_DOWNLOADS, DOWNLOADS_PATH, read_only=True), _mount(_GUARD, GUARD_PATH, read_only=True), *mounts]
    others = [one for one in pod.get("initContainers", ()) if one.get("name") != LOADER_CONTAINER]
    added = {
        "initContainers": [*others, _container(spec, engine, image)],
        "containers": [_mounting(one, seen) for one in pod["containers"]],
        "volumes": [*pod.get("volumes", ()), *own, *volumes],
    }
    return template | {"spec": pod | added}


def mounts_list(deployment: Json, service: ServiceKey) -> bool:
    """Whether the pods of a Deployment read the list of adapters."""
    volumes = deployment.get("spec", {}).get("template", {}).get("spec", {}).get("volumes") or ()
    return any((one.get("configMap") or {}).get("name") == adapters_name(service.name) for one in volumes)


def _mounting(container: Json, mounts: Sequence[Json]) -> Json:
    if container["name"] != ENGINE_CONTAINER:
        return container
    return container | {"volumeMounts": [*container.get("volumeMounts", ()), *mounts]}


def _volumes(spec: TokenServiceSpec) -> tuple[list[Json], list[Json]]:
    """Volumes and mounts of claims and images, each once and in the same order, in whatever order adapters stand."""
    found = runtime_sources(spec.model)
    volumes = {one["name"]: one for source in found for one in source.volumes}
    mounts = {one["name"]: one for source in found for one in source.mounts}
    return [volumes[name] for name in sorted(volumes)], [mounts[name] for name in sorted(mounts)]


def _container(spec: TokenServiceSpec, engine: str, image: str) -> Json:
    """It starts before the engine, which reads the guard; and the pod serves only when both are ready."""
    source = model_source(spec.model)
    token = [one for one in (*source.env, *source.fetch_env) if one["name"] == "HF_TOKEN"]
    return {
        "name": LOADER_CONTAINER,
        "image": image,
        "restartPolicy": "Always",
        "args": list(_arguments(spec, engine)),
        "env": [{"name": "HOME", "value": "/tmp"}, *token],  # noqa: S108
        "ports": [{"name": "adapters", "containerPort": LOADER_PORT, "protocol": "TCP"}],
        "resources": {"limits": {"memory": "256Mi"}, "requests": {"cpu": "20m", "memory": "64Mi"}},
        "startupProbe": _probe("/started", failures=30),
        "readinessProbe": _probe("/ready", failures=3),
        **confined(),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
            _mount(_DOWNLOADS, DOWNLOADS_PATH),
            _mount(_GUARD, GUARD_PATH),
            _mount(_LIST, _LIST_PATH, read_only=True),
        ],
    }


def _arguments(spec: TokenServiceSpec, engine: str) -> Iterable[str]:
    yield from ("--engine", engine)
    yield from ("--url", f"http://127.0.0.1:{ENGINE_PORT}")
    yield from ("--wanted", f"{_LIST_PATH}/{LIST_FILE}")
    yield from ("--downloads", DOWNLOADS_PATH)
    yield from ("--guard", GUARD_PATH)
    yield from ("--port", str(LOADER_PORT))
    # A request that runs may still need the files of an adapter that is wanted no more.
    yield from ("--keep-seconds", str(drain_seconds(spec)))


def _mount(volume: str, path: str, *, read_only: bool = False) -> Json:
    return {"name": volume, "mountPath": path} | ({"readOnly": True} if read_only else {})


def _probe(path: str, *, failures: int) -> Json:
    return {
        "httpGet": {"path": path, "port": LOADER_PORT, "scheme": "HTTP"},
        "periodSeconds": 2,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


# --- What became of it ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """One adapter: how many of the replicas that serve have it, and what is in its way."""

    name: str
    state: str
    ready: int
    message: str = ""


def reports(spec: TokenServiceSpec | None, pods: Iterable[Pod], seen: PodAdapters) -> tuple[AdapterReport, ...]:
    """The adapters of a service whose engines load them while they run, in the order of the spec."""
    if spec is None or spec.model.runtime_adapters is None:
        return ()
    said = [seen.get((pod.namespace, pod.name), {}) for pod in pods if pod.ready]
    return tuple(_report(one.name, one.uri, [told.get(one.name) for told in said]) for one in spec.model.adapters)


def _report(name: str, uri: str, said: Sequence[LoadedAdapter | None]) -> AdapterReport:
    """What a loader says of another uri is of the time before the spec changed."""
    current = [one for one in said if one is not None and one.uri == uri]
    loaded = sum(one.loaded for one in current)
    failed = sorted({one.error for one in current if one.error})
    if said and loaded == len(said):
        return AdapterReport(name, "Ready", loaded)
    if failed:
        return AdapterReport(name, "Failed", loaded, failed[0][:_TOLD])
    if not any(said):
        return AdapterReport(name, "Unknown", loaded, "no replica that serves has reported its adapters to Prometheus")
    return AdapterReport(name, "Loading", loaded, f"{loaded} of {len(said)} replicas that serve have it")
