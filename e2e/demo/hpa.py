"""`python -m e2e.demo.hpa`: the demo's traffic served by static sizes, by the operator, and by Kubernetes' own HPA.

The HPA controller is the one in kube-controller-manager. It scales each TokenService through its `scale` subresource,
as a user's would, on requests running and waiting per replica, which is what KEDA's guides for vLLM take. Its target is
a share of the batch that one replica runs at the limit of its objectives: what a load test of one replica tells. Three
shares are tried, a phase each; the HPA is judged by the best of them.

Counts are the HPA's; variants, placement and nodes are as in the other phases. It has the operator's pace, a sync
period of two seconds where the default is 15, and its own default behaviour compressed like all else: down after five
minutes of the trace, up by 100 % or four pods in 15 s of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from math import isfinite

from rich.console import Console

from e2e.demo import report, scenario, steps
from e2e.demo.__main__ import OUT, before, compared, opened, prepared
from e2e.demo.phase import Phase, run
from e2e.demo.readme import HPA
from e2e.demo.scenario import NAMESPACE, TIME_SCALE, Example, Json
from e2e.demo.sizing import Size, by_service, choices
from e2e.load.trace import Arrival, Traffic
from e2e.testbed import external_metrics
from e2e.testbed.bed import Bed
from e2e.testbed.cluster import HPA_SYNC_SECONDS

METRIC = "engine_requests"
SERIES = "vllm:num_requests_running|vllm:num_requests_waiting|sglang:num_running_reqs|sglang:num_queue_reqs"
DOWN_WINDOW_SECONDS = 300
POLICY_SECONDS = 15
SHARES = (0.5, 0.7, 0.85)
ENOUGH = 0.99
"""Of the requests of each Guaranteed service, within both objectives."""


def main() -> None:
    """A phase each, one table, `e2e/out/hpa.json`; Ctrl-C ends what it started and nothing else."""
    shares = _arguments().share or list(SHARES)
    console, started = prepared()
    services = scenario.examples()
    planned, sizes = before(console, services)
    batches = _batches(services, planned.arrivals)
    _show_batches(console, batches)
    bed = opened(console)
    try:
        external_metrics.start(bed.cluster, bed.processes, bed.prometheus.address, {METRIC: SERIES})
        phases = asyncio.run(_phases(console, bed, services, sizes, planned, batches, shares))
    except KeyboardInterrupt:
        console.print("stopped")
        return
    finally:
        bed.stop()
    _conclude(console, services, sizes, planned, phases, batches)
    console.print(f"[dim]{time.monotonic() - started:.0f} s in all[/dim]")


async def _phases(
    console: Console,
    bed: Bed,
    services: Mapping[str, Example],
    sizes: Mapping[str, Size],
    planned: Traffic,
    batches: Mapping[str, float],
    shares: Sequence[float],
) -> dict[str, Phase]:
    """The HPA last: it remembers nothing of the traffic."""
    async with steps.opened(console, bed, services) as stage:
        phases = await compared(stage, bed, services, sizes, planned)
        for share in shares:
            await steps.remove_services(stage, bed)
            await steps.apply_static(stage, bed, sizes)
            hpas = [_hpa(example, _target(batches[name], share)) for name, example in services.items()]
            await asyncio.to_thread(bed.cluster.apply, *hpas)
            phases[_name(share)] = await run(stage, _name(share), planned.arrivals)
            _check(bed)
            await asyncio.to_thread(bed.cluster.kubectl, "delete", "hpa", "--all", "-n", NAMESPACE)
    return phases


def _name(share: float) -> str:
    return f"{HPA}{share:g}"


def _batches(services: Mapping[str, Example], arrivals: Sequence[Arrival]) -> dict[str, float]:
    """Requests that a replica of each service runs at once at the limit of its objectives."""
    traffic_of = by_service(arrivals, list(services))
    return {name: choices(example, traffic_of[name])[0][1].batch for name, example in services.items()}


def _target(batch: float, share: float) -> float:
    """A whole request at least: near its pole the closed form has no batch to speak of."""
    return max(1.0, batch * share) if isfinite(batch) else 1.0


def _show_batches(console: Console, batches: Mapping[str, float]) -> None:
    console.print("requests that a replica runs at once at the limit of its objectives, of which an HPA holds a share")
    for name, batch in batches.items():
        console.print(f"  {name:18} {batch:6.1f}")


def _hpa(example: Example, requests_per_replica: float) -> Json:
    period, window = max(1, round(POLICY_SECONDS / TIME_SCALE)), round(DOWN_WINDOW_SECONDS / TIME_SCALE)
    doubling = {"type": "Percent", "value": 100, "periodSeconds": period}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": example.name, "namespace": NAMESPACE},
        "spec": {
            "scaleTargetRef": {"apiVersion": "taas.dev/v1alpha1", "kind": "TokenService", "name": example.name},
            "minReplicas": example.spec.scaling.min_replicas,
            "maxReplicas": example.spec.scaling.max_replicas,
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": {"name": METRIC, "selector": {"matchLabels": {"model_name": example.model_name}}},
                        "target": {"type": "AverageValue", "averageValue": f"{requests_per_replica * 1000:.0f}m"},
                    },
                }
            ],
            "behavior": {
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "selectPolicy": "Max",
                    "policies": [doubling, {"type": "Pods", "value": 4, "periodSeconds": period}],
                },
                "scaleDown": {"stabilizationWindowSeconds": window, "policies": [doubling]},
            },
        },
    }


def _check(bed: Bed) -> None:
    """Figures of an HPA that could not act would be worth nothing."""
    for hpa in bed.cluster.get("hpa", "-n", NAMESPACE)["items"]:
        conditions = {c["type"]: c for c in hpa["status"].get("conditions", [])}
        for kind in ("AbleToScale", "ScalingActive"):
            found = conditions.get(kind, {"status": "absent", "message": ""})
            if found["status"] != "True":
                name = hpa["metadata"]["name"]
                raise RuntimeError(f"HPA {name}: {kind} is {found['status']}: {found['message']}")


def _conclude(
    console: Console,
    services: Mapping[str, Example],
    sizes: Mapping[str, Size],
    planned: Traffic,
    phases: Mapping[str, Phase],
    batches: Mapping[str, float],
) -> None:
    references = steps.references(console, services, planned.arrivals)
    bills, guaranteed = steps.bills(phases, references), steps.guaranteed(services)
    report.show_services(console, phases, bills, sizes)
    report.show(console, bills, guaranteed)
    found = {name: report.summary(bills[name], phases[name], references, guaranteed) for name in bills}
    tried = {name: found.pop(name) for name in list(found) if name not in ("static", "operator")}
    best = _best(tried)
    numbers = {
        "trace": planned.origin,
        "time_scale": TIME_SCALE,
        "sync_seconds": HPA_SYNC_SECONDS,
        "batches": dict(batches),
        **found,
        "hpa": tried[best],
        "hpa_setting": best,
        "hpa_tried": tried,
    }
    (OUT / "hpa.json").write_text(json.dumps(numbers, indent=2))
    lag = max(phase.worst_lag_seconds for phase in phases.values())
    console.print(f"the best: {best}; numbers: {OUT / 'hpa.json'}; the client was late by at most {lag:.2f} s")


def _best(tried: Mapping[str, Json]) -> str:
    """Of those that keep the promise the one with fewest accelerator-hours, else the one that comes nearest."""
    keep = {name: one for name, one in tried.items() if one["slo_attainment"] >= ENOUGH}
    if keep:
        return min(keep, key=lambda name: keep[name]["accelerator_hours"])
    return max(tried, key=lambda name: tried[name]["slo_attainment"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m e2e.demo.hpa", description=(__doc__ or "").partition("\n")[0])
    said = f"of the batch at the limit; may be repeated, a phase each (default {', '.join(map(str, SHARES))})"
    parser.add_argument("--share", type=float, action="append", help=said)
    return parser.parse_args()


if __name__ == "__main__":
    main()
