"""Who decides in a simulated fleet: the operator's own `decide`, or a policy that asks for counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import Architecture
from tokenservice.core.decide import decide
from tokenservice.core.memo import Memo
from tokenservice.core.model import (
    Accelerator,
    EngineImages,
    Margin,
    Missing,
    Plan,
    Profile,
    Proposal,
    Service,
    ServiceKey,
    ServiceMetrics,
    Settings,
    Snapshot,
)
from tokenservice.simulate.cluster import Cluster
from tokenservice.simulate.policy import FleetView, Policy

Json = dict[str, Any]

SETTINGS = Settings(
    images=EngineImages(
        defaults={
            (engine, vendor): f"example.org/{engine.lower()}-{vendor.lower()}:simulated"
            for engine in ("vLLM", "SGLang")
            for vendor in ("NVIDIA", "AMD")
        }
    )
)


class Controller(Protocol):
    """Asked every `period_seconds`; acts on the cluster."""

    @property
    def name(self) -> str: ...

    @property
    def period_seconds(self) -> float: ...

    def control(self, cluster: Cluster, sight: Sight) -> None:
        """Look, decide, act."""


class Sight(Protocol):
    """What can be seen of the fleet now."""

    def metrics(self) -> Mapping[ServiceKey, ServiceMetrics | Missing]:
        """As Prometheus would tell."""

    def view(self) -> FleetView:
        """The same and what peers look at."""


@dataclass
class Operator:
    """The operator: the plan of `decide` on a snapshot of the simulated cluster, carried out at once."""

    services: tuple[Service, ...]
    accelerators: tuple[Accelerator, ...]
    profiles: tuple[Profile, ...]
    architectures: Mapping[str, Architecture]
    fleet: TokenFleetSpec
    period_seconds: float
    name: str = "operator"
    on_plan: Callable[[Plan, float], None] | None = None
    _proposals: tuple[Proposal, ...] = ()
    _margins: Mapping[ServiceKey, Margin] = field(default_factory=dict)
    _memo: Memo = field(default_factory=Memo)

    def control(self, cluster: Cluster, sight: Sight) -> None:
        """One pass of the loop."""
        plan = decide(self.snapshot(cluster, sight), cluster.now, self._memo)
        self._proposals, self._margins = plan.proposals, plan.margins
        for action in plan.actions:
            cluster.carry_out(action)
        if self.on_plan is not None:
            self.on_plan(plan, cluster.now)

    def snapshot(self, cluster: Cluster, sight: Sight) -> Snapshot:
        """The facts, as the operator's observer would gather them."""
        return Snapshot(
            services=self.services,
            nodes=cluster.nodes,
            pods=tuple(cluster.pods.values()),
            children=dict(cluster.children),
            accelerators=self.accelerators,
            profiles=self.profiles,
            architectures=self.architectures,
            metrics=sight.metrics(),
            settings=SETTINGS,
            fleet=self.fleet,
            proposals=self._proposals,
            margins=self._margins,
        )


@dataclass
class Counts:
    """A policy that knows only counts: one Deployment a service, the scheduler packs, nodes follow."""

    policy: Policy
    manifests: Mapping[ServiceKey, Json]

    @property
    def name(self) -> str:
        """The policy's."""
        return self.policy.name

    @property
    def period_seconds(self) -> float:
        """The policy's."""
        return self.policy.period_seconds

    def control(self, cluster: Cluster, sight: Sight) -> None:
        """Ask and scale."""
        for key, replicas in self.policy.replicas(sight.view()).items():
            cluster.scale(self.manifests[key], replicas)
