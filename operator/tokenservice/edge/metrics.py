"""The operator's own `/metrics`.

Two halves: what this process counts (plans, actions, requests, ages), and the figures of the last plan, which are
exported as the core names them. A figure that is not in the last plan is not exported: no stale series.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric

from tokenservice.core.model import Plan

PREFIX = "tokenservice_"

Labels = tuple[tuple[str, str], ...]
"""Name and value of each label, always in the same order for one figure."""

Figures = Mapping[str, Mapping[Labels, float]]
"""Figures of a plan: name -> labels -> value."""

_PLAN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

DESCRIPTIONS = {
    "service_desired_replicas": "Replicas wanted.",
    "service_recommended_replicas": "Replicas that would be wanted of a service that is not acted on.",
    "service_ready_replicas": "Replicas that serve.",
    "service_slow_replicas": "Replicas that take several times as long for a token as their siblings.",
    "service_utilization_ratio": "Demand as a share of the capacity at the objectives.",
    "service_tokens_per_second": "Output tokens delivered per second.",
    "service_dollars_per_million_tokens": "Accelerator cost of a million output tokens.",
    "fleet_utilization_ratio": "SLO-goodput utilization of the fleet.",
    "fleet_waterfall_ratio": "Where the accelerator time goes that is not utilization.",
    "fleet_accelerators": "Accelerators that exist.",
    "fleet_dollars_per_hour": "Price of the accelerators that exist.",
}


class Metrics:
    """Everything that this process exports."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._figures: Figures = {}
        self._plan_seconds = Histogram(
            f"{PREFIX}plan_seconds",
            "Duration of a pass, by stage.",
            ["stage"],
            buckets=_PLAN_BUCKETS,
            registry=self.registry,
        )
        self._actions = Counter(
            f"{PREFIX}actions", "Actions of plans, by reason and result.", ["reason", "result"], registry=self.registry
        )
        self._errors = Counter(
            f"{PREFIX}pass_errors", "Passes that ended with an error, by error.", ["error"], registry=self.registry
        )
        self._requests = Counter(
            f"{PREFIX}api_requests",
            "Requests to the API server, by method and status (0: no answer).",
            ["method", "code"],
            registry=self.registry,
        )
        self._webhook = Counter(
            f"{PREFIX}webhook_reviews", "Admission reviews, by what was done.", ["result"], registry=self.registry
        )
        build = Gauge(f"{PREFIX}build_info", "Version of this operator.", ["version"], registry=self.registry)
        build.labels(version("tokenservice")).set(1)
        self.registry.register(_Figures(lambda: self._figures))

    def observe_request(self, method: str, status: int) -> None:
        """Counts an answer of the API server."""
        self._requests.labels(method, str(status)).inc()

    def count_action(self, reason: str, result: str) -> None:
        """Counts one action."""
        self._actions.labels(reason, result).inc()

    def count_error(self, error: str) -> None:
        """Counts a pass that failed."""
        self._errors.labels(error).inc()

    def count_review(self, result: str) -> None:
        """Counts an admission review."""
        self._webhook.labels(result).inc()

    def time(self, stage: str, seconds: float) -> None:
        """Takes how long a stage of a pass took."""
        self._plan_seconds.labels(stage).observe(seconds)

    def show(self, plan: Plan) -> None:
        """Exports the figures of a plan in place of those before."""
        self._figures = plan.metrics

    def watch(self, name: str, description: str, read: Callable[[], float]) -> None:
        """Exports what `read` gives at each scrape."""
        Gauge(f"{PREFIX}{name}", description, registry=self.registry).set_function(read)

    def watch_all(self, name: str, description: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        """Exports what `read` gives at each scrape, one series an entry."""
        self.registry.register(_Family(f"{PREFIX}{name}", description, label, read))

    def serve(self, port: int, address: str) -> Callable[[], None]:
        """Serves `/metrics` from a thread of its own; returns what stops it."""
        server, thread = start_http_server(port, address, registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop


class _Figures:
    """Collector of the last plan's figures."""

    def __init__(self, read: Callable[[], Figures]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for name, values in sorted(self._read().items()):
            if values:
                yield _family(name, values)


class _Family:
    """Collector of figures by one label."""

    def __init__(self, name: str, description: str, label: str, read: Callable[[], Mapping[str, float]]) -> None:
        self._name, self._description, self._label, self._read = name, description, label, read

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(self._name, self._description, labels=[self._label])
        for value, figure in self._read().items():
            family.add_metric([value], figure)
        yield family


def _family(name: str, values: Mapping[Labels, float]) -> Metric:
    short = name.removeprefix(PREFIX)
    labels = [label for label, _ in next(iter(values))]
    family = GaugeMetricFamily(PREFIX + short, DESCRIPTIONS.get(short, "A figure of the last plan."), labels=labels)
    for pairs, value in values.items():
        family.add_metric([text for _, text in pairs], math.nan if value is None else float(value))
    return family
