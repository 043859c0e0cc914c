"""`tokenservice bench plan`: how long deciding for a large fleet takes, and what it costs beside the least possible."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tokenservice.catalogue import accelerator_classes, architectures
from tokenservice.cli.files import JsonFile
from tokenservice.cli.simulate import told

if TYPE_CHECKING:
    from tokenservice.simulate.plan_bench import Result, Times


def plan(
    services: Annotated[int, typer.Option(help="Services, six variants each.", min=10)] = 1000,
    accelerators: Annotated[int, typer.Option(help="Accelerators, eight a node.", min=80)] = 10_000,
    rounds: Annotated[int, typer.Option(help="Decisions of each kind.", min=2)] = 40,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 1,
    output: JsonFile = None,
) -> None:
    """Time whole decisions for a fleet, and compare the plan's cost with the linear-programming bound."""
    with told():
        from tokenservice.simulate.plan_bench import run
        from tokenservice.simulate.plan_fleet import Catalogue

    catalogue = Catalogue(classes=accelerator_classes(), architectures=architectures())
    console = Console(stderr=True)
    with console.status("a fleet") as status:
        result = run(
            catalogue, services=services, accelerators=accelerators, rounds=rounds, seed=seed, say=status.update
        )
    for line in _lines(result):
        typer.echo(line)
    if output is not None:
        output.write_text(json.dumps(_figures(result), indent=1) + "\n")


def _lines(found: Result) -> list[str]:
    return [
        f"{found.services} services, {found.variants_per_service:.1f} variants each, on {found.accelerators}"
        f" accelerators, {found.placed} of them placed",
        *_times(found.times),
        f"against a tenth of the fleet   {found.scale:.1f} times as long (median of full)",
        f"cost                           {found.cost_per_hour:.0f} $ per hour,"
        f" {found.cost_gap:.2%} above the bound with whole replicas, {found.cost_gap_fractional:.2%} above the one"
        f" with fractions of replicas",
        f"memory                         {found.rss_bytes / 2**20:.0f} MiB at most, the benchmark's own included",
        f"machine                        {found.times.loop_ms:.0f} ms for a million additions",
    ]


def _times(times: Times) -> list[str]:
    return [
        f"first decision                 {times.first_ms:.0f} ms",
        f"nothing remembered             {times.fresh_p95_ms:.0f} ms p95",
        f"every demand changed (full)    {times.full_p95_ms:.0f} ms p95, {times.full_p50_ms:.0f} ms median;"
        f" processor {times.full_cpu_p95_ms:.0f} and {times.full_cpu_p50_ms:.0f} ms",
        f"one change (incremental)       {times.incremental_p95_ms:.0f} ms p95, {times.incremental_p50_ms:.0f} ms"
        f" median; processor {times.incremental_cpu_p95_ms:.0f} and {times.incremental_cpu_p50_ms:.0f} ms",
    ]


def _figures(found: Result) -> dict[str, object]:
    return asdict(found) | {
        "full_p95_ms": found.times.full_p95_ms,
        "full_cpu_p95_ms": found.times.full_cpu_p95_ms,
        "incremental_cpu_p95_ms": found.times.incremental_cpu_p95_ms,
        "incremental_p95_ms": found.times.incremental_p95_ms,
    }
