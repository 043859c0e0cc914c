"""The control plane in simulated time: what Kubernetes and a node autoscaler do with engine pods, and no more.

It carries out the very actions that `decide` plans, and the counts that other policies ask for. Deployment controller,
scheduler and admission act at once, as the real ones do within a second; what takes long takes its time: nodes start,
replicas load, replicas drain. Accelerator time is split by what holds it, exactly, from a node's start request to its
release.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any, Protocol

from tokenservice.core.model import (
    Accelerator,
    Action,
    Apply,
    Child,
    Delete,
    Node,
    ObjectKey,
    Place,
    Pod,
    ServiceKey,
    SetDeletionCost,
    SetServing,
)
from tokenservice.core.names import SERVICE_LABEL, VARIANT_LABEL
from tokenservice.core.packing import best_node
from tokenservice.core.room import Room, of_class, rooms, usable
from tokenservice.simulate.ledger import Ledger

_LOOK_SECONDS = 5.0
"""So often a draining replica is asked whether it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Nodes of one AcceleratorClass: how many accelerators each has, and how many there may be.

    With `whole_nodes` false a node is made as large as the replica that asks for it: what is billed by the
    accelerator, so that policies can be compared on counts alone.
    """

    accelerator: Accelerator
    accelerators_per_node: int
    most_nodes: int
    whole_nodes: bool = True

    @property
    def most_accelerators(self) -> int:
        """All that there may be."""
        return self.most_nodes * self.accelerators_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds that nodes take to start, and that an empty one is kept."""

    node_start_seconds: float
    node_idle_seconds: float
    drain_seconds: float = inf


class Engines(Protocol):
    """What runs inside the pods, told of their lives."""

    def load_seconds(self, pod: Pod) -> float:
        """Time from being bound to a node until the replica serves."""

    def started(self, pod: Pod) -> None:
        """The replica has loaded."""

    def serving(self, pod: Pod, serves: bool) -> None:
        """It is in the endpoints, or no more."""

    def idle(self, pod: Pod) -> bool:
        """Whether it has no unfinished request."""

    def stopped(self, pod: Pod) -> None:
        """It is gone, and with it what it had not finished."""


@dataclass(slots=True)
class _NodeLife:
    node: Node
    group: str
    empty_since: float | None = None


