"""How much the variances of kinship matter: `python -m tests.core.bench_kinship FILE` halves and doubles each.

Not a test: it takes minutes. A table that stayed flat is what allows round numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenservice.cli.kin import known
from tokenservice.cli.measurements import read_measurements
from tokenservice.core import kinship
from tokenservice.core.holdout import Judged, held_out_in_turn, summary

VARIANCES = (
    "_COMMON",
    "_EXPERTS",
    "_LAYOUT",
    "_MODEL",
    "_MODEL_ENGINE",
    "_MODEL_ENGINE_ACCELERATOR",
    "_OWN",
    "_VERSION",
)


def errors(file: Path) -> str:
    measured = read_measurements(file).by_configuration
    judged: list[Judged] = list(held_out_in_turn(measured, known(measured).kin))
    many, few = (summary(one for one in judged if one.many is which) for which in (True, False))
    parts = (f"many {many.median_error:.2%} (p95 {many.p95_error:.1%})", f"few {few.median_error:.2%}")
    return ", ".join(parts)


def main(file: Path) -> None:
    print(f"{'as shipped':36}{errors(file)}", flush=True)
    for name in VARIANCES:
        shipped = getattr(kinship, name)
        for factor in (0.5, 2.0):
            setattr(kinship, name, shipped * factor)
            print(f"{name + ' x ' + str(factor):36}{errors(file)}", flush=True)
        setattr(kinship, name, shipped)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
