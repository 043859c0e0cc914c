"""`tokenservice simulate`: a scenario's fleet in simulated time, under the operator or another policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tokenservice.cli.files import JsonFile
from tokenservice.errors import InputError

ScenarioFile = Annotated[Path, typer.Argument(help="Scenario file; docs/scenarios/ has ready ones.")]


def simulate(
    scenario: ScenarioFile,
    policy: Annotated[str, typer.Option(help="Who decides; `--policy list` names all.")] = "operator",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of all that is drawn.", show_default="the scenario's")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Run a scenario and show utilization, attainment and cost."""
    with told():
        from tokenservice.cli import simulation

        simulation.simulate(scenario, policy, seed, json_file)


@contextmanager
def told() -> Iterator[None]:
    """Wrong input, or a simulator that is not installed, as one message and exit code 2.

    The simulator is imported late: the operator's image has no compiler for it.
    """
    try:
        yield
    except (InputError, ModuleNotFoundError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
