"""Simulated accelerator nodes, and the node autoscaler that adds and removes them.

The autoscaler is a stand-in. Karpenter's KWOK provider is not built here: a build of its v1.12.0 had not ended after
seven minutes on two busy cores, and it needs a cluster set up by its own chart. The stand-in does the two things that a
real one does for this operator: it adds a node when a pod is Unschedulable and would fit a fresh node, after the time
such a node takes to start; and it removes a node that has been empty for a while. It knows nothing of the operator.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from e2e.testbed.cluster import Cluster

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What a new node of a pool looks like, and how its accelerators are billed."""

    accelerator: str
    resource: str
    count: int
    labels: Mapping[str, str]
    cpu: int = 128
    memory: str = "1900Gi"

    def node(self, name: str, *, region: str = "eu-1", zone: str = "eu-1a") -> Json:
        """The Node object."""
        amounts = {
            "cpu": str(self.cpu),
            "memory": self.memory,
            "ephemeral-storage": "7000Gi",
            "pods": "110",
            self.resource: str(self.count),
        }
        place = {"topology.kubernetes.io/region": region, "topology.kubernetes.io/zone": zone}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
                "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"} | place | dict(self.labels),
            },
            "spec": {"taints": [{"key": self.resource, "value": "present", "effect": "NoSchedule"}]},
            "status": {"capacity": amounts, "allocatable": amounts},
        }


