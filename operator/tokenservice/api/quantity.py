"""Text that carries a unit, as users write it: `500ms`, `2s`, `80Gi`, `p99`.

Both kinds of field accept a bare number in the schema: an amount may well be one (`cpu: 4`), and a duration that
lacks its unit is then told so by a rule instead of being called the wrong type.
"""

from __future__ import annotations

import re
from typing import Any

from tokenservice.api.base import Rule, between, cel_text, is_text

NUMBER_OR_TEXT: dict[str, Any] = {"x-kubernetes-int-or-string": True}

SHARE_OF_CAPACITY = between(
    0.05, 0.95, "give a share between 0.05 and 0.95: without any room left no latency can be kept; for example 0.7"
)

_LATENCY = r"^[0-9]{1,7}(\.[0-9]{1,6})?(ms|s)$"
_AMOUNT = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"

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


def latency_rules(example: str) -> tuple[Rule, ...]:
    """A latency target: a number with a unit, and one that an engine can reach."""
    shape = cel_text(_LATENCY)
    return (
        Rule(
            f"type(self) == string && self.matches({shape})",
            f"give a positive number with the unit ms or s, for example {example}",
            check=lambda value: is_text(value, _LATENCY),
        ),
        Rule(
            f"type(self) != string || !self.matches({shape}) || duration(self) >= duration('1ms')",
            f"no engine answers in less than 1ms: give a target that can be met, for example {example}",
            check=lambda value: not is_text(value, _LATENCY) or duration_seconds(value) >= 0.001,
        ),
    )


def amount_rule(example: str) -> Rule:
    """An amount of something: a positive number, bare or with a suffix."""
    return Rule(
        f"type(self) == int ? self > 0 : self.matches({cel_text(_AMOUNT)}) && self.matches('[1-9]')",
        f"give a positive amount, with a suffix such as m, k, M, Mi, G or Gi where it needs one; for example {example}",
        check=_is_amount,
    )


def _is_amount(value: object) -> bool:
    if isinstance(value, int):
        return value > 0
    return is_text(value, _AMOUNT) and re.search("[1-9]", str(value)) is not None
