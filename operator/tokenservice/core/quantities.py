"""Kubernetes quantities exactly: as the API server writes them, and compared by what they mean.

`1024Mi` comes back as `1Gi` and `0.5` as `500m`. Who writes the first and compares text sees a difference for ever.
"""

from __future__ import annotations

import re
from fractions import Fraction
from math import ceil

_QUANTITY = re.compile(r"([+-]?\d+(?:\.\d*)?)(?:([eE][+-]?\d+)|(n|u|m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei))?")
_DECIMAL = ("", "k", "M", "G", "T", "P", "E")
_BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
_FACTORS = (
    {suffix: Fraction(1000) ** power for power, suffix in enumerate(_DECIMAL)}
    | {suffix: Fraction(1024) ** power for power, suffix in enumerate(_BINARY)}
    | {"m": Fraction(1, 1000), "u": Fraction(1, 10**6), "n": Fraction(1, 10**9)}
)


def amount(text: str) -> Fraction | None:
    """The exact number behind a quantity; None for text that is none."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    number, exponent, suffix = match.groups()
    return Fraction(number + (exponent or "")) * _FACTORS[suffix or ""]


def canonical(text: str) -> str:
    """A user's quantity as the API server will write it: no fraction, the largest suffix that needs none."""
    value = amount(text)
    if value is None:
        return text
    if text.endswith("i") and value.denominator == 1:
        return _largest(int(value), 1024, _BINARY)
    thousandths = ceil(value * 1000)
    return f"{thousandths}m" if thousandths % 1000 else _largest(thousandths // 1000, 1000, _DECIMAL)


def gibibytes(size_bytes: float) -> str:
    """Bytes rounded up to whole Gi: figures of ours are estimates and need no more digits."""
    return f"{max(1, ceil(size_bytes / 2**30))}Gi"


def _largest(value: int, base: int, suffixes: tuple[str, ...]) -> str:
    power = 0
    while value and value % base == 0 and power < len(suffixes) - 1:
        value, power = value // base, power + 1
    return f"{value}{suffixes[power]}"
