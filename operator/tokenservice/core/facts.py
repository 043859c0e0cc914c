"""The snapshot, indexed once: what each part of a decision looks up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from tokenservice.api.token_fleet import NamespaceLimit, TokenFleetSpec
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.capacity import targets
from tokenservice.core.groups import joined
from tokenservice.core.hindsight import UNWATCHED, Advice, Hindsight, all_advice
from tokenservice.core.margin import UNTRIED, allowed
from tokenservice.core.memo import Memo
from tokenservice.core.model import Accelerator, Child, Margin, Node, Pod, Service, ServiceKey, Snapshot
from tokenservice.core.names import (
    ENGINE_KINDS,
    LEADER_WORKER_SET,
    REGION_LABEL,
    SERVICE_LABEL,
    SURGE_ANNOTATION,
    VARIANT_LABEL,
    ZONE_LABEL,
)
from tokenservice.core.repack import LEAVING
from tokenservice.core.room import Room, Tenancy, of_class, residents, room, tenancy, tolerates


class Site(NamedTuple):
    """Everything that rules may ask of a node: values of the labels that they look at, and its taints."""

    labels: tuple[str | None, ...]
    taints: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """Pods of ours; by variant and by service only those that live, of which so many serve.

    A replica of several pods is its leader there; the pods that only work for one are its `workers`.
    `gated` are held back by our gate alone, `moving` are marked by a move, `stuck` find no room.
    """

    all: tuple[Pod, ...]
    by_variant: Mapping[tuple[ServiceKey, str], tuple[Pod, ...]]
    by_service: Mapping[ServiceKey, tuple[Pod, ...]]
    workers: Mapping[ServiceKey, tuple[Pod, ...]]
    ready: Mapping[ServiceKey, int]
    gated: tuple[Pod, ...]
    moving: tuple[Pod, ...]
    stuck: tuple[Pod, ...]


def engines(pods: Iterable[Pod]) -> Engines:
    """Sorts the engine pods out of all pods."""
    ours = tuple([pod for pod in pods if pod.service is not None])
    found: dict[tuple[ServiceKey, str], list[Pod]] = {}
    workers: dict[ServiceKey, list[Pod]] = {}
    for pod in ours:
        if pod.service is not None and not pod.deleting and pod.phase not in ("Succeeded", "Failed"):
            if pod.worker:
                workers.setdefault(pod.service, []).append(pod)
            else:
                found.setdefault((pod.service, pod.variant), []).append(pod)
    by_service: dict[ServiceKey, list[Pod]] = {}
    for (service, _), mine in found.items():
        by_service.setdefault(service, []).extend(mine)
    staying = [pod for pod in ours if not pod.deleting]
    return Engines(
        all=ours,
        by_variant={key: tuple(mine) for key, mine in found.items()},
        by_service={service: tuple(mine) for service, mine in by_service.items()},
        workers={service: tuple(mine) for service, mine in workers.items()},
        ready={service: sum([pod.ready for pod in mine]) for service, mine in by_service.items()},
        gated=tuple([pod for pod in staying if pod.gated and not pod.other_gates]),
        moving=tuple([pod for pod in staying if pod.deletion_cost <= LEAVING]),
        stuck=tuple([pod for pod in staying if pod.unschedulable]),
    )


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
        sites = frozenset(self.sites)
        apis = seen.leader_worker_sets
        found = (classes, seen.profiles, seen.architectures, seen.settings, seen.fleet, sites, apis)
        return self.memo.same("scope", found)

    @cached_property
    def _seen_pods(self) -> tuple[Pod, ...]:
        pods = self.memo.same("seen pods", self.snapshot.pods)
        return self.memo.recall("joined pods", None, (pods,), lambda: joined(pods))

    @cached_property
    def residents(self) -> Mapping[str, tuple[Pod, ...]]:
        """Pods on every node, or on their way there, by node name."""
        pods = self._seen_pods
        return self.memo.recall("residents", None, (pods,), lambda: residents(pods))

    @cached_property
    def rooms(self) -> Mapping[str, Room]:
        """What is left of every node of the fleet, by node name."""
        return self.memo.recall("rooms", None, (self.fleet_nodes, self.residents), self._rooms)

    def _rooms(self) -> Mapping[str, Room]:
        on = self.residents
        given = {node.name: (node, on.get(node.name, ())) for node in self.fleet_nodes}
        return self.memo.recall_each("room", given, lambda new: [room(*given[name]) for name in new])

    @cached_property
    def tenancies(self) -> Mapping[str, Tenancy]:
        """What is held of every node that somebody is on, by node name."""
        return self.memo.recall("tenancies", None, (self.residents,), self._tenancies)

    def _tenancies(self) -> Mapping[str, Tenancy]:
        given = {name: (mine,) for name, mine in self.residents.items()}
        return self.memo.recall_each("tenancy", given, lambda new: [tenancy(*given[name]) for name in new])

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
        """A node of every site: what holds for it holds for the others there, as far as rules go."""
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
    def services(self) -> Mapping[ServiceKey, Service]:
        return {service.key: service for service in self.snapshot.services}

    @cached_property
    def engines(self) -> Engines:
        """Pods of ours, sorted out."""
        pods = self._seen_pods
        return self.memo.recall("pods", None, (pods,), lambda: engines(pods))

    @property
    def engine_pods(self) -> tuple[Pod, ...]:
        return self.engines.all

    @property
    def pods(self) -> Mapping[tuple[ServiceKey, str], tuple[Pod, ...]]:
        """Living engine pods by (service, variant)."""
        return self.engines.by_variant

    @cached_property
    def _children(self) -> tuple[Mapping[ServiceKey, tuple[Child, ...]], Mapping[ServiceKey, Mapping[str, Child]]]:
        children = self.snapshot.children
        return self.memo.recall("children", None, (children,), lambda: _by_owner(children.values()))

    @property
    def deployments(self) -> Mapping[ServiceKey, Mapping[str, Child]]:
        """Our Deployments, and LeaderWorkerSets, by service and variant."""
        return self._children[1]

    def counts(self, service: ServiceKey) -> Mapping[str, int]:
        """Replicas asked for, by variant, as the Deployments say now; without those that only stand in for others.

        Were they counted, a count that is held would grow by them, and call for more to stand in, in every pass.
        """
        return self._counts.get(service, {})

    @cached_property
    def _counts(self) -> Mapping[ServiceKey, Mapping[str, int]]:
        given = (self.deployments,)
        return self.memo.recall("replicas", None, given, lambda: _asked_for(self.deployments))

    def belongings(self, service: ServiceKey) -> tuple[object, ...]:
        """Everything of one service that stands in the cluster: children, living pods, and the nodes of these.

        One and the same object for as long as nothing of it changes.
        """
        return self._belongings.get(service, ())

    @cached_property
    def _belongings(self) -> Mapping[ServiceKey, tuple[object, ...]]:
        services = tuple([service.key for service in self.snapshot.services])
        given = (services, self._children, self.engines, self.nodes)
        return self.memo.recall("belongings", None, given, self._belongings_of_all)

    def _belongings_of_all(self) -> Mapping[ServiceKey, tuple[object, ...]]:
        children, pods, nodes = self._children[0], self.engines.by_service, self.nodes
        workers = self.engines.workers
        given: dict[ServiceKey, tuple[object, ...]] = {}
        for service in self.snapshot.services:
            mine = pods.get(service.key, ())
            on = tuple([nodes.get(pod.node or "") for pod in mine])
            given[service.key] = (children.get(service.key, ()), mine, on, workers.get(service.key, ()))
        return self.memo.recall_each("belongings", given, lambda new: [given[key] for key in new])

    def pods_of(self, service: ServiceKey) -> tuple[Pod, ...]:
        """Living engine pods of a service, whatever their variant; of replicas of several pods the leaders."""
        return self.engines.by_service.get(service, ())

    def workers_of(self, service: ServiceKey) -> tuple[Pod, ...]:
        """Living pods that work for a leader of the service: they hold accelerators beside those of `pods_of`."""
        return self.engines.workers.get(service, ())

    def margin(self, service: ServiceKey) -> Margin:
        """What was learned of the service's capacity."""
        return self.snapshot.margins.get(service, UNTRIED)

    def holding(self, service: ServiceKey) -> Advice | None:
        """What hindsight advises; None where the user's own window rules."""
        return self._holdings.get(service)

    @cached_property
    def _holdings(self) -> Mapping[ServiceKey, Advice]:
        if self.snapshot.fleet.consolidation.scale_down_window_seconds is not None:
            return {}
        records = self.snapshot.hindsights
        given = {one.key: (records.get(one.key), one.spec) for one in self.snapshot.services if one.spec is not None}
        return self.memo.recall_each("holding", given, lambda new: _advice([given[key] for key in new]))

    def ready(self, service: ServiceKey) -> int:
        """Pods of the service that serve."""
        return self.engines.ready.get(service, 0)

    @cached_property
    def _rivals(self) -> Mapping[ServiceKey, tuple[Service, ...]]:
        services = self.snapshot.services
        return self.memo.recall("rivals", None, (services,), lambda: _rivals_among(services))

    def rivals(self, service: ServiceKey) -> tuple[Service, ...]:
        """Services of the namespace that answer to a model name that this one answers to as well, itself included."""
        return self._rivals.get(service, ())

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
        """Whether the fleet has a node of the class, whatever its state."""
        return accelerator.name in self._present

    @cached_property
    def _present(self) -> frozenset[str]:
        nodes, classes = self.sites.values(), self.snapshot.accelerators
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
    return (
        any(node.allocatable.values())
        and (not fleet.accelerator_nodes or _carries(node, fleet.accelerator_nodes))
        and not (untouched and _carries(node, untouched))
    )


