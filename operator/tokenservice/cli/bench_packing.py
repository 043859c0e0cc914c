"""`tokenservice bench packing`: the openb protocol (FGD, USENIX ATC'23), for the published policies and for ours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def packing(
    nodes: Annotated[Path, typer.Option(help="Node list of the benchmark (CSV).")],
    pods: Annotated[Path, typer.Option(help="Pod list of the benchmark (CSV).")],
) -> None:
    """Pack a list of pods onto a list of nodes and report how much of the accelerators is allocated."""
    raise typer.Exit(1)
