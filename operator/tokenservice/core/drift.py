"""Whether a live object still is what was applied.

A server adds defaults, other managers add fields and list items, and quantities come back in their canonical form.
None of that is drift: applying again would not change it, and would be tried again in every pass for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenservice.core.model import Json
from tokenservice.core.quantities import amount

_KEYS = ("uid", "mountPath", "name", "type", "topologyKey")
"""What items of keyed lists are known by, the most telling first. Lists of anything else are compared in order."""

_QUANTITIES = frozenset({"limits", "requests", "sizeLimit"})


def differs(desired: Json, live: Json) -> bool:
    """Whether applying `desired` would change `live`.

    `desired` carries the hash of its manifest: it is what tells a live object with a field that is no longer wanted.
    """
    return not _within(desired, live, "")


def _within(desired: Any, live: Any, field: str) -> bool:
    """Types are asked for exactly and the commonest first: a fleet has a hundred thousand leaves."""
    kind = type(desired)
    if kind is dict:
        return _mapping_within(desired, live, field)
    if kind is list or kind is tuple:
        return _list_within(desired, live, field)
    if kind is str and desired == live:
        return True
    if isinstance(desired, Mapping):
        return _mapping_within(desired, live, field)
    if field in _QUANTITIES and desired is not None and live is not None:
        return _same_amount(str(desired), str(live))
    return bool(desired == live) and isinstance(desired, bool) == isinstance(live, bool)


def _mapping_within(desired: Mapping[str, Any], live: Any, field: str) -> bool:
    """The server leaves empty objects and lists out, so a missing one is as good."""
    if type(live) is not dict and not isinstance(live, Mapping):
        return not desired and live is None
    inherited = field if field in _QUANTITIES else None
    return all(_within(value, live.get(key), inherited or key) for key, value in desired.items())


def _list_within(desired: Sequence[Any], live: Any, field: str) -> bool:
    if not isinstance(live, list | tuple):
        return not desired and live is None
    key = _key(desired)
    if key is None:
        pairs = zip(desired, live, strict=False)
        return len(desired) == len(live) and all(_within(a, b, field) for a, b in pairs)
    found = {name: item for item in live if isinstance(name := _name(item, key), str)}
    return all(_within(item, found.get(item[key]), field) for item in desired)


def _key(items: Sequence[Any]) -> str | None:
    """The field that tells the items apart; None for lists without one, which are owned as a whole."""
    if not items or type(items[0]) is str:
        return None
    return next((key for key in _KEYS if _tells_apart(items, key)), None)


def _tells_apart(items: Sequence[Any], key: str) -> bool:
    names = {name for item in items if type(name := _name(item, key)) is str}
    return len(names) == len(items)


def _name(item: Any, key: str) -> Any:
    return item.get(key) if type(item) is dict or isinstance(item, Mapping) else None


def _same_amount(desired: str, live: str) -> bool:
    return desired == live or (amount(desired) is not None and amount(desired) == amount(live))
