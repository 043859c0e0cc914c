"""`tokenservice bench churn`: how many nodes more than needed are in use while services scale for a day."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tokenservice.cli.files import JsonFile


def churn(
    services: Annotated[int, typer.Option(help="Services; tensor-parallel sizes 1, 2, 4 and 8 in turn.", min=1)] = 80,
    walk: Annotated[float, typer.Option(help="Step of the random walk every five minutes.", min=0)] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of the day.")] = 42,
    moved: Annotated[float, typer.Option(help="Share of replicas moved within any hour, at most.", min=0)] = 0.02,
    output: JsonFile = None,
) -> None:
    """Scale services up and down for a simulated day, on nodes of eight accelerators, and consolidate.

    Prints how many nodes are in use over ceil(accelerators asked for / 8), averaged over the minutes of the day.
    """
    from tokenservice.simulate.packing.churn import Churn, day

    found = day(Churn(services=services, walk=walk, seed=seed, moved_share_per_hour=moved))
    typer.echo(
        f"{found.mean_nodes:.1f} nodes in use on average, {100 * found.excess:.2f} % over the bound of "
        f"{found.mean_bound:.1f} (at worst {100 * found.worst_excess:.1f} %); {found.mean_replicas:.0f} replicas, "
        f"{found.started} started, {found.removed} removed, {found.moved} moved, never more than "
        f"{100 * found.most_moved_share_per_hour:.1f} % within an hour"
    )
    if output is not None:
        output.write_text(json.dumps(asdict(found), indent=1) + "\n")
