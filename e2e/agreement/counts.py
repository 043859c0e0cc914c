"""Replicas second by second, simulated and real, and for how much of the time they agree.

Both runs get the very same requests, and start at the same counts with everything warm. Nothing is compressed: a
second of the simulator is a second here. The clocks are laid together at the first request. What is left to differ is
what a real control plane does by itself: when within five seconds each engine is scraped, how long a pass, a binding
and a watch take, and which engine a client picks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from e2e.demo.watching import Store, pod_state
from e2e.engines.cluster import Api, connect
from e2e.engines.reflector import follow
from e2e.load.account import Objectives
from e2e.load.client import LoadGenerator, Target
from e2e.load.endpoints import ENDPOINT_SLICES, SERVICE_NAME_LABEL, ServiceKey, SliceEndpoints
from e2e.load.trace import Arrival
from e2e.testbed import bed as testbed
from e2e.testbed.bed import Bed
from e2e.testbed.nodes import H100, Pool
from tokenservice.simulate import assemble
from tokenservice.simulate.assemble import Setting
from tokenservice.simulate.scenario import load

SCENARIO = Path(__file__).parent / "scenario.yaml"
SERVICE_LABEL = "taas.dev/service"
DEPLOYMENTS = "/apis/apps/v1/deployments"

Counts = Mapping[str, Sequence[int]]
"""By service, one number a second from the first request on."""


@dataclass(frozen=True, slots=True)
class Run:
    """Replicas asked for, and those ready."""

    asked: Counts
    ready: Counts


def setting() -> Setting:
    """The scenario, read and measured."""
    return assemble.setting(load(SCENARIO))


def simulated(given: Setting) -> Run:
    """In the simulator, in a few seconds."""
    fleet = assemble.fleet(given, None)
    fleet.sample_seconds = 1.0
    fleet.run()
    names = [key.name for key in given.offers]
    return Run(
        asked={name: [moment.asked[name] for moment in fleet.timeline] for name in names},
        ready={name: [moment.ready[name] for moment in fleet.timeline] for name in names},
    )


def real(given: Setting, say: Callable[[str], None] = print) -> Run:
    """On a real control plane, in as many seconds as the scenario has."""
    scenario = given.scenario
    pool = Pool(
        template=H100,
        maximum=scenario.fleet[0].max_nodes,
        start_seconds=scenario.node_start_seconds,
        idle_seconds=scenario.node_idle_seconds,
    )
    bed = testbed.start(
        pools=(pool,),
        scrape_seconds=round(scenario.scrape_interval_seconds),
        values={"operator": {"planIntervalSeconds": round(scenario.control_period_seconds)}},
        say=say,
    )
    try:
        return asyncio.run(_real(given, bed, say))
    finally:
        bed.stop()


async def _real(given: Setting, bed: Bed, say: Callable[[str], None]) -> Run:
    async with AsyncExitStack() as stack:
        client = await connect(str(bed.cluster.kubeconfig))
        stack.push_async_callback(client.close)
        api, endpoints, pods, deployments = Api(client), SliceEndpoints(), Store(), Store()
        bed.autoscaler.pods = lambda: list(pods.items.values())
        for work in (
            follow(api, ENDPOINT_SLICES, endpoints, labelSelector=SERVICE_NAME_LABEL),
            follow(api, "/api/v1/pods", pods, labelSelector=SERVICE_LABEL),
            follow(api, DEPLOYMENTS, deployments, labelSelector=SERVICE_LABEL),
            bed.autoscaler.run(),
        ):
            stack.callback(asyncio.create_task(work).cancel)
        await _prepare(given, bed, pods)
        generator = LoadGenerator(bed.farm_url, _targets(given), endpoints)
        load_task = asyncio.create_task(generator.run(_arrivals(given)))
        stack.callback(load_task.cancel)
        run = await _watched(given, bed, deployments, pods)
        say(f"the generator was late by at most {generator.worst_lag_s:.2f} s")
        return run


async def _prepare(given: Setting, bed: Bed, pods: Store) -> None:
    """Cold starts as the scenario has them, then the first replicas, ready, at fixed counts."""
    scenario = given.scenario
    profiles = {way.profile for one in given.offers.values() for way in one.ways} - {None}
    while not profiles <= _profiles(bed):
        bed.processes.check()
        await asyncio.sleep(1)
    seconds = {"coldStartSeconds": scenario.cold_start.seconds}
    for name in sorted(profiles):
        changed = {"apiVersion": "taas.dev/v1alpha1", "kind": "CapacityProfile", "metadata": {"name": name}}
        bed.cluster.apply_server_side(changed | {"spec": seconds})
    for _ in range(scenario.fleet[0].initial_nodes):
        bed.autoscaler.add(H100)
    fleet = {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "TokenFleet",
        "metadata": {"name": "default"},
        "spec": given.policy.model_dump(mode="json", by_alias=True, exclude_unset=True),
    }
    fixed = [
        one.service | {"spec": one.service["spec"] | {"replicas": scenario.initial_replicas[one.key.name]}}
        for one in scenario.services
    ]
    bed.cluster.apply(fleet, *fixed)
    while sum(pod_state(pod) == "ready" for pod in pods.items.values()) < sum(scenario.initial_replicas.values()):
        bed.processes.check()
        await asyncio.sleep(0.5)


def _profiles(bed: Bed) -> set[str]:
    return {item["metadata"]["name"] for item in bed.cluster.get("capacityprofiles")["items"]}


async def _watched(given: Setting, bed: Bed, deployments: Store, pods: Store) -> Run:
    """Hands the counts to the operator, and looks once a second."""
    loop = asyncio.get_running_loop()
    start, names = loop.time(), [key.name for key in given.offers]
    released = asyncio.create_task(asyncio.to_thread(_release, bed, names))
    asked: dict[str, list[int]] = {name: [] for name in names}
    ready: dict[str, list[int]] = {name: [] for name in names}
    for second in range(round(given.seconds) + 1):
        await asyncio.sleep(max(0.0, start + second - loop.time()))
        for name in names:
            asked[name].append(_asked(deployments, name))
            ready[name].append(_ready(pods, name))
    await released
    return Run(asked=asked, ready=ready)


def _release(bed: Bed, names: Sequence[str]) -> None:
    for name in names:
        bed.cluster.kubectl(
            "patch", "tokenservice", name, "--type=json", "-p", '[{"op":"remove","path":"/spec/replicas"}]'
        )


def _asked(deployments: Store, service: str) -> int:
    mine = [one for one in deployments.items.values() if one["metadata"]["labels"][SERVICE_LABEL] == service]
    return sum(one["spec"]["replicas"] for one in mine)


def _ready(pods: Store, service: str) -> int:
    return sum(
        pod_state(pod) == "ready" for pod in pods.items.values() if pod["metadata"]["labels"][SERVICE_LABEL] == service
    )


def _targets(given: Setting) -> dict[str, Target]:
    found = {}
    for key, one in given.offers.items():
        goals = one.targets
        model = one.spec.model.served_name or key.name
        bounds = Objectives(goals.ttft_seconds, goals.tpot_seconds)
        found[key.name] = Target(ServiceKey(key.namespace, key.name), model, bounds)
    return found


def _arrivals(given: Setting) -> list[Arrival]:
    """The simulator's own requests."""
    found = []
    for key, one in given.offers.items():
        requests = one.traffic.fresh().stretch(0.0, given.seconds)
        columns = (requests.at_s.tolist(), requests.input_tokens.tolist(), requests.output_tokens.tolist())
        found += [Arrival(at, key.name, inputs, outputs) for at, inputs, outputs in zip(*columns, strict=True)]
    return sorted(found)


def agreement(one: Sequence[int], other: Sequence[int], *, start: int) -> float:
    """Share of the seconds from `start` on in which two counts differ by at most one."""
    pairs = list(zip(one, other, strict=False))[start:]
    return sum(abs(a - b) <= 1 for a, b in pairs) / len(pairs)


def table(simulation: Run, reality: Run, *, every: int = 10) -> str:
    """Both side by side: asked for (ready)."""
    names = list(simulation.asked)
    lines = ["second  " + "  ".join(f"{name + ': simulated':>18} {name + ': real':>14}" for name in names)]
    for second in range(0, min(len(simulation.asked[names[0]]), len(reality.asked[names[0]])), every):
        cells = (f"{_cell(simulation, name, second):>18} {_cell(reality, name, second):>14}" for name in names)
        lines.append(f"{second:>6}  " + "  ".join(cells))
    return "\n".join(lines)


def _cell(run: Run, name: str, second: int) -> str:
    return f"{run.asked[name][second]} ({run.ready[name][second]})"
