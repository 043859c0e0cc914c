"""The external metrics API over Prometheus: what an HPA needs to scale on what engines report.

`python -m e2e.testbed.external_metrics --prometheus URL --port P --metric NAME=REGEX…`

It does what prometheus-adapter and KEDA's metrics server do for one kind of query: a metric's name stands for the
series whose names match its expression, the label selector of the HPA goes into the query as it is, and the answer is
their sum. Built small because prometheus-adapter is a Kubernetes API server of its own, minutes to build, with an
authentication that a control plane on loopback has no use for. The API server's aggregation layer in front of it is
the real one: it finds this process through an APIService whose Service has an external name.
"""

from __future__ import annotations

import argparse
import ssl
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
from aiohttp import web

from e2e.testbed.cluster import Cluster
from e2e.testbed.processes import Processes, free_port
from tokenservice.edge import certificates
from tokenservice.edge.certificates import Authority

Json = dict[str, Any]
GROUP, VERSION = "external.metrics.k8s.io", "v1beta1"
_PATH = f"/apis/{GROUP}/{VERSION}"
_NAME = "external-metrics"
_NAMESPACE = "kube-system"


@dataclass(frozen=True, slots=True)
class Source:
    """Where answers come from: a Prometheus, and the expression of series names behind each metric."""

    prometheus: str
    metrics: Mapping[str, str]

    def query(self, metric: str, namespace: str, selector: str) -> str:
        """PromQL for one metric. KeyError when there is no such metric, ValueError for a selector it cannot do."""
        labels = [f'__name__=~"{self.metrics[metric]}"', f'namespace="{namespace}"']
        for term in filter(None, selector.split(",")):
            key, equals, value = term.partition("=")
            if not equals or key.endswith("!"):
                raise ValueError(f"selector {term!r}: only key=value is understood")
            labels.append(f'{key}="{value}"')
        return f"sum({{{','.join(labels)}}})"


def answer(metric: str, result: list[Json]) -> Json:
    """An ExternalMetricValueList; nothing measured is an empty one, at which an HPA holds."""
    items = [
        {
            "metricName": metric,
            "metricLabels": {},
            "timestamp": datetime.fromtimestamp(float(series["value"][0]), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "value": f"{round(float(series['value'][1]) * 1000)}m",
        }
        for series in result
    ]
    return {"kind": "ExternalMetricValueList", "apiVersion": f"{GROUP}/{VERSION}", "metadata": {}, "items": items}


def application(source: Source) -> web.Application:
    """Discovery and values."""

    async def discovery(request: web.Request) -> web.Response:
        resources = [
            {"name": name, "singularName": "", "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
            for name in source.metrics
        ]
        body = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{VERSION}"}
        return web.json_response(body | {"resources": resources})

    async def value(request: web.Request) -> web.Response:
        metric = request.match_info["metric"]
        try:
            query = source.query(metric, request.match_info["namespace"], request.query.get("labelSelector", ""))
        except KeyError:
            return web.Response(status=404, text=f"no metric {metric}")
        except ValueError as error:
            return web.Response(status=400, text=str(error))
        async with aiohttp.ClientSession() as session:
            parameters = {"query": query, "time": str(time.time())}
            async with session.get(f"{source.prometheus}/api/v1/query", params=parameters) as found:
                found.raise_for_status()
                return web.json_response(answer(metric, (await found.json())["data"]["result"]))

    made = web.Application()
    made.router.add_get(_PATH, discovery)
    made.router.add_get(f"{_PATH}/namespaces/{{namespace}}/{{metric}}", value)
    return made


def start(cluster: Cluster, processes: Processes, prometheus: str, metrics: Mapping[str, str]) -> None:
    """Starts it and registers it with the API server; returns when the API server answers for it."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "e2e.testbed.external_metrics",
        f"--prometheus={prometheus}",
        f"--port={port}",
        *(f"--metric={name}={expression}" for name, expression in metrics.items()),
    ]
    processes.start(_NAME, command)
    cluster.apply(*_objects(port))
    processes.wait_until(
        lambda: GROUP in cluster.kubectl("get", "--raw", _PATH, check=False),
        what="external metrics served through the API server",
        timeout_seconds=60,
    )


def _objects(port: int) -> tuple[Json, Json]:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": _NAME, "namespace": _NAMESPACE},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    }
    registered = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{VERSION}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "version": VERSION,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"name": _NAME, "namespace": _NAMESPACE, "port": port},
        },
    }
    return service, registered


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(prog="python -m e2e.testbed.external_metrics")
    parser.add_argument("--prometheus", required=True, metavar="URL")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--metric", action="append", default=[], metavar="NAME=REGEX")
    asked = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    now = datetime.now(UTC)
    certificates.load(context, *Authority.create(now).issue(["localhost"], now))
    metrics = dict(pair.split("=", 1) for pair in asked.metric)
    web.run_app(
        application(Source(asked.prometheus, metrics)),
        host="localhost",
        port=asked.port,
        ssl_context=context,
        print=lambda *_: None,
    )


if __name__ == "__main__":
    main()
