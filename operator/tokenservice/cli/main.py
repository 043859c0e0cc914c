"""The `tokenservice` command: each subcommand is a module beside this one."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from tokenservice.cli.bench import bench
from tokenservice.cli.capacity import capacity
from tokenservice.cli.compare import compare
from tokenservice.cli.crd import crd
from tokenservice.cli.engine import engine
from tokenservice.cli.explain import explain
from tokenservice.cli.lint import lint
from tokenservice.cli.run import run
from tokenservice.cli.simulate import simulate

app = typer.Typer(
    help="Serve language models as a contract: tokens at a promised volume, latency, quality and price.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(bench, name="bench")
app.add_typer(capacity, name="capacity")
app.add_typer(engine, name="engine")
app.command()(compare)
app.command()(crd)
app.command()(explain)
app.command()(lint)
app.command()(run)
app.command()(simulate)


def _tell(asked: bool) -> None:
    if asked:
        typer.echo(f"tokenservice {version('tokenservice')}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_tell, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Keeps the names of subcommands, however many there are."""
