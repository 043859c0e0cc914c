"""`python -m e2e.demo`: the same traffic served by static sizes, then by the operator; both billed alike."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from e2e.demo import picture, report, scenario
from e2e.demo.account import Bill, bill
from e2e.demo.phase import Phase, Stage, run
from e2e.demo.scenario import MEASURED_SECONDS, TIME_SCALE, WARM_UP_SECONDS, Example
from e2e.demo.sizing import Size, by_service, reference, static_size
from e2e.demo.watching import Store, pod_state
from e2e.engines.cluster import Api, connect
from e2e.engines.reflector import follow
from e2e.load.endpoints import ENDPOINT_SLICES, SERVICE_NAME_LABEL, SliceEndpoints
from e2e.load.trace import Arrival, Traffic, data_folder, traffic
from e2e.testbed import bed as testbed
from e2e.testbed.bed import Bed
from tokenservice.simulate.reference import Reference

OUT = Path(__file__).resolve().parents[1] / "out"
SECONDS = WARM_UP_SECONDS + MEASURED_SECONDS


def main() -> None:
    """Runs the demo; Ctrl-C ends what it started and nothing else."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    OUT.mkdir(exist_ok=True)
    started = time.monotonic()
    services = scenario.examples()
    planned = traffic(scenario.RECIPES, seconds=SECONDS, time_scale=TIME_SCALE, data=data_folder())
    console.print(
        f"traffic: {planned.origin}\n{len(planned.arrivals)} requests in {SECONDS:.0f} s; time scale {TIME_SCALE:g}: "
        "arrivals, cold starts, node starts and cooldowns are so much faster than life, engine steps are not"
    )
    sizes = _sizes(services, planned.arrivals)
    _show_sizes(console, sizes)
    bed = testbed.start(
        pools=scenario.pools(TIME_SCALE), time_scale=TIME_SCALE, say=lambda text: console.print(f"· {text}")
    )
    try:
        phases = asyncio.run(_phases(console, bed, services, sizes, planned))
        _conclude(console, bed, services, sizes, planned, phases)
        console.print(f"[dim]{time.monotonic() - started:.0f} s in all[/dim]")
        if os.environ.get("KEEP"):
            _keep(console, bed)
    except KeyboardInterrupt:
        console.print("stopped")
    finally:
        bed.stop()


def _sizes(services: Mapping[str, Example], arrivals: list[Arrival]) -> dict[str, Size]:
    traffic_of = by_service(arrivals, list(services))
    return {
        name: static_size(example, traffic_of[name], seconds=SECONDS, time_scale=TIME_SCALE)
        for name, example in services.items()
    }


def _show_sizes(console: Console, sizes: Mapping[str, Size]) -> None:
    console.print("static sizes: ceil(p99 of the demand in 10 s of the trace / capacity at the objectives)")
    for size in sizes.values():
        rates = f"{size.demand_p99:6.1f} / {size.capacity:5.2f} requests/s"
        console.print(f"  {size.service:18} {rates} -> {size.replicas:3d} x {size.variant.name}")


async def _phases(
    console: Console, bed: Bed, services: Mapping[str, Example], sizes: Mapping[str, Size], planned: Traffic
) -> dict[str, Phase]:
    async with AsyncExitStack() as stack:
        client = await connect(str(bed.cluster.kubeconfig))
        stack.push_async_callback(client.close)
        api = Api(client)
        endpoints, pods, token_services = SliceEndpoints(), Store(), Store()
        bed.autoscaler.pods = lambda: list(pods.items.values())
        tasks = [
            asyncio.create_task(follow(api, ENDPOINT_SLICES, endpoints, labelSelector=SERVICE_NAME_LABEL)),
            asyncio.create_task(follow(api, "/api/v1/pods", pods, labelSelector="taas.dev/service")),
            asyncio.create_task(follow(api, "/apis/taas.dev/v1alpha1/tokenservices", token_services)),
            asyncio.create_task(bed.autoscaler.run()),
        ]
        stack.push_async_callback(_cancel, tasks)
        stage = Stage(
            console=console,
            farm_url=bed.farm_url,
            services=services,
            endpoints=endpoints,
            pods=pods,
            token_services=token_services,
            spans=bed.autoscaler.spans,
            warm_up_seconds=WARM_UP_SECONDS,
            measured_seconds=MEASURED_SECONDS,
        )
        _apply(bed, services, sizes)
        await _all_ready(console, pods, sum(size.replicas for size in sizes.values()))
        static = await run(stage, "static", planned.arrivals)
        static = replace(static, spans=[replace(span) for span in static.spans])
        _release(bed, services)
        return {"static": static, "operator": await run(stage, "operator", planned.arrivals)}


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _apply(bed: Bed, services: Mapping[str, Example], sizes: Mapping[str, Size]) -> None:
    """The six services, fixed at their static sizes."""
    documents = []
    for name, example in services.items():
        spec = example.document["spec"] | {"replicas": sizes[name].replicas}
        documents.append(example.document | {"spec": spec})
    bed.cluster.apply(scenario.fleet(TIME_SCALE), *documents)


