"""What is known of each kind: slim projections, how fresh they are, and whether our own writes came back.

A store holds what a projection made of each object, never the object. It wakes the planner only when a projection
changed in a way that matters: a pod's heartbeat or our own status write does not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from tokenservice.core.model import Json, ObjectKey

T = TypeVar("T")

_log = logging.getLogger(__name__)

DISCONNECTED_LIMIT_SECONDS = 10.0
"""A store without a watch is stale after this; a reconnect takes about one."""

SILENT_LIMIT_SECONDS = 150.0
"""The same with a watch. A bookmark comes every minute, and in the next watch where one breaks just before."""


@dataclass(frozen=True, slots=True)
class Projection(Generic[T]):
    """How objects of a kind are seen. `of` gives None for what is not of interest.

    `essence` is what two versions are compared by; by default the projection itself. Coming, changes and going of what
    has none (None) wake nobody. `after` gives the new version (the second) made of the parts of the last (None for
    none) that are still the same.
    """

    of: Callable[[Json], T | None]
    essence: Callable[[T], Any] = field(default=lambda value: value)
    after: Callable[[T | None, T], T] = field(default=lambda _, new: new)


@dataclass(frozen=True, slots=True)
class Version:
    """Which object, and which state of it, was last seen."""

    uid: str
    revision: str


Items = dict[tuple[str, str], tuple[Version, T]]
"""Versions and projections by namespace and name."""


class Store(Generic[T]):
    """One kind in one namespace (or in all), filled by one reflector."""

    def __init__(
        self,
        kind: str,
        projection: Projection[T],
        *,
        namespace: str = "",
        wake: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self.synced = False
        self.connected = False
        self.absent = False
        self.moved = asyncio.Event()
        self._projection = projection
        self._wake = wake
        self._clock = clock
        self._items: Items[T] = {}
        self._revision = 0
        self._active_at = clock()

    def project(self, objects: Iterable[Json]) -> Items[T]:
        """Projections of a chunk of a list, so that whole objects can be forgotten chunk by chunk."""
        found = ((_identity(obj), _version(obj), self._read(obj, self._last(_identity(obj)))) for obj in objects)
        return {identity: (version, value) for identity, version, value in found if value is not None}

    def replace(self, items: Items[T], revision: str) -> None:
        """Takes a whole list, with what vanished meanwhile."""
        changed = not self.synced or self.absent or self._essences(items) != self._essences(self._items)
        self._items = items
        self.synced, self.absent = True, False
        self._progress(revision, changed=changed)

    def none(self) -> None:
        """Takes word that the cluster does not have the kind."""
        changed = not self.absent
        self._items = {}
        self.synced = self.absent = True
        self._progress("", changed=changed)

    def put(self, obj: Json) -> None:
        """Takes one added or modified object."""
        identity, version = _identity(obj), _version(obj)
        old = self._last(identity)
        new = self._read(obj, old)
        if new is None:
            self._items.pop(identity, None)
        else:
            self._items[identity] = (version, new)
        self._progress(version.revision, changed=self._differ(old, new))

    def remove(self, obj: Json) -> None:
        """Takes a deletion."""
        _, gone = self._items.pop(_identity(obj), (None, None))
        self._progress(_version(obj).revision, changed=self._differ(gone, None))

    def bookmark(self, revision: str) -> None:
        """Takes word that nothing of interest happened up to `revision`."""
        self._progress(revision, changed=False)

    def touch(self, *, connected: bool) -> None:
        """Notes that the watch was opened or lost. An open one has not said anything yet."""
        self.connected = connected

    def age(self) -> float:
        """Seconds since anything was heard."""
        return self._clock() - self._active_at

    @property
    def stale(self) -> bool:
        """Whether what is here may no longer be true. A kind that the cluster lacks is asked for now and then only."""
        if self.absent:
            return False
        limit = SILENT_LIMIT_SECONDS if self.connected else DISCONNECTED_LIMIT_SECONDS
        return not self.synced or self.age() > limit

    def has_seen(self, revision: str) -> bool:
        """Whether a write that came back with `revision` is in here. Revisions of one cluster are ordered numbers."""
        return revision.isdigit() and self._revision >= int(revision)

    def values(self, of: type = object) -> list[T]:
        """Everything of a type, sorted by namespace and name."""
        found = [(identity, value) for identity, (_, value) in self._items.items() if isinstance(value, of)]
        return [value for _, value in sorted(found, key=lambda item: item[0])]

    def each(self, of: type) -> Iterator[T]:
        """Everything of a type, in no order: there may be very many."""
        return (value for _, value in self._items.values() if isinstance(value, of))

    def version(self, namespace: str, name: str) -> Version | None:
        """Which object was last seen under a name."""
        found = self._items.get((namespace, name))
        return found[0] if found else None

    def __len__(self) -> int:
        return len(self._items)

    def _last(self, identity: tuple[str, str]) -> T | None:
        _, value = self._items.get(identity, (None, None))
        return value

    def _read(self, obj: Json, last: T | None) -> T | None:
        """The projection; an object that defies it is left out, so that it cannot stop the others."""
        try:
            new = self._projection.of(obj)
            return None if new is None else self._projection.after(last, new)
        except Exception as error:
            _log.warning("%s %s/%s is left out: %r", self.kind, *_identity(obj), error)
            return None

    def _differ(self, old: T | None, new: T | None) -> bool:
        before, after = (None if value is None else self._projection.essence(value) for value in (old, new))
        return bool(before != after)

    def _essences(self, items: Items[T]) -> dict[tuple[str, str], Any]:
        found = ((identity, self._projection.essence(value)) for identity, (_, value) in items.items())
        return {identity: essence for identity, essence in found if essence is not None}

    def _progress(self, revision: str, *, changed: bool) -> None:
        self._active_at = self._clock()
        self._revision = max(self._revision, int(revision)) if revision.isdigit() else self._revision
        self.moved.set()
        if changed:
            self._wake()


class Stores:
    """All stores, by kind."""

    def __init__(self, stores: Iterable[Store[Any]]) -> None:
        self._by_kind: dict[str, list[Store[Any]]] = {}
        for store in stores:
            self._by_kind.setdefault(store.kind, []).append(store)

    @property
    def synced(self) -> bool:
        """Whether every kind was listed once."""
        return all(store.synced for store in self)

    def __iter__(self) -> Any:
        return (store for stores in self._by_kind.values() for store in stores)

    def values(self, kind: str, of: type = object) -> list[Any]:
        """All projections of a kind that are of a type, sorted by namespace and name."""
        stores = sorted(self._by_kind.get(kind, ()), key=lambda store: store.namespace)
        return [value for store in stores for value in store.values(of)]

    def each(self, kind: str, of: type) -> Iterator[Any]:
        """All projections of a kind that are of a type, in no order."""
        return (value for store in self._by_kind.get(kind, ()) for value in store.each(of))

    def version(self, key: ObjectKey) -> Version | None:
        """Which object was last seen under a name."""
        found = (store.version(key.namespace, key.name) for store in self._by_kind.get(key.kind, ()))
        return next((version for version in found if version is not None), None)

    def stale_kinds(self) -> tuple[str, ...]:
        """Kinds whose view may no longer be true."""
        return tuple(sorted({store.kind for store in self if store.stale}))

    def has_kind(self, kind: str) -> bool:
        """Whether the cluster has the kind, wherever it is watched."""
        stores = self._by_kind.get(kind, ())
        return bool(stores) and not any(store.absent for store in stores)

    def missing_kinds(self) -> tuple[str, ...]:
        """Kinds that were never listed."""
        return tuple(sorted({store.kind for store in self if not store.synced}))

    def ages(self) -> dict[str, float]:
        """Seconds since anything was heard, by kind."""
        return {kind: max(store.age() for store in stores) for kind, stores in sorted(self._by_kind.items())}

    def has_seen(self, kind: str, namespace: str, revision: str) -> bool:
        """Whether a write is in; True for kinds and namespaces that nobody watches."""
        watching = [store for store in self._by_kind.get(kind, ()) if store.namespace in ("", namespace)]
        return all(store.has_seen(revision) for store in watching)

    async def moved(self, kinds: Iterable[str]) -> None:
        """Returns once any of the stores of these kinds has heard something."""
        stores = [store for kind in kinds for store in self._by_kind.get(kind, ())]
        for store in stores:
            store.moved.clear()
        waits = [asyncio.ensure_future(store.moved.wait()) for store in stores]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def _identity(obj: Json) -> tuple[str, str]:
    metadata = obj["metadata"]
    return metadata.get("namespace", ""), metadata["name"]


def _version(obj: Json) -> Version:
    metadata = obj["metadata"]
    return Version(str(metadata.get("uid", "")), str(metadata.get("resourceVersion", "")))
