"""The snapshot, indexed once: what each part of a decision looks up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from tokenservice.api.token_fleet import NamespaceLimit, TokenFleetSpec
from tokenservice.api.token_service import Mode, TokenServiceSpec
from tokenservice.core.capacity import targets
from tokenservice.core.groups import joined
from tokenservice.core.hindsight import UNWATCHED, Advice, Hindsight, all_advice
from tokenservice.core.index import change, grouped, regrouped
from tokenservice.core.margin import UNTRIED, allowed
from tokenservice.core.memo import Memo, column
from tokenservice.core.model import Accelerator, Child, Margin, Node, ObjectKey, Pod, Service, ServiceKey, Snapshot
from tokenservice.core.names import (
    ENGINE_KINDS,
    LEADER_WORKER_SET,
    REGION_LABEL,
    SURGE_ANNOTATION,
    VARIANT_LABEL,
    ZONE_LABEL,
)
from tokenservice.core.packing import Held
from tokenservice.core.repack import LEAVING, stand
from tokenservice.core.room import Room, Tenancy, home, of_class, room, tenancy, tolerates


class Site(NamedTuple):
    """Everything that rules may ask of a node: values of the labels that they look at, and its taints."""

    labels: tuple[str | None, ...]
    taints: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pods:
    """All pods, sorted out.

    A replica of several pods is its leader here; the pods that only work for one are its `workers`. `engines` are ours,
    of which only those that live are in `by_variant`, `by_service` and `workers`. `residents` are on a node or on their
    way there, by its name, whoever they are; `staying` are ours that are to stay where they are, `going` those that are
    on their way out, by service. Of ours that are not going, those in `gated` are held back by our gate alone, in
    `moving` are marked by a move, and in `stuck` find no room, under True.
    """

    engines: tuple[Pod, ...]
    by_variant: Mapping[tuple[ServiceKey, str], tuple[Pod, ...]]
    by_service: Mapping[ServiceKey, tuple[Pod, ...]]
    workers: Mapping[ServiceKey, tuple[Pod, ...]]
    residents: Mapping[str, tuple[Pod, ...]]
    staying: Mapping[str, tuple[Pod, ...]]
    going: Mapping[ServiceKey, tuple[Pod, ...]]
    gated: Mapping[bool, tuple[Pod, ...]]
    moving: Mapping[bool, tuple[Pod, ...]]
    stuck: Mapping[bool, tuple[Pod, ...]]


def sorted_out(pods: tuple[Pod, ...]) -> Pods:
    """From nothing."""
    ours = tuple([pod for pod in pods if pod.service is not None])
    return Pods(engines=ours, **{name: grouped(pods, key) for name, key in _KEYS.items()})


def sorted_anew(before: tuple[Pod, ...], last: Pods, pods: tuple[Pod, ...]) -> Pods:
    """`sorted_out(pods)`, made from `last`, which is `sorted_out(before)`."""
    ours, changed = tuple([pod for pod in pods if pod.service is not None]), change(before, pods)
    return Pods(engines=ours, **{name: regrouped(getattr(last, name), changed, key) for name, key in _KEYS.items()})


def _alive(pod: Pod) -> ServiceKey | None:
    """The service of an engine pod that lives."""
    return None if pod.deleting else pod.service


def _living(pod: Pod) -> ServiceKey | None:
    """As `_alive`, of a pod that is a replica."""
    return None if pod.worker else _alive(pod)


def _variant(pod: Pod) -> tuple[ServiceKey, str] | None:
    service = _living(pod)
    return None if service is None else (service, pod.variant)


def _staying(pod: Pod) -> bool:
    """Whether it is a pod of ours that is not going."""
    return pod.service is not None and not pod.deleting


_KEYS: Mapping[str, Callable[[Pod], Any]] = {
    "by_variant": _variant,
    "by_service": _living,
    "workers": lambda pod: _alive(pod) if pod.worker else None,
    "residents": home,
    "staying": stand,
    "going": lambda pod: pod.service if pod.deleting else None,
    "gated": lambda pod: (pod.gated and not pod.other_gates and _staying(pod)) or None,
    "moving": lambda pod: (pod.deletion_cost <= LEAVING and _staying(pod)) or None,
    "stuck": lambda pod: (pod.unschedulable and _staying(pod)) or None,
}
"""What the pods are grouped by in each field of `Pods`."""


@dataclass(frozen=True)
class Facts:
    """Look-ups over one snapshot; everything is derived, nothing is changed."""

    snapshot: Snapshot
    memo: Memo = field(default_factory=Memo)

    @cached_property
    def scope(self) -> tuple[object, ...]:
        """What concerns every service: one and the same object for as long as nothing of it changes."""
        seen = self.snapshot
        classes = tuple((one.name, one.spec) for one in seen.accelerators)
        sites = frozenset((site, _offers(node)) for site, node in self.sites.items())
        apis = seen.leader_worker_sets
        found = (classes, seen.profiles, seen.architectures, seen.settings, seen.fleet, sites, apis)
        return self.memo.same("scope", found)

    @cached_property
    def _pods(self) -> Pods:
        seen = self.snapshot.pods
        pods = self.memo.recall("joined pods", None, (seen,), lambda: joined(seen))
        return self.memo.renew(
            "pods", pods, lambda: sorted_out(pods), lambda before, last: sorted_anew(before, last, pods)
        )

    @property
    def residents(self) -> Mapping[str, tuple[Pod, ...]]:
        """Pods on every node, or on their way there, by node name."""
        return self._pods.residents

    @cached_property
    def rooms(self) -> Mapping[str, Room]:
        """What is left of every node of the fleet, by node name."""
        return self.memo.recall("rooms", None, (self.fleet_nodes, self.residents), self._rooms)

    def _rooms(self) -> Mapping[str, Room]:
        nodes, on = self.nodes, self.residents
        names = tuple([node.name for node in self.fleet_nodes])
        given = (self.fleet_nodes, [on.get(name, ()) for name in names])
        return self.memo.recall_each(
            "room", names, given, lambda new: [room(nodes[name], on.get(name, ())) for name in new]
        )

    @cached_property
    def tenancies(self) -> Mapping[str, Tenancy]:
        """What is held of every node that somebody is on, by node name."""
        return self.memo.recall("tenancies", None, (self.residents,), self._tenancies)

    def _tenancies(self) -> Mapping[str, Tenancy]:
        on = self.residents
        return self.memo.recall_each(
            "tenancy", tuple(on), (tuple(on.values()),), lambda new: [tenancy(on[name]) for name in new]
        )

    @cached_property
    def fleet_nodes(self) -> tuple[Node, ...]:
        """Nodes with accelerators that the fleet may use."""
        nodes, fleet = self.snapshot.nodes, self.snapshot.fleet
        return self.memo.recall(
            "nodes", None, (nodes, fleet), lambda: tuple(node for node in nodes if _in_fleet(node, fleet))
        )

    @cached_property
    def _sites(self) -> tuple[Mapping[str, Site], Mapping[Site, Node]]:
        """Sites by node name, and the first node of each."""
        asked = {label for one in self.snapshot.accelerators for label in one.spec.node_labels}
        labels = tuple(sorted(asked | {REGION_LABEL, ZONE_LABEL}))
        return self.memo.recall("sites", None, (self.fleet_nodes, labels), lambda: _sites_of(self.fleet_nodes, labels))

    def site(self, node: Node) -> Site:
        """The site of a node of the fleet: nodes of one site suit the same services."""
        return self._sites[0][node.name]

    @cached_property
    def sites(self) -> Mapping[Site, Node]:
        """A node of every site: what holds for it holds for the others there, as far as rules go.

        One that offers accelerators, where there is one.
        """
        return self._sites[1]

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        nodes = self.snapshot.nodes
        return self.memo.recall("node names", None, (nodes,), lambda: {node.name: node for node in nodes})

    @cached_property
    def accelerators(self) -> Mapping[str, Accelerator]:
        return {accelerator.name: accelerator for accelerator in self.snapshot.accelerators}

    def limit_of(self, namespace: str) -> NamespaceLimit | None:
        """What the fleet's policy lets the services of a namespace take; None without a limit."""
        return self._limits.get(namespace)

    @cached_property
    def _limits(self) -> Mapping[str, NamespaceLimit]:
        return {limit.name: limit for limit in self.snapshot.fleet.namespaces}

    def allowed_classes(self, namespace: str) -> tuple[Accelerator, ...]:
        """The classes that services of a namespace may use."""
        limit = self.limit_of(namespace)
        if limit is None or not limit.accelerators:
            return self.snapshot.accelerators
        return tuple(one for one in self.snapshot.accelerators if one.name in limit.accelerators)

    @cached_property
    def keys(self) -> tuple[ServiceKey, ...]:
        """Of all services, in order."""
        return self.memo.same("keys", tuple([service.key for service in self.snapshot.services]))

    @cached_property
    def services(self) -> Mapping[ServiceKey, Service]:
        return {service.key: service for service in self.snapshot.services}

    @property
    def engine_pods(self) -> tuple[Pod, ...]:
        """Pods of ours."""
        return self._pods.engines

    @property
    def pods(self) -> Mapping[tuple[ServiceKey, str], tuple[Pod, ...]]:
        """Living engine pods by (service, variant)."""
        return self._pods.by_variant

    @property
    def staying(self) -> Mapping[str, tuple[Pod, ...]]:
        """Pods of ours that are to stay where they are, by the node that they are bound to."""
        return self._pods.staying

    @property
    def going(self) -> Mapping[ServiceKey, tuple[Pod, ...]]:
        """Pods of ours on their way out, by service: they hold what they have until they are gone."""
        return self._pods.going

    @property
    def gated(self) -> tuple[Pod, ...]:
        """Pods of ours that our gate alone holds back."""
        return self._pods.gated.get(True, ())

    @property
    def moving(self) -> tuple[Pod, ...]:
        """Pods of ours that are marked by a move."""
        return self._pods.moving.get(True, ())

    @property
    def stuck(self) -> tuple[Pod, ...]:
        """Pods of ours that find no room."""
        return self._pods.stuck.get(True, ())

    @cached_property
    def _children(self) -> Mapping[ServiceKey, tuple[Child, ...]]:
        """All children by owner."""
        there = tuple(self.snapshot.children.values())
        return self.memo.renew(
            "children",
            there,
            lambda: grouped(there, _owner),
            lambda before, last: regrouped(last, change(before, there), _owner),
        )

    @cached_property
    def deployments(self) -> Mapping[ServiceKey, Mapping[str, Child]]:
        """Our Deployments, and LeaderWorkerSets, by service and variant."""
        mine = self._children
        return self.memo.recall_each(
            "deployments", tuple(mine), (tuple(mine.values()),), lambda new: [_deployments(mine[key]) for key in new]
        )

    def counts(self, service: ServiceKey) -> Mapping[str, int]:
        """Replicas asked for, by variant, as the Deployments say now; without those that only stand in for others.

        Were they counted, a count that is held would grow by them, and call for more to stand in, in every pass.
        """
        return self._counts.get(service, {})

    @cached_property
    def _counts(self) -> Mapping[ServiceKey, Mapping[str, int]]:
        mine = self.deployments
        return self.memo.recall_each(
            "replicas", tuple(mine), (tuple(mine.values()),), lambda new: [_asked_for(mine[key]) for key in new]
        )

    def belongings(self, service: ServiceKey) -> tuple[object, ...]:
        """Everything of one service that stands in the cluster: children, living pods, and the nodes of these.

        One and the same object for as long as nothing of it changes.
        """
        return self.all_belongings.get(service, ())

    @cached_property
    def all_belongings(self) -> Mapping[ServiceKey, tuple[object, ...]]:
        """The `belongings` of every service, in the order of `keys`."""
        keys, nodes, children, pods = self.keys, self.nodes, self._children, self._pods.by_service
        mine = column(pods, keys, ())
        on = self.memo.recall_each(
            "homes", keys, (mine,), lambda new: [_homes(pods.get(key, ()), nodes) for key in new], shared=(nodes,)
        )
        workers = self._pods.workers
        given = (column(children, keys, ()), mine, tuple(on.values()), column(workers, keys, ()))
        return self.memo.recall_each(
            "belongings",
            keys,
            given,
            lambda new: [(children.get(key, ()), pods.get(key, ()), on[key], workers.get(key, ())) for key in new],
        )

    def child(self, service: ServiceKey, kind: str, name: str) -> Child | None:
        """The service's own child of that name; names of two services may meet."""
        found = self.snapshot.children.get(ObjectKey(kind, service.namespace, name))
        return found if found is not None and found.owner == service else None

    def pods_of(self, service: ServiceKey) -> tuple[Pod, ...]:
        """Living engine pods of a service, whatever their variant; of replicas of several pods the leaders."""
        return self._pods.by_service.get(service, ())

    def workers_of(self, service: ServiceKey) -> tuple[Pod, ...]:
        """Living pods that work for a leader of the service: they hold accelerators beside those of `pods_of`."""
        return self._pods.workers.get(service, ())

    def margin(self, service: ServiceKey) -> Margin:
        """What was learned of the service's capacity."""
        return self.snapshot.margins.get(service, UNTRIED)

    def holding(self, service: ServiceKey) -> Advice | None:
        """What hindsight advises; None where the user's own window rules."""
        return self.holdings.get(service)

    @cached_property
    def holdings(self) -> Mapping[ServiceKey, Advice]:
        """By service, where hindsight advises."""
        if self.snapshot.fleet.consolidation.scale_down_window_seconds is not None:
            return {}
        records = self.snapshot.hindsights
        specs = {one.key: one.spec for one in self.snapshot.services if one.spec is not None}
        keys = tuple(specs)
        given = (column(records, keys, None), tuple(specs.values()))
        return self.memo.recall_each(
            "holding", keys, given, lambda new: _advice([(records.get(key), specs[key]) for key in new])
        )

    def ready(self, service: ServiceKey) -> int:
        """Pods of the service that serve."""
        return self.all_ready.get(service, 0)

    @cached_property
    def all_ready(self) -> Mapping[ServiceKey, int]:
        """Pods that serve, by service."""
        pods = self._pods.by_service
        return self.memo.recall_each(
            "ready",
            tuple(pods),
            (tuple(pods.values()),),
            lambda new: [sum([pod.ready for pod in pods[key]]) for key in new],
        )

    @cached_property
    def all_rivals(self) -> Mapping[ServiceKey, tuple[Service, ...]]:
        """The `rivals` of every service."""
        services = self.snapshot.services
        return self.memo.recall("rivals", None, (services,), lambda: _rivals_among(services))

    def rivals(self, service: ServiceKey) -> tuple[Service, ...]:
        """Services of the namespace that answer to a model name that this one answers to as well, itself included."""
        return self.all_rivals.get(service, ())

    def held(self, pod: Pod) -> Held:
        """For each image that the pod needs, and that any node has, the nodes that have it."""
        return tuple([nodes for image in pod.images if (nodes := self.snapshot.holders.get(image))])

    @cached_property
    def emptied(self) -> frozenset[str]:
        """Names of nodes that a pod of ours is to leave: they take no other. Who may not be touched leaves none."""
        leaving = [pod for pod in self.engine_pods if self.leaving(pod)]
        owned = [(pod.node, self.services.get(pod.service)) for pod in leaving if pod.service is not None]
        return frozenset(node for node, service in owned if node and service is not None and self.acting(service))

    def acting(self, service: Service) -> bool:
        """Whether the operator may change anything of this service."""
        spec = service.spec
        return (
            spec is not None
            and spec.mode is Mode.ACT
            and not spec.paused
            and service.key.namespace not in self.snapshot.fleet.never_touch.namespaces
        )

    def leaving(self, pod: Pod) -> bool:
        """Whether the pod is to be replaced: marked by a move, or on a node that is cordoned or going."""
        node = self.nodes.get(pod.node or "")
        return pod.deletion_cost <= LEAVING or (node is not None and (not node.schedulable or node.deleting))

    def admits(self, pod: Pod, room: Room) -> bool:
        """Whether the hard rules of the pod's service allow the node."""
        service = self.services.get(pod.service) if pod.service is not None else None
        if service is None or service.spec is None:
            return False
        accelerator = self.accelerator_of(pod)
        return (
            accelerator is not None
            and of_class(room.node, accelerator)
            and tolerates(room.node, accelerator.spec.resource_name)
            and allowed_location(service, room.node)
        )

    def present(self, accelerator: Accelerator) -> bool:
        """Whether the fleet has a node of the class that offers accelerators, whatever its state."""
        return accelerator.name in self._present

    @cached_property
    def _present(self) -> frozenset[str]:
        nodes, classes = [node for node in self.sites.values() if _offers(node)], self.snapshot.accelerators
        return frozenset(one.name for one in classes if any(of_class(node, one) for node in nodes))

    def accelerator_of(self, pod: Pod) -> Accelerator | None:
        """Class of an engine pod: the one that its variant is named after."""
        return self.accelerator_named(pod.variant)

    def accelerator_named(self, variant: str) -> Accelerator | None:
        """The class that a variant is named after, the longest name that matches."""
        known = self._by_variant
        if variant not in known:
            named = [a for a in self.snapshot.accelerators if variant.startswith(f"{a.name}-")]
            known[variant] = max(named, key=lambda a: len(a.name)) if named else None
        return known[variant]

    @cached_property
    def _by_variant(self) -> dict[str, Accelerator | None]:
        """Filled as variants are asked for."""
        return {}

    def class_of(self, node: Node) -> Accelerator | None:
        """Class of a node; the first by name where labels match several."""
        return self._classes[self.site(node)]

    def nodes_of(self, accelerator: Accelerator) -> tuple[Node, ...]:
        """Nodes of the fleet that carry every label of the class."""
        given = (accelerator.spec, self.fleet_nodes)
        return self.memo.recall(
            f"nodes of {accelerator.name}",
            None,
            given,
            lambda: tuple([node for node in self.fleet_nodes if of_class(node, accelerator)]),
        )

    @cached_property
    def existing(self) -> Mapping[str, int]:
        """Accelerators that there are, by class."""
        return self.memo.recall("existing", None, (self.fleet_nodes, self.scope), self._existing)

    def _existing(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for node in self.fleet_nodes:
            accelerator = self.class_of(node)
            if accelerator is not None:
                found[accelerator.name] = found.get(accelerator.name, 0) + sum(node.allocatable.values())
        return found

    @cached_property
    def _classes(self) -> Mapping[Site, Accelerator | None]:
        classes = self.snapshot.accelerators
        return {site: next((one for one in classes if of_class(node, one)), None) for site, node in self.sites.items()}


def _advice(given: Sequence[tuple[Hindsight | None, TokenServiceSpec]]) -> list[Advice]:
    """Advice for services with these records and specs."""
    known = [(record, allowed(targets(spec.objectives))) for record, spec in given if record is not None]
    found = iter(all_advice([record for record, _ in known], [share for _, share in known]))
    return [UNWATCHED if record is None else next(found) for record, _ in given]


def _in_fleet(node: Node, fleet: TokenFleetSpec) -> bool:
    untouched = fleet.never_touch.node_labels
    return (not fleet.accelerator_nodes or _carries(node, fleet.accelerator_nodes)) and not (
        untouched and _carries(node, untouched)
    )


def _offers(node: Node) -> bool:
    """Whether it has accelerators now; none are reported while a device plugin is down."""
    return any(node.allocatable.values())


def _sites_of(nodes: Sequence[Node], labels: tuple[str, ...]) -> tuple[dict[str, Site], dict[Site, Node]]:
    known: dict[Site, Site] = {}
    by_name, first = dict[str, Site](), dict[Site, Node]()
    for node in nodes:
        taints = tuple([(str(taint.get("key")), str(taint.get("effect"))) for taint in node.taints])
        made = Site(tuple([node.labels.get(label) for label in labels]), taints)
        site = by_name[node.name] = known.setdefault(made, made)
        if site not in first or _offers(node) > _offers(first[site]):
            first[site] = node
    return by_name, first


def _owner(child: Child) -> ServiceKey:
    return child.owner


def _deployments(children: Iterable[Child]) -> dict[str, Child]:
    """Those of a service's children that make engine pods."""
    return {
        child.body.get("metadata", {}).get("labels", {}).get(VARIANT_LABEL, ""): child
        for child in children
        if child.key.kind in ENGINE_KINDS
    }


def _homes(pods: Iterable[Pod], nodes: Mapping[str, Node]) -> tuple[Node | None, ...]:
    return tuple([nodes.get(pod.node or "") for pod in pods])


def _rivals_among(services: Sequence[Service]) -> dict[ServiceKey, tuple[Service, ...]]:
    claims: dict[tuple[str, str], list[Service]] = {}
    names = {service.key: model_names(service) for service in services}
    for service in services:
        for name in names[service.key]:
            claims.setdefault((service.key.namespace, name), []).append(service)
    return {key: _rivals_of(key, mine, claims) for key, mine in names.items()}


def _rivals_of(
    key: ServiceKey, names: tuple[str, ...], claims: Mapping[tuple[str, str], list[Service]]
) -> tuple[Service, ...]:
    """Each rival once, however many names it has in common."""
    if len(names) == 1:
        return tuple(claims[key.namespace, names[0]])
    return tuple({rival.key: rival for name in names for rival in claims[key.namespace, name]}.values())


def _carries(node: Node, labels: Mapping[str, str]) -> bool:
    return all(node.labels.get(key) == value for key, value in labels.items())


def model_names(service: Service) -> tuple[str, ...]:
    """Names that requests use, adapters' included; empty without a readable spec."""
    if service.spec is None:
        return ()
    model = service.spec.model
    return (model.served_name or service.key.name, *(adapter.name for adapter in model.adapters))


def _asked_for(deployments: Mapping[str, Child]) -> dict[str, int]:
    return {variant: max(0, replicas(child) - surge(child)) for variant, child in deployments.items()}


def replicas(deployment: Child) -> int:
    """The count that a Deployment asks for."""
    return int(deployment.body.get("spec", {}).get("replicas", 1))


_DIGITS = 9
"""Of the largest count that an API server takes, at least; Python refuses to read a number of thousands of them."""


def surge(deployment: Child) -> int:
    """How many of the replicas stand in for others that are about to leave; others may have written nonsense there."""
    text = str((deployment.body.get("metadata", {}).get("annotations") or {}).get(SURGE_ANNOTATION, ""))
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else 0


def spans_nodes(deployment: Child) -> bool:
    """Whether its replicas are groups of pods on several nodes."""
    return deployment.key.kind == LEADER_WORKER_SET


def rolling_out(deployment: Child) -> bool:
    """Whether the Deployment still exchanges pods for a new template."""
    status = deployment.body.get("status", {})
    if spans_nodes(deployment):  # which says this in words, and not which generation it speaks of
        return any(
            one.get("type") == "UpdateInProgress" and one.get("status") == "True"
            for one in status.get("conditions") or ()
        )
    return not observed(deployment) or int(status.get("updatedReplicas", 0)) < int(status.get("replicas", 0))


def observed(deployment: Child) -> bool:
    """Whether its controller has acted on what it asks for now."""
    status = deployment.body.get("status", {})
    asked: int = deployment.body.get("metadata", {}).get("generation", 0)
    return int(status.get("observedGeneration", 0)) >= asked


def allowed_location(service: Service, node: Node) -> bool:
    """Residency, regions and zones; residency is never traded for anything."""
    if service.spec is None:
        return False
    placement = service.spec.placement
    region, zone = node.labels.get(REGION_LABEL, ""), node.labels.get(ZONE_LABEL, "")
    residency = placement.residency.regions if placement.residency is not None else ()
    return (
        (not residency or region in residency)
        and (not placement.regions or region in placement.regions)
        and (not placement.zones or zone in placement.zones)
    )