H100 = Template(
    accelerator="h100",
    resource="nvidia.com/gpu",
    count=8,
    labels={
        "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3",
        "nvidia.com/gpu.count": "8",
        "nvidia.com/gpu.memory": "81559",
        "node.kubernetes.io/instance-type": "h100-8x",
    },
)
MI300X = Template(
    accelerator="mi300x",
    resource="amd.com/gpu",
    count=8,
    labels={
        "amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM",
        "amd.com/gpu.vram": "192G",
        "node.kubernetes.io/instance-type": "mi300x-8x",
    },
)
L40S = Template(
    accelerator="l40s",
    resource="nvidia.com/gpu",
    count=4,
    labels={
        "nvidia.com/gpu.product": "NVIDIA-L40S",
        "nvidia.com/gpu.count": "4",
        "nvidia.com/gpu.memory": "46068",
        "node.kubernetes.io/instance-type": "l40s-4x",
    },
    cpu=64,
    memory="500Gi",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Nodes of one template that may come and go; times in seconds as they pass here."""

    template: Template
    maximum: int
    start_seconds: float
    idle_seconds: float


@dataclass(slots=True)
class Span:
    """A node's life on the bill: from the request for it to its release (clock of `time.time`)."""

    name: str
    template: Template
    requested_at: float
    ready_at: float | None = None
    released_at: float | None = None


_NUMBERS = itertools.count(1)
"""No name is given twice: pods of a node that is gone would count as those of its namesake."""


@dataclass
class Autoscaler:
    """Looks once a second; every node it ever asked for is in `spans`. `pods` spares it a listing where one is kept."""

    cluster: Cluster
    pools: tuple[Pool, ...]
    pods: Callable[[], list[Json]] | None = None
    spans: list[Span] = field(default_factory=list)
    _empty_since: dict[str, float] = field(default_factory=dict)

    def add(self, template: Template, **place: str) -> str:
        """A node at once, as if it had been there before."""
        name = f"{template.accelerator}-{next(_NUMBERS):02}"
        self.spans.append(Span(name, template, time.time(), time.time()))
        self._create(template.node(name, **place))
        return name

    async def run(self, interval_seconds: float = 1.0) -> None:
        """Until cancelled."""
        while True:
            await asyncio.to_thread(self.look, time.time())
            await asyncio.sleep(interval_seconds)

    def look(self, now: float) -> None:
        """One round: finish starts, remove what is empty, ask for what is missing."""
        self._finish_starts(now)
        pods = self.pods() if self.pods is not None else self.cluster.get("pods", "-A")["items"]
        used = {pod["spec"].get("nodeName") for pod in pods} | {
            pod.get("status", {}).get("nominatedNodeName") for pod in pods
        }
        wanted = {pool.template.accelerator for pool in self.pools if any(_unmet(pod, pool.template) for pod in pods)}
        self._remove_empty(used, wanted, now)
        for pool in self.pools:
            self._ask(pool, pods, used, now)

    def forget(self, name: str) -> None:
        """Ends a node's bill, for a node that was removed by other hands."""
        for span in self.spans:
            if span.name == name and span.released_at is None:
                span.released_at = time.time()

    def _create(self, node: Json) -> None:
        self.cluster.apply(node)

    def _finish_starts(self, now: float) -> None:
        starts = {pool.template.accelerator: pool.start_seconds for pool in self.pools}
        for span in self.spans:
            waited = now - span.requested_at
            if span.ready_at is None and waited >= starts.get(span.template.accelerator, 0.0):
                span.ready_at = now
                self._create(span.template.node(span.name))

    def _remove_empty(self, used: set[str | None], wanted: set[str], now: float) -> None:
        """A node that a waiting pod could take is not idle: the scheduler may look again only in ten seconds."""
        idle = {pool.template.accelerator: pool.idle_seconds for pool in self.pools}
        for span in self.spans:
            if span.ready_at is None or span.released_at is not None or span.template.accelerator not in idle:
                continue
            if span.name in used or span.template.accelerator in wanted:
                self._empty_since.pop(span.name, None)
            elif now - self._empty_since.setdefault(span.name, now) >= idle[span.template.accelerator]:
                self._remove(span, now)

    def _remove(self, span: Span, now: float) -> None:
        """Cordons, looks again, deletes: a pod may have been bound meanwhile."""
        self.cluster.kubectl("cordon", span.name)
        bound = self.cluster.get("pods", "-A", f"--field-selector=spec.nodeName={span.name}")["items"]
        if bound:
            self.cluster.kubectl("uncordon", span.name)
            return
        self.cluster.kubectl("delete", "node", span.name, "--wait=false")
        span.released_at = now

    def _ask(self, pool: Pool, pods: list[Json], used: set[str | None], now: float) -> None:
        """As many nodes as the pods that fit nowhere need, less those on their way or there and still empty."""
        wanting = sorted((need for pod in pods if (need := _unmet(pod, pool.template))), reverse=True)
        alive = [s for s in self.spans if s.released_at is None and s.template is pool.template]
        bins = [pool.template.count for span in alive if span.name not in used]
        for need in wanting:
            spot = next((index for index, left in enumerate(bins) if left >= need), None)
            if spot is None and len(alive) < pool.maximum:
                span = Span(f"{pool.template.accelerator}-{next(_NUMBERS):02}", pool.template, now)
                self.spans.append(span)
                alive.append(span)
                bins.append(pool.template.count)
                spot = len(bins) - 1
            if spot is not None:
                bins[spot] -= need


def _unmet(pod: Json, template: Template) -> int:
    """Accelerators that an Unschedulable pod asks for and a fresh node of the template would give; else 0."""
    conditions = pod.get("status", {}).get("conditions", [])
    stuck = any(c["type"] == "PodScheduled" and c.get("reason") == "Unschedulable" for c in conditions)
    if not stuck or pod["metadata"].get("deletionTimestamp") or not _selects(pod, template):
        return 0
    limits = [c.get("resources", {}).get("limits", {}) for c in pod["spec"]["containers"]]
    need = sum(int(limit.get(template.resource, 0)) for limit in limits)
    return need if need <= template.count else 0


def _selects(pod: Json, template: Template) -> bool:
    """Whether the pod's node selector and required affinity accept the template's labels."""
    labels = template.node("probe")["metadata"]["labels"]
    selector = pod["spec"].get("nodeSelector") or {}
    required = (pod["spec"].get("affinity") or {}).get("nodeAffinity", {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {"nodeSelectorTerms": [{}]}
    terms = required["nodeSelectorTerms"]
    return all(labels.get(key) == value for key, value in selector.items()) and any(
        all(_matches(expression, labels) for expression in term.get("matchExpressions", [])) for term in terms
    )


def _matches(expression: Json, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    match expression["operator"]:
        case "In":
            return value in expression["values"]
        case "NotIn":
            return value not in expression["values"]
        case "Exists":
            return value is not None
        case _:
            return value is None
