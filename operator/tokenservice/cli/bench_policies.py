"""`tokenservice bench policies`: who needs how many accelerators, on every scenario of a list, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenservice.cli.simulate import told

LIST = Path("docs/results.yaml")


def policies(
    studies: Annotated[
        Path, typer.Option("--list", dir_okay=False, help="What is run, and what was asked for.")
    ] = LIST,
    quick: Annotated[bool, typer.Option("--quick", help="Only the quick part of the list, in a minute.")] = False,
    only: Annotated[str, typer.Option(help="Run only these scenarios' parts now; names, comma separated.")] = "",
    run: Annotated[bool, typer.Option(help="Run what is missing; else write the page from what was kept.")] = True,
    page: Annotated[
        Path | None,
        typer.Option(
            help="Markdown file to write.", show_default="beside the list; with --quick beside the folder --kept"
        ),
    ] = None,
    kept: Annotated[Path, typer.Option(help="Folder where results are kept, run by run.")] = Path("e2e/out/results"),
    jobs: Annotated[int, typer.Option(min=1, help="Processes.")] = 2,
) -> None:
    """Run the list's scenarios under every policy and write the page of results with its figures.

    Each run is kept as soon as it is done: stopped and started again, it goes on where it was.
    """
    with told():
        from tokenservice.cli import results

        results.write(
            results.Wish(
                studies=studies,
                quick=quick,
                only=tuple(filter(None, only.split(","))),
                run=run,
                page=page or (kept.with_name(f"{kept.name}-quick.md") if quick else studies.with_suffix(".md")),
                kept=kept,
                jobs=jobs,
            )
        )
