"""`tokenservice compare`: policies side by side on one scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenservice.cli.files import JsonFile, writable
from tokenservice.cli.simulate import ScenarioFile, told


def compare(
    scenario: ScenarioFile,
    policies: Annotated[
        str, typer.Option(help="Names, comma separated; `tokenservice simulate X --policy list` shows them; `all`.")
    ] = "operator,keda-queue,hpa-duty-cycle",
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Runs of each policy, with seeds 0, 1, …")] = 1,
    sweep: Annotated[bool, typer.Option(help="Give each peer the setting that suits it best.")] = True,
    cold_start: Annotated[
        float | None, typer.Option(help="Seconds that replicas load, for all services.", show_default="the scenario's")
    ] = None,
    oracle: Annotated[bool, typer.Option(help="Also search the fewest accelerator-hours with foresight.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
    picture: Annotated[
        Path | None, typer.Option(callback=writable, help="Draw demand, capacity and the waterfalls to this PNG.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Run policies on the same requests and show utilization, attainment and cost of each."""
    with told():
        from tokenservice.cli import comparison

        comparison.compare(
            comparison.Wish(
                scenario=scenario,
                policies=tuple(policies.split(",")),
                seeds=tuple(range(seeds)),
                sweep=sweep,
                cold_start_seconds=cold_start,
                oracle=oracle,
                jobs=jobs,
            ),
            picture,
            json_file,
        )