@dataclass
class Cluster:
    """Mutable by design: it stands for the cluster. Times are seconds of the scenario."""

    groups: Mapping[str, NodeGroup]
    pace: Pace
    engines: Engines
    gates: bool
    ledger: Ledger = field(default_factory=Ledger)
    now: float = 0.0
    pods: dict[str, Pod] = field(default_factory=dict)
    children: dict[ObjectKey, Child] = field(default_factory=dict)
    changes: int = 0
    replicas_started: int = 0
    moves: int = 0

    def __post_init__(self) -> None:
        self._nodes: dict[str, _NodeLife] = {}
        self._ordered: dict[str, int] = {}
        self._booting: dict[str, _NodeLife] = {}
        self._due: list[tuple[float, int, str, str]] = []
        self._serial = count(1)
        self._deleting_since: dict[str, float] = {}
        self._loading_since: dict[str, float] = {}

    # --- what is there

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Nodes that have joined."""
        return tuple(life.node for life in self._nodes.values())

    def pods_of(self, service: ServiceKey) -> list[Pod]:
        """Pods of a service, those on their way out included."""
        return [pod for pod in self.pods.values() if pod.service == service]

    def next_due(self) -> float:
        """When something happens by itself next."""
        return self._due[0][0] if self._due else inf

    # --- what is asked of it

    def carry_out(self, action: Action) -> None:
        """One action of a plan, as the API server would take it."""
        self.changes += 1
        if isinstance(action, Apply):
            self._apply(action)
        elif isinstance(action, Delete):
            self.children.pop(action.key, None)
        elif isinstance(action, SetDeletionCost):
            self._change(action.pod.name, deletion_cost=action.cost)
        elif isinstance(action, SetServing):
            self.moves += not action.serving
            self._set_serving(action.pod.name, action.serving)
        elif isinstance(action, Place):
            self._change(action.pod.name, gated=False, serving=True, nominated_node=action.node)

    def scale(self, manifest: dict[str, Any], replicas: int) -> None:
        """Sets a Deployment's count, as HPA or `kubectl scale` would."""
        key = _key_of(manifest)
        live = self.children.get(key)
        if live is not None and live.body["spec"]["replicas"] == replicas:
            return
        self.changes += 1
        body = manifest if live is None else live.body
        self._write(key, body | {"spec": body["spec"] | {"replicas": replicas}}, live)

    def add_node(self, group: str, accelerators: int | None = None) -> Node:
        """A node that is there at once: how a scenario begins."""
        life = self._make(group, accelerators or self.groups[group].accelerators_per_node)
        self._join(life)
        return life.node

    def kill_busiest_node(self, group: str) -> None:
        """The group's node with most replicas is gone, and all on it; its replacement is the autoscaler's business."""
        names = [name for name, life in self._nodes.items() if life.group == group]
        if not names:
            return
        on_node = Counter(pod.node for pod in self.pods.values())
        name = max(names, key=lambda name: on_node[name])
        for pod in [pod for pod in self.pods.values() if pod.node == name]:
            self._remove(pod)
        del self._nodes[name]
        self.ledger.node_gone(name, self.now)

    def crash_oldest(self, service: str) -> None:
        """A replica crashes; the kubelet starts it again where it was."""
        pod = next((p for p in self.pods.values() if p.service and p.service.name == service and p.ready), None)
        if pod is None:
            return
        self.engines.stopped(pod)
        again = {"restarts": pod.restarts + 1, "took_seconds": None}
        crashed = self._change(pod.name, containers_ready=False, ready=False, **again)
        if crashed is not None:
            self._load(crashed)

    def begin(self) -> None:
        """Makes the pods of all Deployments, with the nodes they need, and lets them serve at once."""
        gates, self.gates = self.gates, False
        self.reconcile()
        while self._booting:
            for name in list(self._booting):
                self._node_started(name)
            self._schedule()
        self._due.clear()
        self._loading_since.clear()
        for pod in list(self.pods.values()):
            self._change(pod.name, serving=True if gates else None)
            if pod.node is not None:
                self._loaded(pod.name)
        self.gates = gates

    # --- time

    def settle(self, now: float) -> None:
        """Moves the clock, lets happen what was due, and lets the controllers act on it."""
        self._account(now)
        while self._due and self._due[0][0] <= now:
            _, _, kind, name = heappop(self._due)
            if kind == "node":
                self._node_started(name)
            elif kind == "pod":
                self._loaded(name)
            elif kind == "drain":
                self._look_at_drain(name)
        self.reconcile()

    def reconcile(self) -> None:
        """One round of every controller, without time passing."""
        for child in [child for child in self.children.values() if child.key.kind == "Deployment"]:
            self._scale(child)
        self._collect_orphans()
        self._schedule()
        self._release_nodes()

    def _account(self, now: float) -> None:
        if now > self.now:
            held: dict[str, list[int]] = {}
            for pod in self.pods.values():
                if pod.node is not None:
                    held.setdefault(pod.node, [0, 0, 0])[_state(pod)] += sum(pod.accelerators.values())
            self.ledger.lasted(now - self.now, held)
            self.now = now

    # --- Deployments

    def _apply(self, action: Apply) -> None:
        key = _key_of(action.manifest)
        live = self.children.get(key)
        if action.resource_version is not None and (live is None or live.resource_version != action.resource_version):
            return
        self._write(key, action.manifest, live)

    def _write(self, key: ObjectKey, manifest: dict[str, Any], live: Child | None) -> None:
        metadata = manifest["metadata"]
        generation = 1 if live is None else live.body["metadata"].get("generation", 1) + 1
        owner = ServiceKey(metadata["namespace"], metadata["labels"][SERVICE_LABEL])
        body = manifest | {"metadata": metadata | {"generation": generation}}
        if key.kind == "Deployment":
            wanted = body["spec"]["replicas"]
            body |= {"status": {"observedGeneration": generation, "replicas": wanted, "updatedReplicas": wanted}}
        self.children[key] = Child(
            key=key, uid=f"uid-{key.name}", resource_version=str(next(self._serial)), owner=owner, body=body
        )

    def _scale(self, child: Child) -> None:
        variant = child.body["metadata"]["labels"][VARIANT_LABEL]
        mine = [p for p in self.pods.values() if not p.deleting and p.variant == variant and p.service == child.owner]
        wanted = child.body["spec"]["replicas"]
        if len(mine) > wanted:
            on_node: dict[str | None, int] = {}
            for pod in mine:
                on_node[pod.node] = on_node.get(pod.node, 0) + 1
            mine.sort(key=lambda p: (p.node is not None, p.ready, p.deletion_cost, -on_node[p.node], -p.created_at))
            for pod in mine[: len(mine) - wanted]:
                self._delete(pod)
        for _ in range(wanted - len(mine)):
            self._create(child, variant)

    def _create(self, child: Child, variant: str) -> None:
        name = f"{child.key.name}-{next(self._serial):06}"
        container = child.body["spec"]["template"]["spec"]["containers"][0]
        limits = container["resources"]["limits"]
        self.replicas_started += 1
        self.pods[name] = Pod(
            namespace=child.key.namespace,
            name=name,
            uid=f"uid-{name}",
            resource_version="1",
            created_at=self.now,
            accelerators={key: int(value) for key, value in limits.items() if "/gpu" in key},
            service=child.owner,
            variant=variant,
            gated=self.gates,
        )

    def _collect_orphans(self) -> None:
        alive = {
            (child.owner, child.body["metadata"]["labels"][VARIANT_LABEL])
            for child in self.children.values()
            if child.key.kind == "Deployment"
        }
        for pod in list(self.pods.values()):
            if pod.service is not None and not pod.deleting and (pod.service, pod.variant) not in alive:
                self._delete(pod)

    # --- Pods

    def _change(self, name: str, **changes: Any) -> Pod | None:
        pod = self.pods.get(name)
        if pod is None:
            return None
        changed = self.pods[name] = replace(pod, resource_version=str(next(self._serial)), **changes)
        return changed

    def _set_serving(self, name: str, serving: bool) -> None:
        pod = self.pods.get(name)
        if pod is None or pod.deleting:
            return
        changed = self._change(name, serving=serving, ready=pod.containers_ready and serving)
        if changed is not None and pod.containers_ready:
            self.engines.serving(changed, serving)

    def _delete(self, pod: Pod) -> None:
        if not pod.containers_ready:
            self._remove(pod)
            return
        changed = self._change(pod.name, deleting=True, ready=False)
        self._deleting_since[pod.name] = self.now
        heappush(self._due, (self.now, next(self._serial), "drain", pod.name))
        if changed is not None:
            self.engines.serving(changed, False)

    def _remove(self, pod: Pod) -> None:
        self.pods.pop(pod.name, None)
        self._deleting_since.pop(pod.name, None)
        self._loading_since.pop(pod.name, None)
        if pod.containers_ready:
            self.engines.stopped(pod)

    def _look_at_drain(self, name: str) -> None:
        """At times of its own: when a drain ends must not hang on who else looks at the cluster."""
        since = self._deleting_since.get(name)
        if since is None:
            return
        end = since + self.pace.drain_seconds
        if self.now >= end or self.engines.idle(self.pods[name]):
            self._remove(self.pods[name])
        else:
            heappush(self._due, (min(self.now + _LOOK_SECONDS, end), next(self._serial), "drain", name))

    def _loaded(self, name: str) -> None:
        pod = self.pods.get(name)
        if pod is None or pod.containers_ready:
            return
        ready, since = pod.serving is not False, self._loading_since.pop(name, None)
        took = None if since is None or pod.restarts else self.now - since
        changed = self._change(name, containers_ready=True, ready=ready, took_seconds=took)
        if changed is not None:
            self.engines.started(changed)
            self.engines.serving(changed, ready)

    # --- Scheduler and node autoscaler

    def _schedule(self) -> None:
        waiting = [pod for pod in self.pods.values() if pod.node is None and not pod.gated]
        if not waiting:
            return
        left = {name: room for name, room in self._rooms().items() if usable(room.node)}
        unplaced = [pod for pod in waiting if not self._bind(pod, left)]
        for pod in unplaced:
            if not pod.unschedulable:
                self._change(pod.name, unschedulable=True)
        self._order_nodes(unplaced)

    def _rooms(self) -> dict[str, Room]:
        return rooms(self.nodes, (pod for pod in self.pods.values() if pod.node is not None))

    def _bind(self, pod: Pod, left: dict[str, Room]) -> bool:
        chosen = pod.nominated_node
        if chosen not in left or not left[chosen].fits(pod):
            chosen = best_node(pod, left.values(), self._admits)
        if chosen is None:
            return False
        left[chosen] = left[chosen].less(pod)
        bound = self._change(pod.name, node=chosen, unschedulable=False)
        if bound is not None:
            self._load(bound)
        return True

    def _load(self, pod: Pod) -> None:
        self._loading_since[pod.name] = self.now
        heappush(self._due, (self.now + self.engines.load_seconds(pod), next(self._serial), "pod", pod.name))

    def _admits(self, pod: Pod, room: Room) -> bool:
        group = self._group_of(pod)
        return group is not None and of_class(room.node, self.groups[group].accelerator)

    def _group_of(self, pod: Pod) -> str | None:
        named = [name for name in self.groups if pod.variant.startswith(f"{name}-")]
        return max(named, key=len) if named else None

    def _order_nodes(self, unplaced: Iterable[Pod]) -> None:
        """As a node autoscaler does: pods are packed onto nodes on their way, and nodes ordered for the rest."""
        coming = [(life.group, sum(life.node.allocatable.values())) for life in self._booting.values()]
        left = [[group, free] for group, free in coming]
        for pod in sorted(unplaced, key=lambda p: -sum(p.accelerators.values())):
            group, need = self._group_of(pod), sum(pod.accelerators.values())
            if group is None:
                continue
            for slot in left:
                if slot[0] == group and isinstance(slot[1], int) and slot[1] >= need:
                    slot[1] -= need
                    break
            else:
                size = self._order(group, need)
                if size:
                    left.append([group, size - need])

    def _order(self, group: str, need: int) -> int:
        """Accelerators of the node ordered for so many; 0 where none may be had, or none would be large enough."""
        limits = self.groups[group]
        size = limits.accelerators_per_node if limits.whole_nodes else need
        if need > limits.accelerators_per_node or self._existing(group) + size > limits.most_accelerators:
            return 0
        life = self._make(group, size)
        self._booting[life.node.name] = life
        ready_at = self.now + self.pace.node_start_seconds
        heappush(self._due, (ready_at, next(self._serial), "node", life.node.name))
        return size

    def _existing(self, group: str) -> int:
        every = (*self._nodes.values(), *self._booting.values())
        return sum(sum(life.node.allocatable.values()) for life in every if life.group == group)

    def _make(self, group: str, accelerators: int) -> _NodeLife:
        limits = self.groups[group]
        serial = self._ordered[group] = self._ordered.get(group, 0) + 1
        resource = limits.accelerator.spec.resource_name
        node = Node(
            name=f"{group}-{serial:04}",
            labels=dict(limits.accelerator.spec.node_labels),
            allocatable={resource: accelerators},
            cpu_cores=inf,
            memory_bytes=inf,
            ready=True,
            schedulable=True,
            created_at=self.now,
            taints=({"key": resource, "effect": "NoSchedule"},),
        )
        self.ledger.node_ordered(node.name, limits.accelerator, accelerators, self.now)
        return _NodeLife(node, group)

    def _node_started(self, name: str) -> None:
        life = self._booting.pop(name, None)
        if life is not None:
            self._join(life)

    def _join(self, life: _NodeLife) -> None:
        self._nodes[life.node.name] = life

    def _release_nodes(self) -> None:
        used = {pod.node for pod in self.pods.values()}
        used |= {pod.nominated_node for pod in self.pods.values() if pod.node is None}
        for name, life in list(self._nodes.items()):
            if name in used:
                life.empty_since = None
                continue
            if life.empty_since is None:
                life.empty_since = self.now
                heappush(self._due, (self._released_at(self.now), next(self._serial), "release", name))
            if self.now >= self._released_at(life.empty_since):
                del self._nodes[name]
                self.ledger.node_gone(name, self.now)

    def _released_at(self, empty_since: float) -> float:
        return empty_since + self.pace.node_idle_seconds


_READY, _STARTING, _DRAINING = range(3)


def _state(pod: Pod) -> int:
    if pod.deleting or pod.serving is False:
        return _DRAINING
    return _READY if pod.ready else _STARTING


def _key_of(manifest: Mapping[str, Any]) -> ObjectKey:
    metadata = manifest["metadata"]
    return ObjectKey(manifest["kind"], metadata["namespace"], metadata["name"])
