"""Writes of ours that the stores have not shown us yet.

A plan made from a view that lacks our own last writes would repeat them, or count a replica twice. So the next plan
waits for them, two seconds at most; what is still unseen then makes its kind stale, so that nothing is taken away,
until it is seen or ten seconds have passed (a write that another overtook at once may never be seen as such).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from tokenservice.core.model import ObjectKey

WAIT_SECONDS = 2.0
FORGET_SECONDS = 10.0


class View(Protocol):
    """What the stores know."""

    def has_seen(self, kind: str, namespace: str, revision: str) -> bool: ...

    async def moved(self, kinds: Iterable[str]) -> None: ...


class Expectations:
    """In-flight writes."""

    def __init__(self, view: View, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._view = view
        self._clock = clock
        self._expected: dict[ObjectKey, tuple[str, float]] = {}

    def add(self, written: Iterable[tuple[ObjectKey, str]]) -> None:
        """Notes objects that were written, with the resourceVersion of the answer."""
        forget_at = self._clock() + FORGET_SECONDS
        self._expected.update((key, (revision, forget_at)) for key, revision in written)

    def unseen_kinds(self) -> tuple[str, ...]:
        """Kinds whose store still lacks a write of ours."""
        now = self._clock()
        self._expected = {
            key: (revision, forget_at)
            for key, (revision, forget_at) in self._expected.items()
            if now < forget_at and not self._view.has_seen(key.kind, key.namespace, revision)
        }
        return tuple(sorted({key.kind for key in self._expected}))

    async def settle(self) -> tuple[str, ...]:
        """Waits for the stores, and returns the kinds that still lag."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while kinds := self.unseen_kinds():
                    await self._view.moved(kinds)
        except TimeoutError:
            return self.unseen_kinds()
        return ()
