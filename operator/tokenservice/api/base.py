"""How fields are declared: one helper writes the unit and the default into each description.

`kubectl explain` is where users read the API, so the unit and the default stand in the text itself and cannot
drift from the schema. CEL rules live beside the fields they judge, and each carries the same check in Python, so
that `tokenservice lint` can judge a file without a cluster; a test holds the two together on a real API server.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

REQUIRED: Any = ...

Check = Callable[[Any], bool]

CHECKS: dict[str, Check] = {}
"""What every declared CEL expression means in Python, over the JSON value with defaults applied."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL validation: `expression` over `self` (and `oldSelf`), and what a person is told when it fails.

    `check` says the same in Python; None for rules about a change, which a single file cannot break.
    """

    expression: str
    message: str
    field_path: str | None = None
    check: Check | None = None

    def __post_init__(self) -> None:
        if self.check is not None:
            CHECKS[self.expression] = self.check


def matches(pattern: str, message: str) -> Rule:
    """The whole text matches `pattern`, which stays in what RE2 and Python's re share."""
    return Rule(f"self.matches({cel_text(pattern)})", message, check=lambda value: is_text(value, pattern))


def lacks(pattern: str, message: str) -> Rule:
    """Nothing of the text matches `pattern`, which stays in what RE2 and Python's re share."""
    return Rule(f"!self.matches({cel_text(pattern)})", message, check=lambda value: not re.search(pattern, str(value)))


def between(low: float, high: float, message: str) -> Rule:
    """A number from `low` to `high`. The schema's own bounds are told without their decimals: 0.95 becomes 0."""
    return Rule(f"self >= {low} && self <= {high}", message, check=lambda value: low <= value <= high)


def is_text(value: object, pattern: str) -> bool:
    """Whether `value` is text that `pattern` matches as a whole."""
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def cel_text(text: str) -> str:
    """`text` as a CEL literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _show_rules(schema: dict[str, Any], model: type[ApiModel]) -> None:
    if model.rules:
        schema["x-kubernetes-validations"] = [rule_schema(rule) for rule in model.rules]


class ApiModel(BaseModel):
    """Base of everything in the API: camelCase outside, snake_case inside, immutable once parsed."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        json_schema_extra=_show_rules,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()


def field(
    default: Any,
    description: str,
    *,
    unit: str | None = None,
    default_text: str | None = None,
    rules: tuple[Rule, ...] = (),
    schema: dict[str, Any] | None = None,
    **bounds: Any,
) -> Any:
    """A field whose description ends in its unit and default.

    `default` is REQUIRED, None (absent unless given, `default_text` says what then happens) or a value.
    `bounds` are pydantic constraints (`ge`, `max_length`, ...); `schema` is merged into the field's OpenAPI schema.
    """
    parts = [description.rstrip(".") + "."]
    if unit is not None:
        parts.append(f"Unit: {unit}.")
    parts.append("Required." if default is REQUIRED else f"Default: {default_text or _shown(default)}.")
    extra: dict[str, Any] = dict(schema or {})
    if rules:
        extra["x-kubernetes-validations"] = [rule_schema(rule) for rule in rules]
    return Field(default, description=" ".join(parts), json_schema_extra=extra or None, **bounds)


def rule_schema(rule: Rule) -> dict[str, str]:
    """The rule as it stands in a CRD."""
    shown = {"rule": rule.expression, "message": rule.message}
    return shown | {"fieldPath": rule.field_path} if rule.field_path else shown


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, BaseModel):
        return "the defaults of its fields"
    return "empty" if default in ((), {}, "") else str(default)
