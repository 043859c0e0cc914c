"""`tokenservice bench packing`: the openb protocol (FGD, USENIX ATC'23), for published policies and for ours."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenservice.cli.files import JsonFile

if TYPE_CHECKING:
    from tokenservice.simulate.packing.openb import NodeList, PodList
    from tokenservice.simulate.packing.protocol import Report, Run


def packing(
    nodes: Annotated[Path, typer.Option(help="Node list of the benchmark (CSV).", exists=True, dir_okay=False)],
    pods: Annotated[Path, typer.Option(help="Pod list of the benchmark (CSV).", exists=True, dir_okay=False)],
    seeds: Annotated[str, typer.Option(help="Seeds: a range such as 42-51, or a list such as 42,45.")] = "42-51",
    policy: Annotated[str, typer.Option(help="Policy: ours, fgd, best-fit or random.")] = "ours",
    against: Annotated[str, typer.Option(help="A second policy on the same shuffles, for differences in pairs.")] = "",
    output: JsonFile = None,
) -> None:
    """Pack a list of pods onto a list of nodes until 130 % of the accelerators were asked for.

    Prints the percentage of all accelerators that is allocated then, its standard deviation over the seeds, and the
    processor time that a decision takes.
    """
    from tokenservice.simulate.packing.openb import read_nodes, read_pods
    from tokenservice.simulate.packing.policies import POLICIES

    policy, against = (_named(name, tuple(POLICIES)) if name else "" for name in (policy, against))
    numbers = _seeds(seeds)
    try:
        fleet = read_nodes(nodes)
        asked = read_pods(pods, fleet.models)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    figures = _figures(fleet, asked, numbers, policy, against)
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n")


def _named(text: str, names: tuple[str, ...]) -> str:
    """The policy, however it is spelt: FGD, BestFit."""
    plain = {name.replace("-", ""): name for name in names}
    found = plain.get(re.sub(r"[-_ ]", "", text.lower()))
    if found is None:
        raise typer.BadParameter(f"{text!r} is no policy; there are {', '.join(names)}")
    return found


def _figures(nodes: NodeList, pods: PodList, seeds: tuple[int, ...], policy: str, against: str) -> dict[str, Any]:
    """What `--json` writes; each line is printed as soon as it is known."""
    from tokenservice.simulate.packing.protocol import paired

    report = _measured(policy, nodes, pods, seeds)
    if not against:
        return asdict(report)
    other = _measured(against, nodes, pods, seeds)
    mean, deviation = paired(report, other)
    typer.echo(f"{policy} - {against}: {mean:+.2f} points on the same shuffles, sd {deviation:.2f}")
    return asdict(report) | {"against": asdict(other) | {"difference": mean, "difference_sd": deviation}}


def _measured(name: str, nodes: NodeList, pods: PodList, seeds: tuple[int, ...]) -> Report:
    from tokenservice.simulate.packing.protocol import bench

    report = bench(name, nodes, pods, seeds, _progress)
    typer.echo(
        f"{name}: {report.allocated_percent:.2f} % allocated at 130 % demand, sd {report.allocated_percent_sd:.2f}, "
        f"{len(seeds)} seeds; {report.milliseconds_per_pod_p50:.2f} ms a pod, p95 "
        f"{report.milliseconds_per_pod_p95:.2f}, longest {report.milliseconds_per_pod_max:.1f}"
    )
    return report


def _progress(run: Run) -> None:
    typer.echo(f"  seed {run.seed}: {run.allocated_percent:.2f} %", err=True)


def _seeds(text: str) -> tuple[int, ...]:
    """'42-51' or '42,45,48' as numbers."""
    if match := re.fullmatch(r"(\d+)-(\d+)", text):
        found = tuple(range(int(match[1]), int(match[2]) + 1))
    else:
        found = tuple(int(part) for part in text.split(",") if part.isdecimal())
    if not found or (not match and len(found) != text.count(",") + 1):
        raise typer.BadParameter(f"--seeds is {text!r}; write a range such as 42-51 or a list such as 42,45")
    return found
