"""`python -m e2e.faults` (`make faults`): every fault pattern, then docs/faults.md and e2e/out/faults.json.

Two processes share the patterns, each with a control plane of its own: a case waits most of the time. What they say
comes in lines, as it happens.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from e2e.faults import report
from e2e.faults.record import PATTERNS, RESULT, RUN, begin

FOLDER = Path(__file__).resolve().parent
ALONE = ("test_crash",)
"""Takes as long as all the others."""


def main() -> int:
    """0 when every case held."""
    description, *more = (__doc__ or "").split("\n", 1)
    argparse.ArgumentParser("python -m e2e.faults", description=description, epilog="".join(more)).parse_args()
    RESULT.unlink(missing_ok=True)
    environment = os.environ | {RUN: begin()}
    halves = [list(ALONE), [module for module in PATTERNS if module not in ALONE]]
    running = [subprocess.Popen(_tests(modules), env=environment) for modules in halves]
    try:
        ended = [process.wait() for process in running]
    finally:
        for process in running:
            process.terminate()
    report.main()
    return int(any(ended))  # who was killed by a signal ended with less than 0


def _tests(modules: list[str]) -> list[str]:
    files = [str(FOLDER / f"{module}.py") for module in modules]
    return [sys.executable, "-m", "pytest", *files, "-q", "-s", "--show-capture=no"]


if __name__ == "__main__":
    sys.exit(main())
