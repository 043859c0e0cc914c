"""Pod Security level restricted, as the standard states it; enough of it to judge a pod spec without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
_HOST_FIELDS = ("hostNetwork", "hostPID", "hostIPC")
_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")


def violations(pod: dict[str, Any]) -> tuple[str, ...]:
    """What the admission of a namespace labelled `enforce: restricted` would complain about."""
    return tuple(_pod_violations(pod)) + tuple(
        f"{container['name']}: {wrong}"
        for kind in _CONTAINERS
        for container in pod.get(kind, ())
        for wrong in _container_violations(container, pod.get("securityContext", {}))
    )


def _pod_violations(pod: dict[str, Any]) -> Iterator[str]:
    yield from (field for field in _HOST_FIELDS if pod.get(field))
    for volume in pod.get("volumes", ()):
        yield from (f"volume {volume['name']} of type {kind}" for kind in set(volume) - _VOLUMES - {"name"})
    security = pod.get("securityContext", {})
    if security.get("sysctls"):
        yield "sysctls"
    if security.get("runAsUser") == 0:
        yield "runAsUser 0"


def _container_violations(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext", {})
    if own.get("privileged"):
        yield "privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield "runAsNonRoot"
    if own.get("runAsUser") == 0:
        yield "runAsUser 0"
    seccomp = own.get("seccompProfile", pod.get("seccompProfile", {}))
    if seccomp.get("type") not in ("RuntimeDefault", "Localhost"):
        yield "seccompProfile"
    capabilities = own.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "hostPort"
