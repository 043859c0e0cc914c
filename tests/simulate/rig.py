"""A simulated cluster with engines that do as they are told: what tests of the cluster stand on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.support.build import GPU, H100
from tokenservice.core.model import ObjectKey, Pod, ServiceKey
from tokenservice.core.names import SERVICE_LABEL, VARIANT_LABEL
from tokenservice.simulate.cluster import Cluster, NodeGroup, Pace

LOAD_SECONDS = 20.0
NODE_START_SECONDS = 90.0
NODE_IDLE_SECONDS = 30.0

Json = dict[str, Any]


@dataclass
class Engines:
    """Replicas that load for `LOAD_SECONDS` and have work while they are in `busy`; refuses what makes no sense."""

    alive: set[str] = field(default_factory=set)
    open: set[str] = field(default_factory=set)
    busy: set[str] = field(default_factory=set)
    told: list[tuple[str, str]] = field(default_factory=list)

    def load_seconds(self, pod: Pod) -> float:
        return LOAD_SECONDS

    def started(self, pod: Pod) -> None:
        assert pod.name not in self.alive
        self.alive.add(pod.name)
        self.told.append(("started", pod.name))

    def serving(self, pod: Pod, serves: bool) -> None:
        assert pod.name in self.alive
        (self.open.add if serves else self.open.discard)(pod.name)

    def idle(self, pod: Pod) -> bool:
        assert pod.name in self.alive
        return pod.name not in self.busy

    def stopped(self, pod: Pod) -> None:
        self.alive.remove(pod.name)
        self.open.discard(pod.name)
        self.told.append(("stopped", pod.name))


def cluster(*, most_nodes: int = 4, gates: bool = False, whole_nodes: bool = True, **pace: float) -> Cluster:
    """One group of nodes with eight accelerators, none of them there yet."""
    group = NodeGroup(accelerator=H100, accelerators_per_node=8, most_nodes=most_nodes, whole_nodes=whole_nodes)
    seconds = {"node_start_seconds": NODE_START_SECONDS, "node_idle_seconds": NODE_IDLE_SECONDS} | pace
    return Cluster(groups={"h100": group}, pace=Pace(**seconds), engines=Engines(), gates=gates)


def engines(made: Cluster) -> Engines:
    assert isinstance(made.engines, Engines)
    return made.engines


def manifest(service: str = "chat", replicas: int = 1, *, gpus: int = 1) -> Json:
    """A Deployment as far as the simulated cluster reads it."""
    variant = f"h100-vllm-tp{gpus}-bf16"
    limits = {GPU: str(gpus), "cpu": "8"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "namespace": "default",
            "name": f"{service}-{variant}",
            "labels": {SERVICE_LABEL: service, VARIANT_LABEL: variant},
        },
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"resources": {"limits": limits}}]}}},
    }


def key_of(document: Json) -> ObjectKey:
    return ObjectKey("Deployment", document["metadata"]["namespace"], document["metadata"]["name"])


def scaled(made: Cluster, service: str, replicas: int, *, gpus: int = 1) -> None:
    """Sets a count, and lets the controllers act."""
    made.scale(manifest(service, gpus=gpus), replicas)
    made.reconcile()


def live(made: Cluster, seconds: float) -> None:
    """Time passes as a fleet lets it: with a stop wherever the cluster has one."""
    until = made.now + seconds
    while made.now < until or made.next_due() <= until:
        made.settle(min(until, max(made.now, made.next_due())))


def pods(made: Cluster, service: str = "chat") -> list[Pod]:
    return made.pods_of(ServiceKey("default", service))


def ready(made: Cluster, service: str = "chat") -> int:
    return sum(pod.ready for pod in pods(made, service))
