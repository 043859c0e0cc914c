"""How a service is reached, disturbed and scraped: Service, PodDisruptionBudget, NetworkPolicy, PodMonitor."""

from __future__ import annotations

from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.core.deployment import egress_ports
from tokenservice.core.model import Json, ServiceKey, Settings
from tokenservice.core.names import ENGINE_PORT, LOADER_PORT, SERVICE_LABEL, VARIANT_LABEL

SERVICE_PORT = 80
SCRAPE_SECONDS = 5


_CREDENTIALS_V4 = (
    "169.254.0.0/16",
    "100.100.100.200/32",  # Alibaba
    "168.63.129.16/32",  # Azure's WireServer
)
_CREDENTIALS_V6 = (
    "fe80::/10",
    "fd00:ec2::254/128",  # AWS
    "fd20:ce::254/128",  # GCP
    "fd00:c1::a9fe:a9fe/128",  # Oracle
)

_ANYWHERE: list[Json] = [
    {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(_CREDENTIALS_V4)}},
    {"ipBlock": {"cidr": "::/0", "except": list(_CREDENTIALS_V6)}},
    {"namespaceSelector": {}},
]
"""But where clouds answer with the node's own credentials. Some CNIs count pods of the cluster to no block of
addresses, so they are named."""


def endpoint(service: ServiceKey, cluster_domain: str) -> str:
    """The URL of the OpenAI-compatible API."""
    return f"http://{service.name}.{service.namespace}.svc.{cluster_domain}/v1"


def service_spec(service: ServiceKey) -> Json:
    """All variants behind one name; pods that do not serve are no endpoints."""
    port = {"name": "http", "port": SERVICE_PORT, "protocol": "TCP", "targetPort": "http"}
    return {"type": "ClusterIP", "ports": [port], "selector": {SERVICE_LABEL: service.name}}


def disruption_spec(service: ServiceKey, replicas: int, needed: int, workers: int = 0) -> Json:
    """Evictions may not go below what the objectives need now, but a single replica can always be drained.

    A replica that spans nodes goes with any of its pods, so of each only one may be evicted: `workers` stay on top.
    AlwaysAllow: a pod that does not work protects nobody, and would block the drain of its node for ever.
    """
    return {
        "minAvailable": 0 if replicas <= 1 else max(0, min(needed, replicas)) + workers,
        "selector": {"matchLabels": {SERVICE_LABEL: service.name}},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }


def policy_spec(service: ServiceKey, spec: TokenServiceSpec, settings: Settings, *, groups: bool = False) -> Json:
    """Denies everything, then opens the API to the settings' peers and the model's source to the engine.

    Pods of `groups` talk to each other as well, on ports that their libraries choose, and find their leader by name.
    Engines answer more than /v1 without a key (vLLM's security guide), so who may connect is decided here. Without
    peers the rule is left out, for `from: []` would let everyone in; and so are empty lists, for the server counts
    each apply of one as a change.
    """
    peers, metrics = [*settings.gateway_peers, *settings.metrics_peers], list(settings.metrics_peers)
    loads = metrics and spec.model.runtime_adapters is not None
    own = [{"podSelector": {"matchLabels": {SERVICE_LABEL: service.name}}}]
    rules: Json = {
        "ingress": [
            *([{"from": peers, "ports": [_tcp(ENGINE_PORT)]}] if peers else []),
            *([{"from": metrics, "ports": [_tcp(LOADER_PORT)]}] if loads else []),
            *([{"from": own}] if groups else []),
        ],
        "egress": [
            *_egress(spec, groups=groups),
            *([{"to": own}] if groups else []),
        ],
    }
    return {
        "podSelector": {"matchLabels": {SERVICE_LABEL: service.name}},
        "policyTypes": ["Ingress", "Egress"],
    } | {direction: opened for direction, opened in rules.items() if opened}


_MOST_SAMPLES = 50_000
"""Of one engine, which has a few thousand: who has more would fill the memory of all who ask Prometheus."""


def monitor_spec(service: ServiceKey, spec: TokenServiceSpec) -> Json:
    """For the Prometheus operator; a series carries its service and variant as labels."""
    ports = ("http", *(("adapters",) if spec.model.runtime_adapters is not None else ()))
    return {
        "podMetricsEndpoints": [{"port": port, "path": "/metrics", "interval": f"{SCRAPE_SECONDS}s"} for port in ports],
        "podTargetLabels": [SERVICE_LABEL, VARIANT_LABEL],
        "sampleLimit": _MOST_SAMPLES,
        "selector": {"matchLabels": {SERVICE_LABEL: service.name}},
    }


def _egress(spec: TokenServiceSpec, *, groups: bool) -> list[Json]:
    """Names are resolved by whatever DNS the cluster has, so of the source the port is all that can be said."""
    ports = egress_ports(spec)
    dns = [{"port": 53, "protocol": "UDP"}, _tcp(53)]
    return [
        *([{"ports": dns}] if ports or groups else []),
        *([{"to": _ANYWHERE, "ports": [_tcp(port) for port in ports]}] if ports else []),
    ]


def _tcp(port: int) -> Json:
    return {"port": port, "protocol": "TCP"}
