"""Who decides in a simulated fleet: the operator's own `decide`, or a policy that asks for counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, Protocol

from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.api.token_service import Architecture
from tokenservice.core.capacity import capacity, targets
from tokenservice.core.decide import decide
from tokenservice.core.demand import remembered
from tokenservice.core.margin import UNTRIED
from tokenservice.core.memo import Memo
from tokenservice.core.model import (
    Accelerator,
    EngineImages,
    Missing,
    ObjectKey,
    Plan,
    Profile,
    Service,
    ServiceKey,
    ServiceMetrics,
    Settings,
    Snapshot,
    Variant,
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

_FILL = 1.1
"""Share of the batch at capacity that work which may wait fills up to."""


class Controller(Protocol):
    """Asked every `period_seconds`; acts on the cluster."""

    @property
    def name(self) -> str: ...

    @property
    def period_seconds(self) -> float: ...

    def control(self, cluster: Cluster, sight: Sight) -> None:
        """Look, decide, act."""

    def fill_to(self, key: ServiceKey, variant: Variant) -> float:
        """Unfinished requests per replica up to which work that may wait is sent."""


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
    _last: Plan = field(default_factory=Plan)
    _written_at: dict[ObjectKey, float] = field(default_factory=dict)
    _now: float = 0.0
    _memo: Memo = field(default_factory=Memo)

    def control(self, cluster: Cluster, sight: Sight) -> None:
        """One pass of the loop."""
        self._now = cluster.now
        plan = decide(self.snapshot(cluster, sight), cluster.now, self._memo)
        self._last = plan
        for action in plan.actions:
            cluster.carry_out(action)
        self._write(plan)
        if self.on_plan is not None:
            self.on_plan(plan, cluster.now)

    def fill_to(self, key: ServiceKey, variant: Variant) -> float:
        """A little less than the batch at capacity, as it was learned to be: interactive requests find room."""
        service = next(one for one in self.services if one.key == key)
        assert service.spec is not None
        able = capacity(variant, remembered(service.status), targets(service.spec.objectives))
        return able.batch * self._last.margins.get(key, UNTRIED).factor * _FILL

    def _write(self, plan: Plan) -> None:
        """Statuses of services: decisions read there what was planned with before."""
        written = {write.key.name: write for write in plan.statuses if write.key.kind == "TokenService"}
        if written:
            self._written_at |= {write.key: self._now for write in written.values()}
            self.services = tuple(
                replace(one, status=written[one.key.name].status) if one.key.name in written else one
                for one in self.services
            )

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
            status_written_at=dict(self._written_at),
            proposals=self._last.proposals,
            given_up=self._last.given_up,
            margins=self._last.margins,
            hindsights=self._last.hindsights,
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

    def fill_to(self, key: ServiceKey, variant: Variant) -> float:
        """Peers know of no work that may wait: it is sent as it comes."""
        return inf

    def control(self, cluster: Cluster, sight: Sight) -> None:
        """Ask and scale."""
        for key, replicas in self.policy.replicas(sight.view()).items():
            cluster.scale(self.manifests[key], replicas)
