"""`python -m e2e.demo.readme`: puts the last demo's picture and numbers where README and docs/demo.md show them.

No figure there is typed by hand: this writes the blocks between the markers from `e2e/out/demo.json` and `hpa.json`,
each if it is there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import median
from typing import Any

from e2e.pages import write_block

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "e2e/out"
HPA = "HPA at "
"""What the columns of the HPA are called, before its share."""

_QUIET_SECONDS = 0.5
_ROWS = (
    ("SLO-goodput utilization", "utilization", "{:.3f}"),
    ("joint attainment, worst Guaranteed service", "slo_attainment", "{:.2%}"),
    ("accelerator-hours", "accelerator_hours", "{:.2f}"),
    ("$ per million output tokens", "dollars_per_million_tokens", "{:.2f}"),
    ("J per output token (estimate)", "joules_per_token", "{:.2f}"),
)


def main() -> None:
    """Rewrites the blocks and the picture."""
    if (OUT / "demo.json").exists():
        write_block(ROOT / "README.md", "demo", block(json.loads((OUT / "demo.json").read_text())))
        shutil.copy(OUT / "demo.png", ROOT / "docs/demo.png")
    if (OUT / "hpa.json").exists():
        write_block(ROOT / "docs/demo.md", "hpa", hpa_block(json.loads((OUT / "hpa.json").read_text())))


def block(numbers: dict[str, Any]) -> str:
    """The README's Markdown between the markers."""
    static, operator = numbers["static"], numbers["operator"]
    lines = _table("one run of `make demo`", {"static sizes": static, "operator": operator})
    gain = operator["utilization"] / static["utilization"]
    said = f"{gain:.2f} times the utilization of static sizes. Traffic: {numbers['trace']}."
    reactions = numbers["reaction_seconds"]
    if reactions:
        said += (
            f" From a step of load from 50 % to 120 % of capacity to a new pod (`python -m e2e.demo.reaction`):"
            f" median {median(reactions):.1f} s, worst {max(reactions):.1f} s of {len(reactions)}."
        )
    return "\n".join([*lines, "", said, "", _by_service(static["services"], operator["services"]), ""])


def hpa_block(numbers: dict[str, Any]) -> str:
    """Static sizes, the operator, and every HPA that was tried."""
    columns = {"static sizes": numbers["static"], "operator": numbers["operator"], **numbers["hpa_tried"]}
    options = " ".join(f"--share {name.removeprefix(HPA)}" for name in numbers["hpa_tried"])
    lines = _table(f"one run of `python -m e2e.demo.hpa {options}`", columns)
    met = [
        f"| {name}, within both objectives | "
        + " | ".join(_share(one["services"][name]) for one in columns.values())
        + " |"
        for name in numbers["static"]["services"]
    ]
    lag = max(one["client_worst_lag_seconds"] for one in columns.values())
    said = f"Traffic: {numbers['trace']}. The client was late by at most {lag:.2f} s"
    said += ": the machine was busy, figures of a quiet one differ." if lag > _QUIET_SECONDS else "."
    return "\n".join([*lines, *met, "", said, ""])


def _table(title: str, columns: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        f"| {label} | " + " | ".join(form.format(one[key]) for one in columns.values()) + " |"
        for label, key, form in _ROWS
    ]
    return [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|", *rows]


def _by_service(static: dict[str, Any], operator: dict[str, Any]) -> str:
    """What the saving costs those to whom no volume is promised belongs beside it."""
    shares = [f"{name} {_share(static[name])} and {_share(operator[name])}" for name in static]
    return f"Requests within both objectives, static and operator: {', '.join(shares)}."


def _share(service: dict[str, Any]) -> str:
    """A service that nobody asked for anything kept nothing and broke nothing."""
    return "-" if service["attainment"] is None else f"{service['attainment']:.1%}"


if __name__ == "__main__":
    main()
