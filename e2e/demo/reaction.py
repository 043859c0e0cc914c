"""`python -m e2e.demo.reaction`: from a step of load to new pods, ten times.

Ten services of one replica each serve half of what a replica takes; then, one after the other, each is asked for
120 % of it. What counts is the time from the first request of the step to the first sight of a pod that was not there
before. Scrapes are 5 s apart, the operator's own intervals are its defaults.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from statistics import median

import numpy as np
from rich.console import Console

from e2e.demo import scenario
from e2e.demo.__main__ import OUT
from e2e.demo.scenario import NAMESPACE, Example
from e2e.demo.sizing import choices
from e2e.demo.watching import Store, clock, pod_state
from e2e.engines.cluster import Api, connect
from e2e.engines.reflector import follow
from e2e.load.client import LoadGenerator, Target
from e2e.load.endpoints import ENDPOINT_SLICES, SERVICE_NAME_LABEL, ServiceKey, SliceEndpoints
from e2e.load.trace import Arrival
from e2e.testbed import bed as testbed
from e2e.testbed.bed import Bed
from e2e.testbed.nodes import H100

SERVICES = 10
STEADY_SECONDS = 40.0
STAGGER_SECONDS = 1.7
AFTER_SECONDS = 30.0
INPUT_TOKENS, OUTPUT_TOKENS = 1155, 211


def main() -> None:
    """Prints each reaction, the median and the worst; writes e2e/out/reaction.json."""
    console = Console()
    OUT.mkdir(exist_ok=True)
    example = scenario.examples()["chat-70b"]
    capacity = choices(example, [Arrival(0.0, "", INPUT_TOKENS, OUTPUT_TOKENS)])[0][1].requests_per_second
    bed = testbed.start(
        time_scale=scenario.TIME_SCALE,
        values={"operator": {"planIntervalSeconds": 5}},
        say=lambda text: console.print(f"· {text}"),
    )
    try:
        for _ in range(SERVICES):
            bed.autoscaler.add(H100)
        reactions = asyncio.run(_measure(console, bed, example, capacity))
    finally:
        bed.stop()
    shown = ", ".join(f"{seconds:.1f}" for seconds in reactions)
    console.print(f"seconds from a step of 50 % to 120 % of capacity to a new pod: {shown}")
    console.print(f"median {median(reactions):.1f} s, worst {max(reactions):.1f} s, at 5 s scrapes")
    (OUT / "reaction.json").write_text(json.dumps({"reaction_seconds": reactions}))


async def _measure(console: Console, bed: Bed, example: Example, capacity: float) -> list[float]:
    names = [f"step-{number:02}" for number in range(SERVICES)]
    steps = {name: STEADY_SECONDS + number * STAGGER_SECONDS for number, name in enumerate(names)}
    async with AsyncExitStack() as stack:
        client = await connect(str(bed.cluster.kubeconfig))
        stack.push_async_callback(client.close)
        api, endpoints, pods = Api(client), SliceEndpoints(), Sightings()
        for path, sink, selector in (
            (ENDPOINT_SLICES, endpoints, SERVICE_NAME_LABEL),
            ("/api/v1/pods", pods, "taas.dev/service"),
        ):
            task = asyncio.create_task(follow(api, path, sink, labelSelector=selector))
            stack.callback(task.cancel)
        bed.cluster.apply(*(_service(example, name) for name in names))
        while sum(pod_state(pod) == "ready" for pod in pods.items.values()) < SERVICES:
            console.print("· ten services start")
            await asyncio.sleep(2)
        targets = {name: Target(ServiceKey(NAMESPACE, name), name, example.target.objectives) for name in names}
        generator = LoadGenerator(bed.farm_url, targets, endpoints)
        console.print(f"· {STEADY_SECONDS:.0f} s at half load, then the steps")
        started = clock()
        await generator.run(sorted(_arrivals(steps, capacity)))
        console.print(f"· the generator was late by at most {generator.worst_lag_s:.2f} s")
        return [pods.reaction(name, started + at) for name, at in steps.items()]


class Sightings(Store):
    """Pods, and when each was first seen."""

    def __init__(self) -> None:
        super().__init__()
        self.first_seen: dict[str, tuple[str, float]] = {}

    def seen(self, item: scenario.Json) -> None:
        super().seen(item)
        metadata = item["metadata"]
        self.first_seen.setdefault(metadata["uid"], (metadata["labels"]["taas.dev/service"], clock()))

    def reaction(self, service: str, step: float) -> float:
        """Seconds from the step to the first pod that came after it; infinite when none did."""
        after = [at - step for owner, at in self.first_seen.values() if owner == service and at >= step]
        return min(after, default=float("inf"))


def _service(example: Example, name: str) -> scenario.Json:
    spec = example.document["spec"]
    model = {key: value for key, value in spec["model"].items() if key != "servedName"}
    objectives = {key: value for key, value in spec["objectives"].items() if key != "volume"}
    changes = {"model": model, "objectives": objectives, "tier": "Elastic"}
    return example.document | {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec | changes}


def _arrivals(steps: dict[str, float], capacity: float) -> Iterator[Arrival]:
    """Poisson arrivals of the mean conversation: half of the capacity, then 1.2 of it."""
    rng = np.random.default_rng(0)
    for name, step in steps.items():
        for start, end, share in ((0.0, step, 0.5), (step, step + AFTER_SECONDS, 1.2)):
            count = rng.poisson(share * capacity * (end - start))
            for at in rng.uniform(start, end, count):
                yield Arrival(float(at), name, INPUT_TOKENS, OUTPUT_TOKENS)


if __name__ == "__main__":
    main()
