"""`make e2e-real`: real vLLM in pods of the operator's, asked without a pause while everything about them changes.

Exit codes: 0 nothing was lost; 1 a request was, or something did not come about; 77 this machine cannot.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from e2e.real import bed, machine
from e2e.real.machine import CANNOT, CannotError
from e2e.real.scenario import Scenario

OUT = Path(__file__).resolve().parents[1] / "out"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m e2e.real", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="only what needs no load: start, verification, contract")
    asked = parser.parse_args()
    out = OUT / ("real-short.json" if asked.short else "real.json")
    signal.signal(signal.SIGTERM, _end)
    began = time.monotonic()

    def say(sentence: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {sentence}", flush=True)

    try:
        machine.check(say)
        with bed.start(say) as parts:
            report = Scenario(parts, say).run(short=asked.short)
    except CannotError as error:
        print(error, file=sys.stderr)
        return CANNOT
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report.document(), indent=2) + "\n")
    print(report.text())
    print(f"{out.relative_to(OUT.parents[1])} written; {time.monotonic() - began:.0f} s in all")
    return 0 if report.is_clean else 1


def _end(_number: int, _frame: FrameType | None) -> None:
    """As Ctrl-C: nothing is left behind."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
