"""Keeps one store in step with the API server: list, then watch, for ever.

A watch that ends or breaks goes on from the last revision; one whose revision is compacted (410) starts from a new
list. A reflector never gives up and never raises: what it cannot read, its store says by growing stale.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from tokenservice.edge.kube import Page, WatchEvent
from tokenservice.edge.store import Items, Store
from tokenservice.errors import ApiError, Gone, NotFound, Retryable

_log = logging.getLogger(__name__)

_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 30.0

_SHORT_SECONDS = 1.0
"""A server that ends each watch as soon as it is open would be asked hundreds of times a second."""


class Source(Protocol):
    """What a reflector needs of the API server."""

    def list_pages(self, kind: str, namespace: str = "", *, selector: str = "") -> AsyncIterator[Page]: ...

    def watch(
        self, kind: str, namespace: str = "", *, revision: str, selector: str = ""
    ) -> AbstractAsyncContextManager[AsyncIterator[WatchEvent]]: ...


class Reflector:
    """Fills one store. An `optional` kind may be missing from the cluster: then there are none."""

    def __init__(
        self,
        source: Source,
        store: Store[Any],
        *,
        selector: str = "",
        optional: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._store = store
        self._selector = selector
        self._optional = optional
        self._sleep = sleep
        self._jitter = jitter
        self._clock = clock
        self._revision = ""
        self._delay = _FIRST_DELAY_SECONDS

    async def run(self) -> None:
        """Lists and watches until cancelled."""
        while True:
            try:
                if not self._revision:
                    await self._list()
                await self._watch()
            except ApiError as error:
                self._store.touch(connected=False)
                await self._recover(error)
            except Exception:  # a fault of ours that one object shows: a list leaves it out, and shows the others
                _log.exception("%s: cannot be followed, listing again (in %.1f s)", self._store.kind, self._delay)
                self._store.touch(connected=False)
                self._revision = ""
                await self._back_off()

    async def _list(self) -> None:
        items: Items[Any] = {}
        revision = ""
        async for page in self._source.list_pages(self._store.kind, self._store.namespace, selector=self._selector):
            items |= self._store.project(page.items)
            revision = page.revision
        self._store.replace(items, revision)
        self._revision = revision

    async def _watch(self) -> None:
        """Follows one watch to its orderly end. Raises Retryable for one that ended at once and said nothing."""
        opened_at, silent = self._clock(), True
        opening = self._source.watch(
            self._store.kind, self._store.namespace, revision=self._revision, selector=self._selector
        )
        async with opening as events:
            self._store.touch(connected=True)
            async for event in events:
                self._take(event)
                silent = False
                self._delay = _FIRST_DELAY_SECONDS
        if silent and self._clock() - opened_at < _SHORT_SECONDS:
            raise Retryable("the watch ended at once and said nothing")

    def _take(self, event: WatchEvent) -> None:
        revision = str(event.object["metadata"]["resourceVersion"])
        if event.type == "DELETED":
            self._store.remove(event.object)
        elif event.type == "BOOKMARK":
            self._store.bookmark(revision)
        else:
            self._store.put(event.object)
        self._revision = revision

    async def _recover(self, error: ApiError) -> None:
        if isinstance(error, Gone):
            _log.info("%s: revision %s is compacted, listing again", self._store.kind, self._revision)
            self._revision = ""
        elif isinstance(error, NotFound) and self._optional:
            self._revision = ""
            self._store.none()
        else:
            _log.warning("%s: %s (again in %.1f s)", self._store.kind, error, self._delay)
        await self._back_off()

    async def _back_off(self) -> None:
        """Doubles up to half a minute, with jitter, so that a fleet of operators does not return in step."""
        await self._sleep(self._delay * (0.5 + self._jitter() / 2))
        self._delay = min(self._delay * 2, _LONGEST_DELAY_SECONDS)
