"""A cluster in miniature that carries plans out, so that decisions can be run in a circle in milliseconds.

It does what the controllers of Deployments and LeaderWorkerSets, the scheduler, the kubelet and the admission webhook
do with engine pods, no more: enough to ask whether a sequence of decisions keeps its promises. The real ones are asked
the same in `e2e/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.build import H100, NOW, make_snapshot
from tokenservice.core.decide import decide
from tokenservice.core.model import (
    Action,
    Apply,
    Child,
    Delete,
    Node,
    ObjectKey,
    Place,
    Plan,
    Pod,
    Proposal,
    Service,
    ServiceKey,
    ServiceMetrics,
    SetDeletionCost,
    SetServing,
    Snapshot,
    StatusWrite,
)
from tokenservice.core.names import ENGINE_KINDS, LEADER_WORKER_SET, SERVICE_LABEL, VARIANT_LABEL
from tokenservice.core.room import rooms


@dataclass
class World:
    """Mutable by design: it stands for the cluster."""

    services: list[Service]
    nodes: list[Node]
    metrics: dict[ServiceKey, ServiceMetrics | Any] = field(default_factory=dict)
    now: float = NOW
    start_seconds: float = 20.0
    webhook: bool = True
    pods: dict[str, Pod] = field(default_factory=dict)
    children: dict[ObjectKey, Child] = field(default_factory=dict)
    proposals: tuple[Proposal, ...] = ()
    slow_since: dict[str, float] = field(default_factory=dict)
    given_up: dict[str, float] = field(default_factory=dict)
    written_at: dict[ObjectKey, float] = field(default_factory=dict)
    history: list[Action] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    decides: Callable[[Snapshot, float], Plan] = decide
    _serial: int = 0

    def snapshot(self) -> Snapshot:
        return make_snapshot(
            *self.services,
            nodes=tuple(self.nodes),
            pods=tuple(sorted(self.pods.values(), key=lambda pod: pod.name)),
            children=dict(self.children),
            metrics=dict(self.metrics),
            proposals=self.proposals,
            slow_since=self.slow_since,
            given_up=self.given_up,
            status_written_at=dict(self.written_at),
            **self.extra,
        )

    def round(self, seconds: float = 5.0) -> Plan:
        """One pass: decide, carry out, let the cluster live for `seconds`."""
        plan = self.decides(self.snapshot(), self.now)
        self.proposals, self.slow_since, self.given_up = plan.proposals, dict(plan.slow_since), dict(plan.given_up)
        for action in plan.actions:
            self.carry_out(action)
        for status in plan.statuses:
            self.write_status(status)
        self.live(seconds)
        return plan

    def run(self, rounds: int, seconds: float = 5.0) -> list[Plan]:
        return [self.round(seconds) for _ in range(rounds)]

    def carry_out(self, action: Action) -> None:
        self.history.append(action)
        if isinstance(action, Apply):
            self._apply(action)
        elif isinstance(action, Delete):
            self.children.pop(action.key, None)
        elif isinstance(action, SetDeletionCost):
            self._change(action.pod.name, deletion_cost=action.cost)
        elif isinstance(action, SetServing):
            self._change(action.pod.name, serving=action.serving, ready=False)
        elif isinstance(action, Place):
            self._change(action.pod.name, gated=False, serving=True, nominated_node=action.node)

    def write_status(self, write: StatusWrite) -> None:
        self.written_at[write.key] = self.now
        if write.key.kind == "AcceleratorClass":
            classes = self.extra.get("accelerators", (H100,))
            self.extra["accelerators"] = tuple(
                replace(one, status=write.status) if one.name == write.key.name else one for one in classes
            )
        self.services = [
            replace(service, status=write.status)
            if write.key == ObjectKey("TokenService", service.key.namespace, service.key.name)
            else service
            for service in self.services
        ]

    def live(self, seconds: float) -> None:
        """The controllers and kubelets act, then time passes."""
        self._delete_gone()
        for child in self._deployments():
            self._reconcile(child)
        self._schedule()
        self.now += seconds
        self._start()

    def add_node(self, node: Node) -> None:
        self.nodes.append(node)

    def serving(self, service: ServiceKey) -> int:
        return sum(pod.ready for pod in self.pods.values() if pod.service == service and not pod.worker)

    def _apply(self, action: Apply) -> None:
        metadata = action.manifest["metadata"]
        key = ObjectKey(action.manifest["kind"], metadata["namespace"], metadata["name"])
        live = self.children.get(key)
        if action.resource_version is not None and (live is None or live.resource_version != action.resource_version):
            return
        self._serial += 1
        status = {} if live is None else {"status": live.body.get("status", {})}
        owner = ServiceKey(metadata["namespace"], metadata["labels"][SERVICE_LABEL])
        self.children[key] = Child(
            key=key, uid=f"uid-{key}", resource_version=str(self._serial), owner=owner, body=action.manifest | status
        )

    def _deployments(self) -> list[Child]:
        return [child for child in self.children.values() if child.key.kind in ENGINE_KINDS]

    def _delete_gone(self) -> None:
        alive = {(child.owner, child.body["metadata"]["labels"][VARIANT_LABEL]) for child in self._deployments()}
        self.pods = {n: p for n, p in self.pods.items() if p.service is None or (p.service, p.variant) in alive}

    def _reconcile(self, child: Child) -> None:
        if child.key.kind == LEADER_WORKER_SET:
            self._reconcile_groups(child)
            return
        variant = child.body["metadata"]["labels"][VARIANT_LABEL]
        mine = [p for p in self.pods.values() if p.service == child.owner and p.variant == variant]
        wanted = child.body["spec"]["replicas"]
        for pod in sorted(mine, key=lambda p: (p.node is not None, p.ready, p.deletion_cost, -p.created_at))[
            : max(0, len(mine) - wanted)
        ]:
            del self.pods[pod.name]
        for _ in range(max(0, wanted - len(mine))):
            self._create(child, variant)
        self.children[child.key] = replace(
            child,
            body=child.body | {"status": {"observedGeneration": 1, "replicas": wanted, "updatedReplicas": wanted}},
        )

    def _reconcile_groups(self, child: Child) -> None:
        """The last groups go first; what is there already stays as it is."""
        spec, variant = child.body["spec"], child.body["metadata"]["labels"][VARIANT_LABEL]
        template = spec["leaderWorkerTemplate"]
        wanted = {f"{child.key.name}-{index}" for index in range(spec["replicas"])}
        mine = {pod.name for pod in self.pods.values() if pod.service == child.owner and pod.variant == variant}
        self.pods = {n: pod for n, pod in self.pods.items() if n not in mine or pod.group in wanted}
        for group in sorted(wanted):
            for rank in range(template["size"]):
                name = f"{group}-{rank}" if rank else group
                if name not in self.pods:
                    pod = template["workerTemplate" if rank else "leaderTemplate"]
                    self._create(child, variant, pod, name=name, group=group, worker=rank > 0)
        self.children[child.key] = replace(child, body=child.body | {"status": {"replicas": spec["replicas"]}})

    def _create(self, child: Child, variant: str, template: Any = None, name: str = "", **group: Any) -> None:
        self._serial += 1
        name = name or f"{child.key.name}-{self._serial:05}"
        container = (template or child.body["spec"]["template"])["spec"]["containers"][0]
        requests = container["resources"]["limits"]
        self.pods[name] = Pod(
            namespace=child.key.namespace,
            name=name,
            uid=f"uid-{name}",
            resource_version=str(self._serial),
            created_at=self.now,
            accelerators={key: int(value) for key, value in requests.items() if "/gpu" in key},
            service=child.owner,
            variant=variant,
            gated=self.webhook,
            serving=None,
            **group,
        )

    def _schedule(self) -> None:
        for pod in sorted(self.pods.values(), key=lambda p: p.name):
            if pod.node is None and not pod.gated:
                self._bind(pod)

    def _bind(self, pod: Pod) -> None:
        others = [p for p in self.pods.values() if p.uid != pod.uid]
        left = rooms(self.nodes, others)
        fits = [name for name, room in left.items() if room.node.ready and room.node.schedulable and room.fits(pod)]
        node = pod.nominated_node if pod.nominated_node in fits else next(iter(sorted(fits)), None)
        self._change(pod.name, node=node, unschedulable=node is None)

    def _start(self) -> None:
        for pod in list(self.pods.values()):
            started = pod.node is not None and self.now - pod.created_at >= self.start_seconds
            if pod.service is not None and started:
                self._change(pod.name, containers_ready=True, ready=pod.serving is not False)

    def _change(self, name: str, **changes: Any) -> None:
        if name in self.pods:
            self.pods[name] = replace(self.pods[name], **changes)
