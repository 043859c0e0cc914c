"""Builds the Snapshot: everything that is known at one moment, from the stores and the last round of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import Architecture
from tokenservice.app.metering import Metering
from tokenservice.core import locality
from tokenservice.core.margin import remembered
from tokenservice.core.memo import Memo
from tokenservice.core.model import (
    Accelerator,
    Margin,
    Node,
    ObjectKey,
    Plan,
    Pod,
    Problem,
    Profile,
    Reason,
    Service,
    ServiceKey,
    Settings,
    Snapshot,
)
from tokenservice.core.names import LEADER_WORKER_SET
from tokenservice.edge.projections import Complaint, Fleet, Resident, Unreadable
from tokenservice.edge.resources import OPTIONAL_KINDS, OWNED_KINDS
from tokenservice.edge.store import Stores

T = TypeVar("T")

NOTHING = Plan()
CHILD_KINDS = (*OWNED_KINDS, *OPTIONAL_KINDS)


@dataclass(slots=True, kw_only=True)
class Observer:
    """Reads the stores; does no I/O of its own."""

    stores: Stores
    metering: Metering
    settings: Settings
    architectures: Mapping[str, Architecture]
    status_written_at: Callable[[], Mapping[ObjectKey, float]]
    complaints: Callable[[], Iterable[Complaint]] = tuple
    """What is said of pods that cannot be prepared. Events are hearsay: nothing waits for them or rests on them."""
    memo: Memo = field(default_factory=Memo)
    _last_good: TokenFleetSpec | None = field(default=None, init=False)

    def snapshot(self, lagging: Iterable[str] = (), previous: Plan = NOTHING) -> Snapshot | None:
        """None until every kind was listed once: a plan from half a view would take the missing half for gone.

        And until Prometheus was asked once: else a restart would tell every service that its metrics are missing.
        """
        if not (self.stores.synced and self.metering.answered):
            return None
        accelerators = self._readable("AcceleratorClass", Accelerator)
        resources = frozenset(accelerator.spec.resource_name for accelerator in accelerators)
        services, fleet, policy = self.services(), self.fleet(), self.policy()
        nodes: list[Node] = self.stores.values("Node")
        pods: list[Pod] = self.stores.values("Pod", Pod)
        others = (*self.stores.each("Pod", Resident), *(pod for pod in pods if not _matters(pod, resources)))
        answer = self.metering.answer(services, policy)
        children = [child for kind in CHILD_KINDS for child in self.stores.values(kind)]
        return Snapshot(
            services=services,
            nodes=self._nodes(nodes, resources, _taken(others)),
            pods=_told_of(tuple(_pods(pods, resources)), self.complaints()),
            children={child.key: child for child in children},
            accelerators=accelerators,
            profiles=self._readable("CapacityProfile", Profile),
            architectures=self.architectures,
            metrics=answer.services,
            settings=self.settings,
            fleet=policy,
            fleet_object=fleet.body if fleet else None,
            fleet_problem=self._fleet_problem(),
            fleet_utilization=answer.utilization,
            fleet_means=answer.means,
            holders=self._holders(services, nodes),
            leader_worker_sets=self.stores.has_kind(LEADER_WORKER_SET),
            adapters=answer.adapters,
            stale_kinds=tuple(sorted({*self.stores.stale_kinds(), *lagging})),
            status_written_at=self.status_written_at(),
            proposals=previous.proposals,
            slow_since=previous.slow_since,
            given_up=previous.given_up,
            margins=_margins(self.services(), previous),
            hindsights=previous.hindsights,
        )

    def _nodes(
        self, seen: Sequence[Node], resources: frozenset[str], taken: Mapping[str, tuple[float, float]]
    ) -> tuple[Node, ...]:
        """Nodes with accelerators; the same objects as last time where nothing of theirs changed."""
        nodes = {node.name: node for node in seen}
        names, others = tuple(nodes), {name: taken.get(name, (0.0, 0.0)) for name in nodes}
        left = self.memo.recall_each(
            "nodes",
            names,
            (tuple(nodes.values()), tuple(others.values())),
            lambda new: [_left(nodes[name], resources, others[name]) for name in new],
            shared=(resources,),
        )
        return tuple([node for node in left.values() if node is not None])

    def _holders(self, services: Sequence[Service], nodes: Sequence[Node]) -> locality.Holders:
        images = locality.in_use(services, self.settings.images, self.memo)
        return locality.holders(nodes, images, self.memo)

    def services(self) -> tuple[Service, ...]:
        """All TokenServices."""
        return tuple(self.stores.values("TokenService"))

    def fleet(self) -> Fleet | None:
        """The TokenFleet, if there is one."""
        fleets: list[Fleet] = self.stores.values("TokenFleet")
        return next((fleet for fleet in fleets if fleet.name == "default"), None)

    def policy(self) -> TokenFleetSpec:
        """The fleet's policy. While nobody can read it the last good one holds: a typing error lifts no limit.

        A process that never saw a good one takes what can be read, field by field.
        """
        fleet = self.fleet()
        if fleet is None or fleet.error is None:
            self._last_good = fleet.spec if fleet else None
            return fleet.spec if fleet else TokenFleetSpec()
        return fleet.spec if self._last_good is None else self._last_good

    def unreadable(self) -> list[Unreadable]:
        """Cluster-wide objects of ours that nobody can read."""
        values = [*self.stores.values("AcceleratorClass"), *self.stores.values("CapacityProfile")]
        return [*(value for value in values if isinstance(value, Unreadable)), *self._unreadable_fleet()]

    def _unreadable_fleet(self) -> Iterable[Unreadable]:
        fleet = self.fleet()
        if fleet is not None and fleet.error is not None:
            meanwhile = "the last policy that could be read holds"
            if self._last_good is None:
                meanwhile = "the fields that can be read hold, the others are at their defaults"
            key, uid = ObjectKey("TokenFleet", "", fleet.name), str(fleet.body["metadata"].get("uid", ""))
            yield Unreadable(key, uid, fleet.error, meanwhile)

    def _fleet_problem(self) -> Problem | None:
        for found in self._unreadable_fleet():
            path, _, what = found.error.partition(": ")
            return Problem(Reason.INVALID_SPEC, path, f"{what}: {found.meanwhile} until this is mended")
        return None

    def _readable(self, kind: str, of: type[T]) -> tuple[T, ...]:
        return tuple(value for value in self.stores.values(kind) if isinstance(value, of))


def _margins(services: Iterable[Service], previous: Plan) -> dict[ServiceKey, Margin]:
    """What was learned of each service: by this process, else by the one that wrote the status."""
    known = previous.margins
    return {it.key: known[it.key] if it.key in known else remembered(it.status) for it in services}


def _left(node: Node, resources: frozenset[str], taken: tuple[float, float]) -> Node | None:
    """A node less what others take; other extended resources (network cards, devices) are no accelerators.

    Its images stand in `Snapshot.holders`, the other way round.
    """
    held = {name: count for name, count in node.allocatable.items() if name in resources}
    if not held:
        return None
    cores, size = taken
    left_cores, left_bytes = node.cpu_cores - cores, node.memory_bytes - size
    return replace(node, allocatable=held, cpu_cores=left_cores, memory_bytes=left_bytes, images=())


def _taken(others: Iterable[Resident | Pod]) -> dict[str, tuple[float, float]]:
    """Cores and bytes by node that pods without accelerators hold."""
    taken: dict[str, tuple[float, float]] = {}
    for other in others:
        if other.node is not None:
            cores, size = taken.get(other.node, (0.0, 0.0))
            taken[other.node] = cores + other.cpu_cores, size + other.memory_bytes
    return taken


def _pods(pods: Iterable[Pod], resources: frozenset[str]) -> Iterable[Pod]:
    """Engine pods, and foreign pods that hold accelerators."""
    for pod in pods:
        if _matters(pod, resources):
            held = {name: count for name, count in pod.accelerators.items() if name in resources}
            yield pod if len(held) == len(pod.accelerators) else replace(pod, accelerators=held)


def _told_of(pods: tuple[Pod, ...], complaints: Iterable[Complaint]) -> tuple[Pod, ...]:
    """Pods that are not prepared, with the last that was said of it; the same objects where nothing was.

    An event may name any uid, but no other namespace than its own.
    """
    last: dict[tuple[str, str, str], str] = {}
    for found in sorted(complaints, key=lambda one: (one.at, one.words)):
        last[(*found.pod, found.uid)] = found.words
    return tuple([replace(p, complaint=last[_id_of(p)]) if p.unprepared and _id_of(p) in last else p for p in pods])


def _id_of(pod: Pod) -> tuple[str, str, str]:
    return pod.namespace, pod.name, pod.uid


def _matters(pod: Pod, resources: frozenset[str]) -> bool:
    return pod.service is not None or not resources.isdisjoint(pod.accelerators)
