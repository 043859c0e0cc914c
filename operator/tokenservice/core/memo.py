"""What one decision may leave for the next, so that only what changed is decided again.

A decision is made of parts, most of which see one service: its outlook, its rendered objects, its status. A part is a
pure function of what it was given, so its result is kept together with that, and is taken again when it is given the
same. The same means equal, and costs next to nothing where objects that did not change are still the same objects. A
memo changes how long a decision takes and never what it says: tests hold plans with and without one to be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

_Kept = dict[str, tuple[tuple[Any, ...], Any]]


def _always(_value: object) -> bool:
    return True


class Memo:
    """Results by owner and part. Mutable, for one caller: decisions that share one must not overlap."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, _Kept] = {None: {}}
        self._each: dict[str, dict[Any, tuple[tuple[Any, ...], Any]]] = {}

    def begin(self, owners: Iterable[Hashable]) -> None:
        """A new decision begins, in which only these own results, beside the fleet as a whole (None)."""
        for gone in self._kept.keys() - {None, *owners}:
            del self._kept[gone]

    def recall(
        self,
        part: str,
        owner: Hashable,
        given: tuple[Any, ...],
        make: Callable[[], T],
        worth_keeping: Callable[[T], bool] = _always,
    ) -> T:
        """The last result if it was made from the same, else `make()`, which may depend on nothing but `given`."""
        mine = self._kept.get(owner)
        if mine is None:
            mine = self._kept[owner] = {}
        kept = mine.get(part)
        if kept is not None and kept[0] == given:
            value: T = kept[1]
            return value
        value = make()
        if worth_keeping(value):
            mine[part] = (given, value)
        return value

    def recall_each(
        self,
        part: str,
        given: Mapping[K, tuple[Any, ...]],
        make: Callable[[Sequence[K]], Iterable[T]],
        worth_keeping: Callable[[T], bool] = _always,
    ) -> dict[K, T]:
        """As `recall` for every key at once: `make` is asked only for keys that were given something else.

        Both the answer and what `make` is asked for are in the order of `given`. What is not asked for is forgotten.
        """
        before = self._each.get(part, {})
        kept: dict[K, tuple[tuple[Any, ...], Any]] = {}
        found: dict[K, Any] = {}
        new: list[K] = []
        for key, mine in given.items():
            last = before.get(key)
            if last is not None and last[0] == mine:
                kept[key], found[key] = last, last[1]
            else:
                new.append(key)
                found[key] = None
        for key, value in zip(new, make(new) if new else (), strict=True):
            found[key] = value
            if worth_keeping(value):
                kept[key] = (given[key], value)
        self._each[part] = kept
        return found

    def same(self, part: str, value: T) -> T:
        """The equal value of the last decision, so that later comparisons find the same object."""
        return self.recall(part, None, (value,), lambda: value)

    def __len__(self) -> int:
        return sum(len(kept) for kept in (*self._kept.values(), *self._each.values()))
