"""`tokenservice capacity`: how well the engine model predicts measurements, and the audited figures of MLPerf."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track

from tokenservice.cli.files import JsonFile
from tokenservice.cli.mlperf import mlperf
from tokenservice.errors import ConfigurationError

capacity = typer.Typer(help="Calibrate the engine model, and validate it against measurements.", no_args_is_help=True)
capacity.command()(mlperf)

_LIMITS = {"many_shapes": (0.045, 0.15, 0.12), "few_shapes": (0.10, None, None)}
"""Median, 95th percentile and the worst group's median that the model is held to."""

_HEADINGS = {"many_shapes": "six unsaturated shapes or more", "few_shapes": "fewer"}


@capacity.callback()
def main() -> None:
    """Keeps the names of subcommands, however many there are."""


@capacity.command()
def validate(
    fit: Annotated[Path, typer.Option(help="Measurements to fit (CSV, columns of aiconfigurator's silicon_sample).")],
    validate: Annotated[
        Path | None, typer.Option(help="Measurements to predict from the fit; without it, shapes are held out in turn.")
    ] = None,
    json_file: JsonFile = None,
    strangers_only: Annotated[
        bool, typer.Option(help="Let other configurations of the same model say nothing: a model never seen before.")
    ] = False,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst groups to print.")] = 10,
) -> None:
    """Predict time per output token of measurements that the model has not seen, and print the errors."""
    try:
        judged = _judged(fit, validate, strangers_only)
    except ConfigurationError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    report = _report(judged, fit, validate)
    _show(report, worst)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _judged(fit: Path, other: Path | None, strangers_only: bool) -> list[Any]:
    from tokenservice.cli.kin import known
    from tokenservice.cli.measurements import read_measurements
    from tokenservice.core.holdout import against_others, held_out_in_turn

    notes = Console(stderr=True)
    measured = read_measurements(fit)
    _tell(notes, fit, measured)
    if other is None:
        found = known(measured.by_configuration)
        groups = held_out_in_turn(measured.by_configuration, found.kin, strangers_only=strangers_only)
        total = len(measured.by_configuration)
    else:
        unseen = read_measurements(other)
        _tell(notes, other, unseen)
        found = known([*measured.by_configuration, *unseen.by_configuration])
        groups = against_others(measured.by_configuration, unseen.by_configuration, found.kin)
        total = len(unseen.by_configuration)
    for guess in found.guesses:
        notes.print(f"note: {guess}", markup=False, highlight=False, soft_wrap=True)
    return list(track(groups, "predicting", total=total, console=notes, transient=True))


def _tell(notes: Console, file: Path, measured: Any) -> None:
    left = "; left out: " + ", ".join(f"{n} {why}" for why, n in measured.left_out.items()) if measured.left_out else ""
    text = f"{file}: {measured.points} measurements of {len(measured.by_configuration)} configurations{left}"
    notes.print(text, markup=False, highlight=False, soft_wrap=True)


# --- The report ----------------------------------------------------------------------------------------------------


def _report(judged: Sequence[Any], fit: Path, other: Path | None) -> dict[str, Any]:
    """What `--json` writes: fractions, null where there is nothing to average."""
    return {
        "fit": str(fit),
        "validate": str(other) if other is not None else None,
        "protocol": "another file" if other is not None else "shapes held out in turn",
        "many_shapes": _pooled([group for group in judged if group.many]),
        "few_shapes": _pooled([group for group in judged if not group.many]),
        "saturated": _saturated(judged),
        "groups": [_group(group) for group in judged],
    }


def _pooled(groups: Sequence[Any]) -> dict[str, Any]:
    from tokenservice.core.holdout import summary

    found = summary(groups)
    return {
        "groups": found.groups,
        "points": found.points,
        "median_error": _figure(found.median_error),
        "p95_error": _figure(found.p95_error),
        "worst_group_median": _figure(found.worst_group_median),
    }


def _saturated(judged: Sequence[Any]) -> dict[str, Any]:
    errors = [one.error for group in judged for one in group.predictions if one.saturated]
    return {
        "points": len(errors),
        "groups": sum(any(one.saturated for one in group.predictions) for group in judged),
        **_errors(errors),
    }


def _group(group: Any) -> dict[str, Any]:
    own = group.configuration
    return {
        "name": str(own),
        "model": own.model,
        "engine": own.engine,
        "engine_version": own.engine_version,
        "accelerator": own.accelerator,
        "precision": own.precision,
        "tensor_parallel": own.tensor_parallel,
        "data_parallel": own.data_parallel,
        "experts_parallel": own.experts_parallel,
        "shapes": group.shapes,
        "many_shapes": group.many,
        "points": len(group.clear),
        "saturated_points": len(group.predictions) - len(group.clear),
        **_errors([one.error for one in group.clear]),
        "step": {
            "alpha_ms": round(group.step.alpha_ms, 5),
            "beta_ms": round(group.step.beta_ms, 6),
            "kappa_ms": round(group.step.kappa_ms, 6),
            "delta_ms": round(group.step.delta_ms, 6),
        },
    }


def _errors(errors: Sequence[float]) -> dict[str, float | None]:
    import numpy as np

    if not errors:
        return {"median_error": None, "p95_error": None}
    return {"median_error": _figure(float(np.median(errors))), "p95_error": _figure(float(np.percentile(errors, 95)))}


def _figure(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


# --- Showing -------------------------------------------------------------------------------------------------------


def _show(report: dict[str, Any], worst: int) -> None:
    """Plain lines of fixed columns, so that what is piped on is whole."""
    typer.echo(f"error of TPOT, {report['protocol']}\n")
    typer.echo(f"{'groups with':33}{'groups':>7}{'points':>8}{'median':>9}{'p95':>9}{'worst':>9}  held to")
    for kind, title in _HEADINGS.items():
        typer.echo(f"{title:33}{_columns(report[kind])}  {_verdict(kind, report[kind])}")
    typer.echo(f"{'saturated points, not counted':33}{_columns(report['saturated'])}")
    _show_worst(report, worst)


def _columns(found: dict[str, Any]) -> str:
    errors = (_percent(found.get(name)) for name in ("median_error", "p95_error", "worst_group_median"))
    return f"{found['groups']:>7}{found['points']:>8}" + "".join(f"{error:>9}" for error in errors)


def _verdict(kind: str, pooled: dict[str, Any]) -> str:
    if not pooled["groups"]:
        return "nothing to judge"
    names = ("median_error", "p95_error", "worst_group_median")
    bounds = [(pooled[name], limit) for name, limit in zip(names, _LIMITS[kind], strict=True) if limit is not None]
    text = " / ".join(_percent(limit) for _, limit in bounds)
    return f"{text}: {'kept' if all(value <= limit for value, limit in bounds) else 'MISSED'}"


def _show_worst(report: dict[str, Any], worst: int) -> None:
    groups = [group for group in report["groups"] if group["median_error"] is not None]
    shown = sorted(groups, key=lambda group: -group["median_error"])[:worst]
    if shown:
        typer.echo(f"\n{'shapes':>6}{'points':>8}{'median':>9}{'p95':>9}  worst groups")
    for group in shown:
        errors = f"{_percent(group['median_error']):>9}{_percent(group['p95_error']):>9}"
        typer.echo(f"{group['shapes']:>6}{group['points']:>8}{errors}  {group['name']}")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"
