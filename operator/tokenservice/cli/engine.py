"""`tokenservice engine check`: whether an engine's server keeps what the operator counts on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from tokenservice.cli.files import JsonFile

if TYPE_CHECKING:
    from tokenservice.edge.engine_check import Outcome

engine = typer.Typer(help="Try an engine by itself, before the operator runs it.", no_args_is_help=True)

_MARKS = {True: "[green]kept[/green]", False: "[red]broken[/red]", None: "not tried"}


def _address(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{url} is neither http nor https: write http://{url.rpartition('://')[2]}")
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is no number, or half an IPv6 address
        named = False
    if not named:
        raise typer.BadParameter(f"{url} is no address: write one such as http://127.0.0.1:8000")
    return url


def _process(pid: int | None) -> int | None:
    """Signal 0 asks and does nothing: what cannot be told to stop is found out before the run, not after it."""
    if pid is not None:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            raise typer.BadParameter(f"there is no process {pid} on this machine") from None
        except PermissionError:
            raise typer.BadParameter(f"process {pid} is another user's: run this as that user") from None
    return pid


@engine.callback()
def main() -> None:
    """Keeps the names of subcommands, however many there are."""


@engine.command()
def check(
    url: Annotated[str, typer.Argument(help="The engine's address, as http://127.0.0.1:8000.", callback=_address)],
    model: Annotated[str | None, typer.Option(help="Served model to ask.", show_default="the first it serves")] = None,
    pid: Annotated[
        int | None,
        typer.Option(
            min=2, callback=_process, help="Its process, to try a graceful stop: it gets SIGTERM, last of all."
        ),
    ] = None,
    requests_at_once: Annotated[int, typer.Option(min=1, max=4096, help="Requests of the overload check.")] = 64,
    json_file: JsonFile = None,
) -> None:
    """Ask a running vLLM or SGLang for everything in the engine contract; it must have no other users meanwhile."""
    from tokenservice.edge import engine_check

    notes = Console(stderr=True)
    stop = None if pid is None else lambda: os.kill(pid, signal.SIGTERM)
    found = asyncio.run(
        engine_check.check(url, model=model, stop=stop, requests_at_once=requests_at_once, told=_teller(notes))
    )
    if isinstance(found, engine_check.Unreachable):
        typer.echo(found.message, err=True)
        raise typer.Exit(2)
    _show(found.outcomes, f"{found.engine} at {url}, model {found.model}")
    if json_file is not None:
        report = {"engine": found.engine, "model": found.model, "outcomes": [asdict(one) for one in found.outcomes]}
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    raise typer.Exit(0 if found.kept else 1)


def _teller(notes: Console) -> Callable[[Outcome], None]:
    def tell(outcome: Outcome) -> None:
        notes.print(f"{outcome.name}: {_MARKS[outcome.kept]}")

    return tell


def _show(outcomes: list[Outcome], title: str) -> None:
    table = Table("check", "", "seen", "what to do", title=title)
    for outcome in outcomes:
        table.add_row(outcome.name, _MARKS[outcome.kept], outcome.seen, outcome.fix)
    Console().print(table)
