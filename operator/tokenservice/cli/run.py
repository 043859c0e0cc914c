"""`tokenservice run`: the operator process, as the image starts it. `python -m tokenservice.app` is the same."""

from __future__ import annotations

from typing import Annotated

import typer


def run(
    config: Annotated[str | None, typer.Option(help="Settings (YAML); default: all defaults.")] = None,
    kubeconfig: Annotated[str | None, typer.Option(help="Default: the ServiceAccount of the pod this runs in.")] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig; default: its current one.")] = None,
) -> None:
    """Run the operator until it is told to stop."""
    # Imported here: no other command should wait for it.
    from tokenservice.app import runtime

    raise typer.Exit(runtime.run(runtime.Options(kubeconfig=kubeconfig, context=context, config=config)))
