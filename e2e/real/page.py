"""`python -m e2e.real.page`: puts the last run's figures where README and docs/real.md show them.

What the last run under load did not come to, or was made before, is told of the last short run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2e.pages import write_block

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]


def main() -> None:
    """Rewrites the blocks from `e2e/out/real.json` and `real-short.json`."""
    run = _read("real-short") | _read("real")
    write_block(ROOT / "README.md", "real", summary(run))
    write_block(ROOT / "docs/real.md", "real", block(run))


def _read(name: str) -> Json:
    file = ROOT / f"e2e/out/{name}.json"
    return dict(json.loads(file.read_text())) if file.exists() else {}


def summary(run: Json) -> str:
    """One paragraph for the README."""
    phases, cold = run["phases"], run["coldStartSeconds"]
    sent = sum(phase["sent"] for phase in phases.values())
    lost = sum(phase["failed"] + phase["cut"] for phase in phases.values())
    return (
        f"In one run the first token of {_engine(run)} came {cold['all']:.0f} s after the apply,"
        f" {cold['engineReady']:.0f} s of them the engine's own start. Of {sent:,} streamed requests sent through"
        f" {_listed(phases)}, {lost or 'none'} failed or was cut.\n"
    )


def block(run: Json) -> str:
    """Tables for docs/real.md."""
    operator, cold, refused = run["operator"], run["coldStartSeconds"], run.get("refusedChange")
    verified = run.get("verification")
    lines = [
        f"{_engine(run)}. Operator: image {operator['imageBytes'] / 1e6:.1f} MB compressed, at most"
        f" {operator['peakResidentBytes'] / 2**20:.0f} MiB resident. From apply to first token {cold['all']:.1f} s: "
        + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in cold.items() if name != "all")
        + ".",
        "",
        "| phase | seconds | sent | answered | failed | cut | median TTFT, s | running per replica | by replica |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
        *(_row(name, phase) for name, phase in run["phases"].items()),
        "",
        *([f"The change that the engine refuses, as `Stalled` told it: *{refused}*", ""] if refused else []),
        *(_verification(verified) if verified else ()),
        "Optimizations, seen in two replicas: " + ", ".join(_seen(*one) for one in run["optimizations"].items()) + ".",
        "",
        "The engine contract: " + ", ".join(f"{name} {_KEPT[kept]}" for name, kept in run["contract"].items()) + ".",
        "",
    ]
    return "\n".join(lines)


_KEPT = {True: "kept", False: "**broken**", None: "not tried"}


def _engine(run: Json) -> str:
    return f"{run['engine']['name']} {run['engine']['version']} on a {run['engine']['device']}"


def _row(name: str, phase: Json) -> str:
    counts = " | ".join(f"{phase[what]:,}" for what in ("sent", "answered", "failed", "cut"))
    each = ", ".join(f"{mean:.1f}" for mean in phase["meanRunningByPod"].values())
    ran = f"{phase['meanRunningPerReplica']} | {each}"
    return f"| {name} | {phase['seconds']:.0f} | {counts} | {phase['medianFirstTokenSeconds']} | {ran} |"


def _verification(told: Json) -> tuple[str, ...]:
    kept = "went on being answered" if told["goodVersionServed"] else "**were not** answered"
    return (
        f"A signed model, as `ModelVerified` told it: *{told['signed']}*. After one bit of its weights was changed:"
        f" *{told['changed']}*. Requests {kept} meanwhile.",
        "",
    )


def _seen(name: str, value: bool | float) -> str:
    return f"{name} {'yes' if value is True else 'no' if value is False else f'{value:,.0f}'}"


def _listed(names: Json) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}"


if __name__ == "__main__":
    main()
