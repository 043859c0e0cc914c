"""`python -m e2e.demo.readme`: puts the last demo's picture and numbers where the README shows them.

No figure there is typed by hand: this writes the block between the markers from `e2e/out/demo.json`.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "e2e/out"
_BLOCK = re.compile(r"(?s)(<!-- demo:begin -->\n).*?(<!-- demo:end -->)")


def main() -> None:
    """Rewrites the README's block and the picture."""
    numbers = json.loads((OUT / "demo.json").read_text())
    readme = ROOT / "README.md"
    text = readme.read_text()
    readme.write_text(_BLOCK.sub(lambda match: match.group(1) + block(numbers) + match.group(2), text))
    shutil.copy(OUT / "demo.png", ROOT / "docs/demo.png")


def block(numbers: dict[str, Any]) -> str:
    """The Markdown between the markers."""
    static, operator = numbers["static"], numbers["operator"]
    rows = [
        ("SLO-goodput utilization", "utilization", "{:.3f}"),
        ("joint attainment, worst Guaranteed service", "slo_attainment", "{:.2%}"),
        ("accelerator-hours", "accelerator_hours", "{:.2f}"),
        ("$ per million output tokens", "dollars_per_million_tokens", "{:.2f}"),
        ("J per output token (estimate)", "joules_per_token", "{:.2f}"),
    ]
    lines = ["| one run of `make demo` | static sizes | operator |", "|---|---|---|"]
    lines += [f"| {label} | {form.format(static[key])} | {form.format(operator[key])} |" for label, key, form in rows]
    gain = operator["utilization"] / static["utilization"]
    said = f"{gain:.2f} times the utilization of static sizes. Traffic: {numbers['trace']}."
    reactions = numbers["reaction_seconds"]
    if reactions:
        said += (
            f" From a step of load from 50 % to 120 % of capacity to a new pod (`python -m e2e.demo.reaction`):"
            f" median {median(reactions):.1f} s, worst {max(reactions):.1f} s of {len(reactions)}."
        )
    return "\n".join([*lines, "", said, "", _by_service(static["services"], operator["services"]), ""])


def _by_service(static: dict[str, Any], operator: dict[str, Any]) -> str:
    """What the saving costs those to whom no volume is promised belongs beside it."""
    shares = [f"{name} {static[name]['attainment']:.1%} and {operator[name]['attainment']:.1%}" for name in static]
    return f"Requests within both objectives, static and operator: {', '.join(shares)}."


if __name__ == "__main__":
    main()
