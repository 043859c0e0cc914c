"""What one decision may leave for the next, so that only what changed is decided again.

A decision is made of parts, most of which see one service: its outlook, its rendered objects, its status. A part is a
pure function of what it was given, so its result is kept together with that, and is taken again when it is given the
same. The same means equal, and costs next to nothing where objects that did not change are still the same objects. A
memo changes how long a decision takes and never what it says: tests hold plans with and without one to be equal.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

_Kept = dict[str, tuple[tuple[Any, ...], Any]]


def _always(_value: object) -> bool:
    return True


class Memo:
    """Results by owner and part. Mutable, for one caller: decisions that share one must not overlap."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, _Kept] = {None: {}}

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

    def same(self, part: str, value: T) -> T:
        """The equal value of the last decision, so that later comparisons find the same object."""
        return self.recall(part, None, (value,), lambda: value)

    def __len__(self) -> int:
        return sum(len(kept) for kept in self._kept.values())
