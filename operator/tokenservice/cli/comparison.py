"""What `compare` does, apart from the command: this needs the compiled simulator and the plotting library."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tokenservice.cli.simulation import Shown, progress
from tokenservice.errors import InputError
from tokenservice.simulate.compare import STATIC, Row, foresee
from tokenservice.simulate.compare import compare as compared
from tokenservice.simulate.oracle import Foresight
from tokenservice.simulate.policies import POLICIES
from tokenservice.simulate.result import Result
from tokenservice.simulate.run import names
from tokenservice.simulate.scenario import load

Json = dict[str, Any]

_WIDTH = 150
"""Of a table that goes to a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is compared; `policies` may be `("all",)`."""

    scenario: Path
    policies: tuple[str, ...]
    seeds: tuple[int, ...]
    sweep: bool = True
    cold_start_seconds: float | None = None
    oracle: bool = False
    jobs: int = 2


def compare(wish: Wish, picture: Path | None, json_file: Path | None) -> None:
    """Runs, shows, draws and writes. InputError says what is wrong with the input."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    with progress(console) as bar:
        rows, best = measured(wish, Shown(bar, f"simulating {wish.scenario.stem}"))
    console.print(table(rows, best))
    if json_file is not None:
        json_file.write_text(json.dumps(as_json(rows, best), indent=1) + "\n", encoding="utf-8")
    if picture is not None:
        from tokenservice.cli.drawing import draw

        draw(rows, best, picture)
        console.print(f"wrote {picture}")


def measured(wish: Wish, told: Callable[[float], None]) -> tuple[list[Row], dict[str, Foresight]]:
    """The rows, static first, and the oracle's services if wished."""
    chosen = ("operator", *POLICIES) if wish.policies == ("all",) else wish.policies
    unknown = [name for name in chosen if name not in names()]
    if unknown:
        raise InputError(f"there is no policy {', '.join(unknown)}; there are {', '.join(names())}")
    load(wish.scenario)  # what is wrong with it is said before anything runs
    rows = compared(
        wish.scenario,
        chosen,
        wish.seeds,
        sweep=wish.sweep,
        cold_start_seconds=wish.cold_start_seconds,
        jobs=wish.jobs,
        progress=told,
    )
    return rows, foresee(wish.scenario, wish.seeds[0]) if wish.oracle else {}


def table(rows: Sequence[Row], best: dict[str, Foresight]) -> Table:
    """One line a policy; `±` is half the width of the 95 % interval over seeds."""
    seeds = len(rows[0].results)
    shown = Table(title=f"{rows[0].results[0].scenario}, {seeds} seed{'s' * (seeds > 1)}", title_justify="left")
    for name in ("policy", "U", "attained", "accelerator-hours", "of static", "$ per M tokens", "replicas started"):
        shown.add_column(name, justify="left" if name == "policy" else "right")
    static = rows[0].mean(hours)
    for row in rows:
        shown.add_row(*line(row, static))
    if best:
        found = oracle_hours(best)
        worked = sum(one.work for one in best.values()) / 3600
        attained = min(one.attainment for one in best.values())
        shown.add_row(
            "oracle (foresight)",
            f"{worked / found:.3f}",
            f"{attained:.2%}",
            f"{found:,.1f}",
            f"{found / hours(rows[0].results[0]):.3f}",  # both on the first seed
        )
    return shown


def line(row: Row, static_hours: float) -> tuple[str, ...]:
    """The cells of a policy."""
    return (
        row.marked,
        _with_interval(row, lambda one: one.utilization, "{:.3f}"),
        _with_interval(row, lambda one: one.attainment, "{:.2%}"),
        _with_interval(row, hours, "{:,.1f}"),
        f"{row.mean(hours) / static_hours:.3f}",
        f"{row.mean(lambda one: one.dollars_per_million_tokens):.2f}",
        f"{row.mean(lambda one: one.replicas_started):,.0f}",
    )


def hours(one: Result) -> float:
    """Accelerator-hours."""
    return one.accelerator_hours


def oracle_hours(best: dict[str, Foresight]) -> float:
    """All services'."""
    return sum(one.accelerator_hours for one in best.values())


def as_json(rows: Sequence[Row], best: dict[str, Foresight]) -> Json:
    """For machines."""
    return {
        "static": STATIC,
        "policies": {row.policy: [one.json(timeline=False) for one in row.results] for row in rows},
        "oracle": {
            name: {
                "accelerator_hours": one.accelerator_hours,
                "attainment": one.attainment,
                "utilization": one.work / 3600 / one.accelerator_hours,
                "factor": one.factor,
            }
            for name, one in best.items()
        },
    }


def _with_interval(row: Row, figure: Callable[[Result], float], text: str) -> str:
    half = row.half_width(figure)
    return text.format(row.mean(figure)) + (f" ± {text.format(half)}" if half else "")
