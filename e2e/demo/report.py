"""The result in words and numbers: tables on the terminal, JSON in `e2e/out/demo.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from e2e.demo.account import Bill, Outcome
from e2e.demo.phase import Phase
from e2e.demo.sizing import Size
from tokenservice.simulate.reference import Reference

Json = dict[str, Any]


def show(console: Console, bills: Mapping[str, Bill], guaranteed: frozenset[str]) -> None:
    """Fleet figures of all phases side by side."""
    shown = Table(title="the fleet, measured part", title_justify="left")
    shown.add_column("")
    for name in bills:
        shown.add_column(name, justify="right")
    for label, cells in _rows(bills, guaranteed):
        shown.add_row(label, *cells)
    console.print(shown)


def show_services(
    console: Console, phases: Mapping[str, Phase], bills: Mapping[str, Bill], sizes: Mapping[str, Size]
) -> None:
    """Joint attainment and mean replicas of each service."""
    shown = Table(title="by service", title_justify="left")
    for column in ("service", "static size", *(f"{name}: replicas" for name in bills), *(f"{n}: met" for n in bills)):
        shown.add_column(column, justify="left" if column == "service" else "right")
    for service, size in sizes.items():
        replicas = [f"{mean_replicas(phase, service):.1f}" for phase in phases.values()]
        met = [f"{bill.attainment.get(service, 1.0):.1%}" for bill in bills.values()]
        shown.add_row(service, str(size.replicas), *replicas, *met)
    console.print(shown)


def mean_replicas(phase: Phase, service: str) -> float:
    """Ready replicas, on average over the measured part."""
    counts = [moment.replicas.get(service, (0, 0))[0] for moment in phase.measured_moments]
    return sum(counts) / len(counts) if counts else 0.0


def joint_attainment(bill: Bill, services: frozenset[str]) -> float:
    """The worst of the given services."""
    return min(bill.attainment.get(service, 1.0) for service in services)


def summary(bill: Bill, phase: Phase, references: Mapping[str, Reference], guaranteed: frozenset[str]) -> Json:
    """One phase as it stands in the JSON."""
    return {
        "utilization": bill.waterfall.utilization,
        "waterfall": asdict(bill.waterfall),
        "slo_attainment": joint_attainment(bill, guaranteed),
        "accelerator_hours": bill.accelerator_hours,
        "dollars_per_million_tokens": bill.dollars_per_million_tokens,
        "joules_per_token": bill.joules_per_token,
        "client_worst_lag_seconds": phase.worst_lag_seconds,
        "services": {
            service: _service(service, bill, phase.outcomes, references, mean_replicas(phase, service))
            for service in references
        },
    }


def _service(
    service: str, bill: Bill, outcomes: list[Outcome], references: Mapping[str, Reference], replicas: float
) -> Json:
    mine = [outcome for outcome in outcomes if outcome.service == service]
    return {
        "attainment": bill.attainment.get(service),
        "requests": len(mine),
        "output_tokens": sum(outcome.delivered_tokens for outcome in mine),
        "mean_ready_replicas": replicas,
        "reference_requests_per_second": references[service].requests_per_second,
    }


def _rows(bills: Mapping[str, Bill], guaranteed: frozenset[str]) -> list[tuple[str, list[str]]]:
    every = list(bills.values())
    parts = ("slo_misses", "headroom", "cold_start", "draining", "fragmentation", "idle_nodes")
    return [
        ("utilization U", [f"{bill.waterfall.utilization:.3f}" for bill in every]),
        *(
            (f"  {part.replace('_', ' ')}", [f"{getattr(bill.waterfall, part):.3f}" for bill in every])
            for part in parts
        ),
        ("joint attainment, worst Guaranteed", [f"{joint_attainment(bill, guaranteed):.2%}" for bill in every]),
        ("accelerator-hours", [f"{bill.accelerator_hours:.2f}" for bill in every]),
        ("$ per million output tokens", [f"{bill.dollars_per_million_tokens:.2f}" for bill in every]),
        ("J per output token (estimate)", [f"{bill.joules_per_token:.2f}" for bill in every]),
    ]
