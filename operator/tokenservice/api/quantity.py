"""Text that carries a unit, as users write it: `500ms`, `2s`, `80Gi`, `p99`."""

from __future__ import annotations

import re

DURATION = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h)$"
QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_FACTORS = {
    "": 1.0,
    "m": 1e-3,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}
_PARTS = re.compile(r"^([0-9.]+)([A-Za-z]*)$")


def duration_seconds(text: str) -> float:
    """Seconds in `500ms`, `2s`, `5m` or `1h`. Raises ValueError without a unit."""
    number, unit = _split(text)
    if unit not in _SECONDS:
        raise ValueError(f"{text!r} is not a duration: give a unit, for example 500ms or 2s")
    return number * _SECONDS[unit]


def quantity(text: str) -> float:
    """The number a Kubernetes quantity stands for: bytes in `80Gi`, cores in `500m`."""
    number, unit = _split(text)
    if unit not in _FACTORS:
        raise ValueError(f"{text!r} is not a quantity: use a suffix such as m, k, Ki, M, Mi, G or Gi")
    return number * _FACTORS[unit]


def percentile_fraction(text: str) -> float:
    """0.99 for `p99`, 0.999 for `p99.9`."""
    return float(text.removeprefix("p")) / 100


def _split(text: str) -> tuple[float, str]:
    match = _PARTS.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a number with a unit")
    return float(match.group(1)), match.group(2)
