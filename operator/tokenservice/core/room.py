"""How much of each node is taken, and by whom.

Foreign pods count like ours; so do pods that are going (they hold their accelerators until they are gone) and pods
that were nominated but not bound yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tokenservice.core.index import grouped
from tokenservice.core.model import Accelerator, Json, Node, Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is left of one node. `used` counts accelerators held, by anyone, of the node's main resource."""

    node: Node
    free: Mapping[str, int]
    cpu_cores: float
    memory_bytes: float
    used: int = 0
    foreign: int = 0

    def less(self, pod: Pod) -> Room:
        """This room after `pod` has moved in."""
        taken = sum(pod.accelerators.values())
        return replace(
            self,
            free={name: count - pod.accelerators.get(name, 0) for name, count in self.free.items()},
            cpu_cores=self.cpu_cores - pod.cpu_cores,
            memory_bytes=self.memory_bytes - pod.memory_bytes,
            used=self.used + taken,
            foreign=self.foreign + (taken if pod.service is None else 0),
        )

    def fits(self, pod: Pod) -> bool:
        """Whether the node's resources suffice; labels and taints are judged by `admits`."""
        return (
            all(self.free.get(name, 0) >= count for name, count in pod.accelerators.items())
            and self.cpu_cores >= pod.cpu_cores
            and self.memory_bytes >= pod.memory_bytes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenancy:
    """What pods that are bound to a node hold of its accelerators: by resource, whoever they are; and ours by what
    they do."""

    held: Mapping[str, int]
    ready: int = 0
    starting: int = 0
    draining: int = 0


NOBODY = Tenancy(held={})


def home(pod: Pod) -> str | None:
    """The node that the pod is bound to, or nominated for and free to go to."""
    return pod.node or (None if pod.gated else pod.nominated_node)


def residents(pods: Iterable[Pod]) -> dict[str, tuple[Pod, ...]]:
    """Pods by the name of their `home`."""
    return grouped(tuple(pods), home)


def rooms(nodes: Iterable[Node], pods: Iterable[Pod]) -> dict[str, Room]:
    """What is left of every node, by node name."""
    on = residents(pods)
    return {node.name: room(node, on.get(node.name, ())) for node in nodes}


def room(node: Node, on: Iterable[Pod]) -> Room:
    """The node less all of its residents, in one go: a room for each step would be most of the work."""
    free, cpu_cores, memory_bytes = dict(node.allocatable), node.cpu_cores, node.memory_bytes
    used = foreign = 0
    for pod in on:
        taken = 0
        for name, count in pod.accelerators.items():
            taken += count
            if name in free:
                free[name] -= count
        cpu_cores -= pod.cpu_cores
        memory_bytes -= pod.memory_bytes
        used += taken
        foreign += taken if pod.service is None else 0
    return Room(node=node, free=free, cpu_cores=cpu_cores, memory_bytes=memory_bytes, used=used, foreign=foreign)


def tenancy(on: Iterable[Pod]) -> Tenancy:
    """What the residents of a node that are bound to it hold."""
    held, ready, starting, draining = dict[str, int](), 0, 0, 0
    for pod in on:
        if pod.node is None:
            continue
        for name, count in pod.accelerators.items():
            held[name] = held.get(name, 0) + count
        if pod.service is None:
            continue
        taken = sum(pod.accelerators.values())
        if pod.deleting or pod.serving is False:
            draining += taken
        elif pod.ready:
            ready += taken
        else:
            starting += taken
    return Tenancy(held=held, ready=ready, starting=starting, draining=draining)


def usable(node: Node) -> bool:
    """Whether new pods may go there."""
    return node.ready and node.schedulable and not node.deleting


def of_class(node: Node, accelerator: Accelerator) -> bool:
    """Whether the node carries every label of the class."""
    return all(node.labels.get(key) == value for key, value in accelerator.spec.node_labels.items())


def tolerates(node: Node, resource_name: str) -> bool:
    """Whether an engine pod may land there: it tolerates its accelerator's own taint and no other."""
    return all(_harmless(taint, resource_name) for taint in node.taints)


def _harmless(taint: Json, resource_name: str) -> bool:
    return taint.get("effect") == "PreferNoSchedule" or taint.get("key") == resource_name
