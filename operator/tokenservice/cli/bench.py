"""`tokenservice bench`: the published benchmarks that the claims of the documentation rest on.

Each command is a module beside this one and imports what it needs when it runs: the operator's image carries none of
the benchmarks' libraries (extra `simulate`).
"""

from __future__ import annotations

import typer

from tokenservice.cli.bench_churn import churn
from tokenservice.cli.bench_packing import packing
from tokenservice.cli.bench_plan import plan
from tokenservice.cli.bench_policies import policies

bench = typer.Typer(help="Measure against published benchmarks.", no_args_is_help=True)
bench.command()(churn)
bench.command()(packing)
bench.command()(plan)
bench.command()(policies)


@bench.callback()
def main() -> None:
    """Keeps the names of subcommands, however many there are."""
