"""`tokenservice engine check URL`: does a running engine keep what docs/engine-contract.md says?"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tokenservice.edge.engine_contract import Engine, Report, Result, asked

engine = typer.Typer(help="Engines: what the operator relies on.", no_args_is_help=True)
_COLOURS = {Result.OK: "green", Result.FAILED: "red", Result.SKIPPED: "yellow"}


@engine.callback()
def _engine() -> None:
    """Keeps the name of the only subcommand."""


@engine.command()
def check(
    url: Annotated[str, typer.Argument(help="Where the engine listens, for example http://127.0.0.1:8000.")],
    model: Annotated[str | None, typer.Option(help="Model to ask for; default: the first that is served.")] = None,
    engine: Annotated[Engine | None, typer.Option(help="Default: whichever its metrics are.")] = None,
    pid: Annotated[
        int | None, typer.Option(help="Its process, on this machine: sent SIGTERM at the end.", min=2)
    ] = None,
    exit_seconds: Annotated[float, typer.Option(help="After its last answer it may take this long to exit.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask a running engine everything that the operator relies on. Nothing else should use it meanwhile."""

    async def stop() -> None:
        assert pid is not None
        os.kill(pid, signal.SIGTERM)

    async def gone() -> bool:
        return pid is None or _ended(pid)

    given = {"stop": stop, "gone": gone} if pid is not None else {}
    report = asyncio.run(asked(url, model=model, engine=engine, exit_seconds=exit_seconds, **given))  # type: ignore[arg-type]
    if as_json:
        print(json.dumps(asdict(report) | {"kept": report.kept}, indent=2))
    else:
        _print(report)
    raise typer.Exit(0 if report.kept else 1)


def _ended(pid: int) -> bool:
    """Also a zombie has ended: who started it has only not asked yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def _print(report: Report) -> None:
    table = Table(
        "check", "result", "what was seen, and the fix", title=f"{report.engine} {report.model} at {report.url}"
    )
    for one in report.checks:
        colour = _COLOURS[one.result]
        fix = f"\nfix: {one.fix}" if one.result is Result.FAILED else ""
        table.add_row(one.name, f"[{colour}]{one.result}[/{colour}]", f"{one.says}{fix}".replace("[", r"\["))
    Console().print(table)
