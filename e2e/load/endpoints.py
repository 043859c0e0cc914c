"""Where a service's requests may go: the ready endpoints of its Kubernetes Service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from e2e.engines.contract import Json

SERVICE_NAME_LABEL = "kubernetes.io/service-name"
ENDPOINT_SLICES = "/apis/discovery.k8s.io/v1/endpointslices"


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """A Kubernetes Service."""

    namespace: str
    name: str


class Endpoints(Protocol):
    """Ready pods by service."""

    def ready(self, service: ServiceKey) -> tuple[str, ...]:
        """Names of the ready pods, in the service's namespace."""

    async def wait_ready(self, service: ServiceKey) -> None:
        """Return once there is one."""


@dataclass(slots=True)
class StaticEndpoints:
    """Endpoints that are set by hand, and what watched ones are made of."""

    _pods: dict[ServiceKey, tuple[str, ...]] = field(default_factory=dict)
    _appeared: dict[ServiceKey, asyncio.Event] = field(default_factory=dict)

    def ready(self, service: ServiceKey) -> tuple[str, ...]:
        return self._pods.get(service, ())

    async def wait_ready(self, service: ServiceKey) -> None:
        await self._event(service).wait()

    def set(self, service: ServiceKey, pods: Iterable[str]) -> None:
        """Replace a service's ready pods."""
        self._pods[service] = tuple(pods)
        if self._pods[service]:
            self._event(service).set()
        else:
            self._event(service).clear()

    def _event(self, service: ServiceKey) -> asyncio.Event:
        return self._appeared.setdefault(service, asyncio.Event())


class SliceEndpoints(StaticEndpoints):
    """Follows EndpointSlices; a sink for `e2e.engines.cluster.follow`. A service may have several slices."""

    def __init__(self) -> None:
        super().__init__()
        self._slices: dict[tuple[str, str], tuple[ServiceKey, frozenset[str]]] = {}

    def seen(self, item: Json) -> None:
        service = _service_of(item)
        if service is None:
            return
        self._slices[_slice_key(item)] = (service, frozenset(_ready_pods(item)))
        self._refresh(service)

    def gone(self, item: Json) -> None:
        known = self._slices.pop(_slice_key(item), None)
        if known is not None:
            self._refresh(known[0])

    def listed(self, items: list[Json]) -> None:
        before = {service for service, _ in self._slices.values()}
        self._slices.clear()
        for item in items:
            if (service := _service_of(item)) is not None:
                self._slices[_slice_key(item)] = (service, frozenset(_ready_pods(item)))
        for service in before | {service for service, _ in self._slices.values()}:
            self._refresh(service)

    def _refresh(self, service: ServiceKey) -> None:
        pods = {pod for owner, ready in self._slices.values() if owner == service for pod in ready}
        self.set(service, sorted(pods))


def _slice_key(item: Json) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def _service_of(item: Json) -> ServiceKey | None:
    metadata = item["metadata"]
    name = (metadata.get("labels") or {}).get(SERVICE_NAME_LABEL)
    return ServiceKey(metadata["namespace"], name) if name else None


def _ready_pods(item: Json) -> list[str]:
    return [
        endpoint["targetRef"]["name"]
        for endpoint in item.get("endpoints") or []
        if (endpoint.get("conditions") or {}).get("ready") is True and "targetRef" in endpoint
    ]