def _release(bed: Bed, services: Mapping[str, Example]) -> None:
    """Hands the counts to the operator."""
    for name in services:
        bed.cluster.kubectl(
            "patch", "tokenservice", name, "--type=json", "-p", '[{"op":"remove","path":"/spec/replicas"}]'
        )


async def _all_ready(console: Console, pods: Store, wanted: int) -> None:
    with console.status("static sizes start") as status:
        while (ready := sum(pod_state(pod) == "ready" for pod in pods.items.values())) < wanted:
            status.update(f"static sizes start: {ready} of {wanted} replicas ready")
            await asyncio.sleep(0.5)


def _conclude(
    console: Console,
    bed: Bed,
    services: Mapping[str, Example],
    sizes: Mapping[str, Size],
    planned: Traffic,
    phases: Mapping[str, Phase],
) -> None:
    with console.status("reference rates, by simulation on the same lengths"):
        references = _references(services, planned.arrivals)
    bills = {
        name: bill(phase.outcomes, references, phase.node_spans(), [moment.held for moment in phase.measured_moments])
        for name, phase in phases.items()
    }
    guaranteed = frozenset(name for name, example in services.items() if example.spec.tier == "Guaranteed")
    _events(console, bed)
    report.show_services(console, phases, bills, sizes)
    report.show(console, bills, guaranteed)
    gain = bills["operator"].waterfall.utilization / bills["static"].waterfall.utilization
    console.print(f"utilization: {gain:.2f} times static's")
    _write(bills, phases, references, guaranteed, planned)
    note = f"{planned.origin}; time scale {TIME_SCALE:g}; engines simulated by the step model"
    picture.draw(OUT / "demo.png", phases, bills, references, note)
    console.print(f"picture: {OUT / 'demo.png'}, numbers: {OUT / 'demo.json'}")


def _references(services: Mapping[str, Example], arrivals: list[Arrival]) -> dict[str, Reference]:
    traffic_of = by_service(arrivals, list(services))
    return {name: reference(example, traffic_of[name]) for name, example in services.items()}


def _write(
    bills: Mapping[str, Bill],
    phases: Mapping[str, Phase],
    references: Mapping[str, Reference],
    guaranteed: frozenset[str],
    planned: Traffic,
) -> None:
    numbers = {
        "trace": planned.origin,
        "time_scale": TIME_SCALE,
        "reaction_seconds": _reaction_seconds(),
        **{name: report.summary(bills[name], phases[name], references, guaranteed) for name in bills},
    }
    (OUT / "demo.json").write_text(json.dumps(numbers, indent=2))


def _reaction_seconds() -> list[float] | None:
    """As `python -m e2e.demo.reaction` last measured it; None if it never ran here."""
    file = OUT / "reaction.json"
    return json.loads(file.read_text())["reaction_seconds"] if file.exists() else None


def _events(console: Console, bed: Bed) -> None:
    """What the operator said it did, newest last."""
    items = bed.cluster.get("events.events.k8s.io", "-A")["items"]
    told = [e for e in items if e.get("regarding", {}).get("kind") == "TokenService"]
    told.sort(key=lambda event: event.get("eventTime") or "")
    (OUT / "events.json").write_text(json.dumps(told, indent=1))
    console.print(f"what was done, the last 25 of {len(told)} events (all in {OUT / 'events.json'}):")
    for event in told[-25:]:
        console.print(
            f"  {event['reason']:16} {event['regarding']['name']:18} {event.get('note', '')}", highlight=False
        )


def _keep(console: Console, bed: Bed) -> None:
    kubeconfig = OUT / "kubeconfig"
    shutil.copy(bed.cluster.kubeconfig, kubeconfig)
    console.print(
        f"KEEP: all of it stays up until Ctrl-C. Look around with\n"
        f"  export KUBECONFIG={kubeconfig}\n  kubectl get tokenservices,tokenfleet,nodes\n"
        f"  tokenservice explain default/chat-70b\n  Prometheus: {bed.prometheus.address}"
    )
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main()
