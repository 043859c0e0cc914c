"""Places that options name for what a command writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def writable(file: Path | None) -> Path | None:
    """For an option's `callback`: what is wrong with the place is found out before the run, not after it."""
    if file is not None and (file.is_dir() or not file.parent.is_dir()):
        raise typer.BadParameter(f"{file}: name a file in a folder that exists")
    return file


JsonFile = Annotated[Path | None, typer.Option("--json", callback=writable, help="Also write the figures there.")]
