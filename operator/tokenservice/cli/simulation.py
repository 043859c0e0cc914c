"""What `simulate` and `compare` do, apart from the commands: this needs the compiled simulator, they do not."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tokenservice.simulate.assemble import Setting, setting
from tokenservice.simulate.result import Result, ServiceResult
from tokenservice.simulate.run import known, names, run
from tokenservice.simulate.scenario import load

_PARTS = {
    "utilization": "within the objectives (U)",
    "slo_misses": "missed the objectives",
    "headroom": "headroom and trough",
    "cold_start": "loading",
    "draining": "draining",
    "fragmentation": "free on nodes in use",
    "idle_nodes": "empty or starting nodes",
}


def simulate(scenario: Path, policy: str, seed: int | None, json_file: Path | None) -> None:
    """One run, shown. InputError says what is wrong with the input."""
    console = Console()
    if policy == "list":
        for name, what in names().items():
            console.print(f"[bold]{name}[/]  {what}")
        return
    known(policy)
    with progress(console) as bar:
        found = run(prepared(scenario, seed, bar), policy, progress=Shown(bar, f"simulating {policy}"))
    console.print(summary(found))
    console.print(services(found))
    if json_file is not None:
        json_file.write_text(json.dumps(found.json(), indent=1) + "\n", encoding="utf-8")


def prepared(scenario: Path, seed: int | None, bar: Progress) -> Setting:
    """The scenario, read and measured. InputError says what is wrong with it."""
    task = bar.add_task("reading the scenario", total=None)
    found = setting(load(scenario), seed=seed, said=lambda what: bar.update(task, description=what))
    bar.remove_task(task)
    return found


class Shown:
    """Progress of one run, as a callable from 0 to 1."""

    def __init__(self, bar: Progress, what: str) -> None:
        self._bar, self._task = bar, bar.add_task(what, total=1.0)

    def __call__(self, share: float) -> None:
        self._bar.update(self._task, completed=share)


def progress(console: Console) -> Progress:
    """A bar that goes when it is done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True)


def summary(found: Result) -> Table:
    """The fleet's part."""
    table = Table(title=f"{found.scenario}: {found.policy}, seed {found.seed}", title_justify="left", show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for part, words in _PARTS.items():
        table.add_row(f"share of accelerator time {words}", f"{getattr(found.waterfall, part):.3f}")
    table.add_row("accelerator-hours", f"{found.accelerator_hours:,.1f}")
    table.add_row("US dollars per million output tokens", f"{found.dollars_per_million_tokens:.2f}")
    table.add_row("joules per output token (estimate)", f"{found.joules_per_token:.2f}")
    table.add_row("output tokens within objectives per accelerator-hour", f"{found.goodput_per_accelerator_hour:,.0f}")
    table.add_row(
        "replicas started, moved; nodes started", f"{found.replicas_started}, {found.moves}; {found.nodes_started}"
    )
    table.add_row("output tokens owed", f"{found.tokens_owed:,}")
    return table


def services(found: Result) -> Table:
    """Each service's part."""
    table = Table(title="share of requests within", title_justify="left")
    for name in ("service", "tier", "requests", "TTFT", "TPOT", "both", "deadline"):
        table.add_column(name, justify="left" if name in ("service", "tier") else "right")
    for name, one in found.services.items():
        table.add_row(name, one.tier, f"{one.requests:,}", *_shares(one))
    return table


def _shares(one: ServiceResult) -> tuple[str, ...]:
    """Of no requests there is no share. More within both than within one: none came that has a latency to keep."""
    interactive = (one.ttft_attainment, one.tpot_attainment, one.attainment)
    shown = tuple(f"{share:.2%}" for share in interactive) if one.attainment <= min(interactive) else ("-",) * 3
    return (*shown, f"{one.deferrable:.2%}" if one.requests else "-")
