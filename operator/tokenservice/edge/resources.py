"""Where each kind lives in the API: group, version, plural, scope."""

from __future__ import annotations

from dataclasses import dataclass

from tokenservice.api import GROUP, VERSION
from tokenservice.core.model import ObjectKey
from tokenservice.core.names import LEADER_WORKER_SET


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """One kind as its URL needs it; `group` is empty for the core group.

    `fields` is the field selector of what is of interest: lists and watches show nothing else. `bookmarked` says
    whether a silent watch is told each minute that it is alive; of events the API server keeps no cache to tell from.
    """

    kind: str
    plural: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True
    fields: str = ""
    bookmarked: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """`/apis/apps/v1/namespaces/chat/deployments/d/status`; without a namespace, that of all namespaces."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"namespaces/{namespace}" if self.namespaced and namespace else ""
        return "/".join(part for part in (root, scope, self.plural, name, subresource) if part)


_WARNINGS_OF_PODS = "regarding.kind=Pod,type=Warning" + "".join(
    f",reason!={told_by_the_pod}" for told_by_the_pod in ("FailedScheduling", "Unhealthy", "BackOff", "Failed")
)
"""Most warnings of pods stand in their status as well; events have them by the thousand."""

_KINDS = (
    Resource(kind="TokenService", plural="tokenservices", group=GROUP, version=VERSION),
    Resource(kind="AcceleratorClass", plural="acceleratorclasses", group=GROUP, version=VERSION, namespaced=False),
    Resource(kind="CapacityProfile", plural="capacityprofiles", group=GROUP, version=VERSION, namespaced=False),
    Resource(kind="TokenFleet", plural="tokenfleets", group=GROUP, version=VERSION, namespaced=False),
    Resource(kind="Node", plural="nodes", namespaced=False),
    Resource(kind="Pod", plural="pods"),
    Resource(kind="Service", plural="services"),
    Resource(kind="ConfigMap", plural="configmaps"),
    Resource(kind="ServiceAccount", plural="serviceaccounts"),
    Resource(kind="Deployment", plural="deployments", group="apps"),
    Resource(kind="DaemonSet", plural="daemonsets", group="apps"),
    Resource(kind=LEADER_WORKER_SET, plural="leaderworkersets", group="leaderworkerset.x-k8s.io"),
    Resource(kind="PodDisruptionBudget", plural="poddisruptionbudgets", group="policy"),
    Resource(kind="NetworkPolicy", plural="networkpolicies", group="networking.k8s.io"),
    Resource(kind="PodMonitor", plural="podmonitors", group="monitoring.coreos.com"),
    Resource(kind="Lease", plural="leases", group="coordination.k8s.io"),
    Resource(kind="Event", plural="events", group="events.k8s.io", fields=_WARNINGS_OF_PODS, bookmarked=False),
    Resource(
        kind="MutatingWebhookConfiguration",
        plural="mutatingwebhookconfigurations",
        group="admissionregistration.k8s.io",
        namespaced=False,
    ),
)

RESOURCES = {resource.kind: resource for resource in _KINDS}

OWNED_KINDS = ("Deployment", "DaemonSet", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy")
"""Children of a TokenService, in every cluster."""

OPTIONAL_KINDS = (LEADER_WORKER_SET, "PodMonitor", "ConfigMap")
"""Children whose API a cluster need not have (it may come and go while the operator runs), or that settings ask for."""


def path_of(key: ObjectKey, subresource: str = "") -> str:
    """URL path of one object."""
    return RESOURCES[key.kind].path(key.namespace, key.name, subresource)
