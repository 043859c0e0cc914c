"""Items by a key, kept up to date at the cost of the items that came and went, not of all that are there."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, count
from operator import is_not
from typing import Generic, TypeVar

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def grouped(items: Sequence[T], key: Callable[[T], K | None]) -> dict[K, tuple[T, ...]]:
    """Items by their key, in their order; those without one are left out."""
    found: dict[K, list[T]] = {}
    for item in items:
        mine = key(item)
        if mine is not None:
            found.setdefault(mine, []).append(item)
    return {mine: tuple(group) for mine, group in found.items()}


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What became of some items: those that came, those that went, and the place of each that is there, by its id."""

    came: Sequence[T]
    went: Sequence[T]
    place: Mapping[int, int]


def change(before: Sequence[T], items: Sequence[T]) -> Change[T]:
    """From `before` to `items`, each of which is there once. Items are told apart by identity."""
    shorter = min(len(before), len(items))
    start = _alike(before, items, shorter)
    end = _alike(reversed(before), reversed(items), shorter - start)
    old, new = before[start : len(before) - end], items[start : len(items) - end]
    was, now = {id(item) for item in old}, {id(item) for item in new}
    return Change(
        came=[item for item in new if id(item) not in was],
        went=[item for item in old if id(item) not in now],
        place=dict(zip(map(id, items), range(len(items)), strict=True)),
    )


def _alike(some: Iterable[T], others: Iterable[T], most: int) -> int:
    """How many items are the same at the beginning, at most so many; a step of Python for each would be most of it."""
    return min(most, next(compress(count(), map(is_not, some, others)), most))


def regrouped(
    groups: Mapping[K, tuple[T, ...]], changed: Change[T], key: Callable[[T], K | None]
) -> Mapping[K, tuple[T, ...]]:
    """`grouped` after a change, from the groups before it; a group that is as it was is the same object.

    Items that stay have to keep their order among each other. The order of the groups is not that of `grouped`.
    """
    came, place = grouped(changed.came, key), changed.place
    touched = dict.fromkeys((*came, *grouped(changed.went, key)))
    found = dict(groups)
    for mine in touched:
        staying = [item for item in groups.get(mine, ()) if id(item) in place]
        group = sorted((*staying, *came.get(mine, ())), key=lambda item: place[id(item)])
        if group:
            found[mine] = tuple(group)
        else:
            del found[mine]
    return found if touched else groups
