"""What one decision may leave for the next, so that only what changed is decided again.

A decision is made of parts, most of which see one service: its outlook, its rendered objects, its status. A part is a
pure function of what it was given, so its result is kept together with that, and is taken again when it is given the
same. The same means equal, and costs next to nothing where objects that did not change are still the same objects. A
memo changes how long a decision takes and never what it says: tests hold plans with and without one to be equal.

What parts are given lies in columns, one value a service: two columns with the same objects are compared without a
step of Python for each, so that a part of which nothing changed costs microseconds for a thousand services.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
D = TypeVar("D")
Given = TypeVar("Given")

Column = Sequence[object]

_Kept = dict[str, tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class _Table(Generic[K]):
    """What a part was given and found for each key. `open` are places of keys whose result is not to be taken again."""

    keys: tuple[K, ...]
    shared: tuple[object, ...]
    columns: tuple[Column, ...]
    found: Mapping[K, Any]
    open: frozenset[int]

    def news(self, keys: tuple[K, ...], shared: tuple[object, ...], columns: tuple[Column, ...]) -> Iterable[int]:
        """Places in `keys` of those that were given something else than here, ascending."""
        if self.shared != shared:
            return range(len(keys))
        if self.keys == keys:
            return sorted(self.open.union(*map(_differing, self.columns, columns)))
        kept = [place for place in range(len(self.keys)) if place not in self.open]
        before = {self.keys[place]: [column[place] for column in self.columns] for place in kept}
        return [place for place, key in enumerate(keys) if before.get(key) != [column[place] for column in columns]]


def _differing(before: Column, now: Column) -> list[int]:
    if before is now or before == now:
        return []
    return [place for place, (old, new) in enumerate(zip(before, now, strict=True)) if old is not new and old != new]


def column(values: Mapping[K, T], keys: tuple[K, ...], default: D) -> Sequence[T | D]:
    """What stands under each key. Where these are all keys in this order, as is usual, no key is looked up."""
    if len(values) == len(keys) and tuple(values) == keys:
        return tuple(values.values())
    return [values.get(key, default) for key in keys]


def _always(_value: object) -> bool:
    return True


class Memo:
    """Results by owner and part. Mutable, for one caller: decisions that share one must not overlap."""

    def __init__(self) -> None:
        self._kept: dict[Hashable, _Kept] = {None: {}}
        self._tables: dict[str, _Table[Any]] = {}

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
        keys: tuple[K, ...],
        columns: tuple[Column, ...],
        make: Callable[[Sequence[K]], Iterable[T]],
        worth_keeping: Callable[[T], bool] = _always,
        *,
        shared: tuple[object, ...] = (),
    ) -> Mapping[K, T]:
        """As `recall` for every key at once: `make` is asked only for keys that were given something else.

        A key is given what stands at its place in each of the columns, and what is shared by all. No column is written
        to afterwards, nor is the answer, which is the last one where nothing changed. Both the answer and what `make`
        is asked for are in the order of `keys`, each of which is there once. What is not asked for is forgotten.
        """
        last = self._tables.get(part)
        news = range(len(keys)) if last is None else last.news(keys, shared, columns)
        new = [keys[place] for place in news]
        made: dict[K, T] = dict(zip(new, make(new), strict=True)) if new else {}
        if last is not None and last.keys == keys:
            found: Mapping[K, T] = {**last.found, **made} if made else last.found
        else:
            found = {key: made[key] if key in made or last is None else last.found[key] for key in keys}
        still = frozenset([place for place in news if not worth_keeping(made[keys[place]])])
        self._tables[part] = _Table(keys, shared, columns, found, still)
        return found

    def renew(self, part: str, given: Given, make: Callable[[], T], after: Callable[[Given, T], T]) -> T:
        """As `recall` for the whole fleet, where the last result (and what it was made from) spare most of the work:
        `after` makes of them what `make` would make from nothing."""
        kept = self._kept[None].get(part)
        if kept is not None and kept[0] == given:
            value: T = kept[1]
            return value
        value = make() if kept is None else after(*kept)
        self._kept[None][part] = (given, value)
        return value

    def same(self, part: str, value: T) -> T:
        """The equal value of the last decision, so that later comparisons find the same object."""
        return self.recall(part, None, (value,), lambda: value)

    def __len__(self) -> int:
        tables = self._tables.values()
        return sum(len(kept) for kept in self._kept.values()) + sum(len(table.found) for table in tables)
