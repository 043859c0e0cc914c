"""What comes before, between and after phases: sizes, the stage, hands on the services, bills."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from rich.console import Console

from e2e.demo import scenario
from e2e.demo.account import Bill, bill
from e2e.demo.phase import Phase, Stage
from e2e.demo.scenario import MEASURED_SECONDS, TIME_SCALE, WARM_UP_SECONDS, Example
from e2e.demo.sizing import Size, by_service, reference, static_size
from e2e.demo.watching import Store, pod_state
from e2e.engines.cluster import Api, connect
from e2e.engines.reflector import follow
from e2e.load.endpoints import ENDPOINT_SLICES, SERVICE_NAME_LABEL, SliceEndpoints
from e2e.load.trace import Arrival, Traffic, data_folder, traffic
from e2e.testbed.bed import Bed
from tokenservice.simulate.reference import Reference

SECONDS = WARM_UP_SECONDS + MEASURED_SECONDS


def planned_traffic(console: Console) -> Traffic:
    """The traffic of every phase; says where it comes from."""
    planned = traffic(scenario.RECIPES, seconds=SECONDS, time_scale=TIME_SCALE, data=data_folder())
    console.print(
        f"traffic: {planned.origin}\n{len(planned.arrivals)} requests in {SECONDS:.0f} s; time scale {TIME_SCALE:g}: "
        "arrivals, cold starts, node starts and cooldowns are so much faster than life, engine steps are not"
    )
    return planned


def static_sizes(console: Console, services: Mapping[str, Example], arrivals: Sequence[Arrival]) -> dict[str, Size]:
    """Each service's static size; says how they came about."""
    traffic_of = by_service(arrivals, list(services))
    sizes = {
        name: static_size(example, traffic_of[name], seconds=SECONDS, time_scale=TIME_SCALE)
        for name, example in services.items()
    }
    console.print("static sizes: ceil(p99 of the demand in 10 s of the trace / capacity at the objectives)")
    for size in sizes.values():
        rates = f"{size.demand_p99:6.1f} / {size.capacity:5.2f} requests/s"
        console.print(f"  {size.service:18} {rates} -> {size.replicas:3d} x {size.variant.name}")
    return sizes


@asynccontextmanager
async def opened(console: Console, bed: Bed, services: Mapping[str, Example]) -> AsyncIterator[Stage]:
    """A stage that sees the cluster, with the node autoscaler at work."""
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
        yield Stage(
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


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def apply_static(stage: Stage, bed: Bed, sizes: Mapping[str, Size]) -> None:
    """The services, fixed at their static sizes; returns when every replica is ready."""
    documents = []
    for name, example in stage.services.items():
        spec = example.document["spec"] | {"replicas": sizes[name].replicas}
        documents.append(example.document | {"spec": spec})
    await asyncio.to_thread(bed.cluster.apply, scenario.fleet(TIME_SCALE), *documents)
    wanted = sum(size.replicas for size in sizes.values())
    with stage.console.status("static sizes start") as status:
        while (ready := sum(pod_state(pod) == "ready" for pod in stage.pods.items.values())) < wanted:
            status.update(f"static sizes start: {ready} of {wanted} replicas ready")
            await asyncio.sleep(0.5)


async def remove_services(stage: Stage, bed: Bed) -> None:
    """Everything that is served; returns when no pod is left."""
    names = list(stage.services)
    await asyncio.to_thread(bed.cluster.kubectl, "delete", "tokenservice", "--wait=false", *names)
    with stage.console.status("services go") as status:
        while left := len(stage.pods.items):
            status.update(f"services go: {left} replicas left")
            await asyncio.sleep(0.5)


def release(bed: Bed, services: Mapping[str, Example]) -> None:
    """Hands the counts to the operator."""
    for name in services:
        bed.cluster.kubectl(
            "patch", "tokenservice", name, "--type=json", "-p", '[{"op":"remove","path":"/spec/replicas"}]'
        )


def references(console: Console, services: Mapping[str, Example], arrivals: Sequence[Arrival]) -> dict[str, Reference]:
    """The yardstick of each service, the same for every phase."""
    traffic_of = by_service(arrivals, list(services))
    with console.status("reference rates, by simulation on the same lengths"):
        return {name: reference(example, traffic_of[name]) for name, example in services.items()}


def bills(phases: Mapping[str, Phase], yardsticks: Mapping[str, Reference]) -> dict[str, Bill]:
    """Every phase billed alike."""
    return {
        name: bill(phase.outcomes, yardsticks, phase.node_spans(), [moment.held for moment in phase.measured_moments])
        for name, phase in phases.items()
    }


def guaranteed(services: Mapping[str, Example]) -> frozenset[str]:
    """Names of those whose attainment is promised."""
    return frozenset(name for name, example in services.items() if example.spec.tier == "Guaranteed")
