"""TokenFleet: policy for the whole fleet. Cluster-scoped; `default` is the only name for now; absent means defaults."""

from __future__ import annotations

from typing import Any

from tokenservice.api.base import REQUIRED, ApiModel, field, lacks, matches
from tokenservice.api.conditions import CONDITIONS_SCHEMA, Condition, initial_conditions
from tokenservice.api.quantity import SHARE_OF_CAPACITY
from tokenservice.api.token_service import Tier

_ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}
_LABELS: dict[str, Any] = {"additionalProperties": {"type": "string", "maxLength": 63}}


class PrometheusSource(ApiModel):
    """Where metrics are read."""

    address: str | None = field(
        None,
        "URL of the Prometheus HTTP API",
        default_text="the chart's prometheus.address",
        max_length=512,
        rules=(
            matches(r"^https?://.+$", "give a URL, for example http://prometheus.monitoring.svc:9090"),
            lacks(
                r"^[^/]*//[^/?#]*@",
                "put no user and password into the address, which all may read: give the operator a token by"
                " prometheus.tokenSecret of the chart",
            ),
        ),
    )
    utilization_query: str | None = field(
        None,
        "PromQL that gives the fleet's utilization as one number between 0 and 1; a vector of one, for its means",
        unit="ratio",
        default_text="the operator's own",
        max_length=4096,
    )
    window_seconds: int = field(30, "Window of rates; at least four scrapes are wise", unit="seconds", ge=5, le=3600)
    staleness_seconds: int = field(30, "Age from which a metric counts as missing", unit="seconds", ge=5, le=3600)


class Consolidation(ApiModel):
    """When replicas are removed and moved so that nodes become free."""

    enabled: bool = field(True, "Repack replicas to empty nodes")
    scale_down_window_seconds: int | None = field(
        None,
        "Demand is taken as its highest value in this window before replicas are removed",
        unit="seconds",
        default_text="learned for each service from its demand and its cold start; nothing is removed before that",
        ge=0,
        le=86400,
    )
    cooldown_seconds: int = field(
        300, "Rest of a node, sender or receiver, after a move", unit="seconds", ge=0, le=86400
    )
    max_concurrent_moves: int = field(1, "Replicas that move at once", unit="replicas", ge=0, le=1000)
    payback_hours: float = field(1.0, "A move must pay for its warm-up within this time", unit="hours", gt=0, le=1000)

    @property
    def peak_window_seconds(self) -> int:
        """The window in which the peak is read from Prometheus: the user's, else as long as HPA waits."""
        return 300 if self.scale_down_window_seconds is None else self.scale_down_window_seconds


class NeverTouch(ApiModel):
    """What the operator leaves alone."""

    namespaces: tuple[str, ...] = field(
        (),
        "Namespaces whose TokenServices are only observed",
        max_length=256,
        schema=_ATOMIC | {"items": {"type": "string", "maxLength": 63}},
    )
    node_labels: dict[str, str] = field(
        {}, "Nodes with all of these labels are not planned for", max_length=16, schema=_LABELS
    )


class NamespaceLimit(ApiModel):
    """What the TokenServices of one namespace may take; not kept on the namespace, which its owners may edit."""

    name: str = field(REQUIRED, "Name of the namespace", min_length=1, max_length=63)
    max_accelerators: int | None = field(
        None,
        "Accelerators that its engines may hold together; growth stops there, nothing that runs is taken away",
        unit="accelerators",
        default_text="no bound",
        ge=0,
        le=10**6,
    )
    accelerators: tuple[str, ...] = field(
        (),
        "AcceleratorClasses that it may use",
        default_text="every class",
        max_length=32,
        schema=_ATOMIC | {"items": {"type": "string", "maxLength": 63, "minLength": 1}},
    )
    tiers: tuple[Tier, ...] = field(
        (), "Tiers that it may use", default_text="every tier", max_length=3, schema=_ATOMIC
    )


class TokenFleetSpec(ApiModel):
    """Policy of the fleet."""

    accelerator_nodes: dict[str, str] = field(
        {},
        "Labels of the nodes that the fleet may use",
        default_text="every node of an AcceleratorClass",
        max_length=16,
        schema=_LABELS,
    )
    target_utilization: float = field(
        0.70,
        "Share of the capacity at the objectives that demand should fill",
        unit="ratio",
        rules=(SHARE_OF_CAPACITY,),
    )
    prometheus: PrometheusSource = field(PrometheusSource(), "Where metrics are read")
    budget_per_hour: float | None = field(
        None,
        "Highest spend on accelerators that engines hold",
        unit="US dollars per hour",
        default_text="no bound",
        gt=0,
        le=1e9,
    )
    consolidation: Consolidation = field(Consolidation(), "When nodes are emptied")
    never_touch: NeverTouch = field(NeverTouch(), "What the operator leaves alone")
    namespaces: tuple[NamespaceLimit, ...] = field(
        (),
        "What single namespaces may take",
        default_text="no limits",
        max_length=512,
        schema={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )


class Waterfall(ApiModel):
    """Where the rest of the accelerator time goes; the parts and the utilization add up to 1."""

    headroom: float | None = field(None, "Capacity kept above demand", unit="ratio")
    cold_start: float | None = field(None, "Replicas that load", unit="ratio")
    draining: float | None = field(None, "Replicas that finish", unit="ratio")
    fragmentation: float | None = field(None, "Accelerators on used nodes that no replica holds", unit="ratio")
    idle_nodes: float | None = field(None, "Accelerators of empty nodes", unit="ratio")
    slo_misses: float | None = field(None, "Work that missed its objectives", unit="ratio")


class TokenFleetStatus(ApiModel):
    """The fleet now."""

    observed_generation: int | None = field(None, "Generation of the spec that the status speaks of", unit="generation")
    conditions: tuple[Condition, ...] = field(
        (),
        "Ready, Reconciling, Stalled, MetricsAvailable",
        default_text="Ready is Unknown",
        max_length=16,
        schema=CONDITIONS_SCHEMA | {"default": initial_conditions()},
    )
    utilization: float | None = field(None, "Utilization now, the lower end of the interval", unit="ratio")
    utilization_1h: float | None = field(
        None,
        "Mean utilization of the last hour; needs half an hour of data in Prometheus",
        unit="ratio",
        alias="utilization1h",
    )
    utilization_24h: float | None = field(
        None,
        "Mean utilization of the last day; needs half a day of data in Prometheus",
        unit="ratio",
        alias="utilization24h",
    )
    waterfall: Waterfall | None = field(None, "Where the rest goes")
    accelerators: int | None = field(None, "Accelerators that exist", unit="accelerators")
    accelerators_in_use: int | None = field(None, "Accelerators that pods hold", unit="accelerators")
    accelerators_fragmented: int | None = field(None, "Free accelerators on nodes in use", unit="accelerators")
    cost_per_hour: float | None = field(None, "Price of the accelerators that exist", unit="US dollars per hour")
    cost_per_million_tokens: float | None = field(
        None, "Cost of the output", unit="US dollars per million output tokens"
    )
    joules_per_token: float | None = field(
        None, "Energy, estimated from watts of the classes", unit="joules per output token"
    )