def _sites_of(nodes: Sequence[Node], labels: tuple[str, ...]) -> tuple[dict[str, Site], dict[Site, Node]]:
    known: dict[Site, Site] = {}
    by_name, first = dict[str, Site](), dict[Site, Node]()
    for node in nodes:
        taints = tuple([(str(taint.get("key")), str(taint.get("effect"))) for taint in node.taints])
        made = Site(tuple([node.labels.get(label) for label in labels]), taints)
        site = by_name[node.name] = known.setdefault(made, made)
        first.setdefault(site, node)
    return by_name, first


def _by_owner(
    children: Iterable[Child],
) -> tuple[dict[ServiceKey, tuple[Child, ...]], dict[ServiceKey, dict[str, Child]]]:
    """All children by owner, and those that make engine pods by owner and variant."""
    found: dict[ServiceKey, list[Child]] = {}
    deployments: dict[ServiceKey, dict[str, Child]] = {}
    for child in children:
        found.setdefault(child.owner, []).append(child)
        if child.key.kind in ENGINE_KINDS:
            variant = child.body.get("metadata", {}).get("labels", {}).get(VARIANT_LABEL, "")
            deployments.setdefault(child.owner, {})[variant] = child
    return {service: tuple(mine) for service, mine in found.items()}, deployments


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


def _asked_for(deployments: Mapping[ServiceKey, Mapping[str, Child]]) -> dict[ServiceKey, Mapping[str, int]]:
    return {
        service: {variant: max(0, replicas(child) - surge(child)) for variant, child in mine.items()}
        for service, mine in deployments.items()
    }


def replicas(deployment: Child) -> int:
    """The count that a Deployment asks for."""
    return int(deployment.body.get("spec", {}).get("replicas", 1))


def surge(deployment: Child) -> int:
    """How many of the replicas stand in for others that are about to leave; others may have written nonsense there."""
    text = str((deployment.body.get("metadata", {}).get("annotations") or {}).get(SURGE_ANNOTATION, ""))
    return int(text) if text.isdecimal() else 0


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
    behind = status.get("observedGeneration", 0) < deployment.body.get("metadata", {}).get("generation", 0)
    return behind or int(status.get("updatedReplicas", 0)) < int(status.get("replicas", 0))


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


def owner_of(labels: Mapping[str, str], namespace: str) -> ServiceKey | None:
    """The service that an object's labels name."""
    name = labels.get(SERVICE_LABEL)
    return ServiceKey(namespace, name) if name else None
