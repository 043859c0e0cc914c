"""One leader, by a Lease of coordination.k8s.io.

The times are client-go's: others may take over 15 s after the last renewal they saw, the holder renews every 2 s and
counts itself out after 10 s without success, so it stops before anyone else starts. Both sides measure with their own
monotonic clock; times written by others are never compared with ours. `held()` is asked before every write. A process
that was frozen between that question and its write is stopped by the preconditions of the write itself.

The holder also says in the Lease whether its passes succeed, so that every process knows whether someone plans.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from tokenservice.core.model import Json, ObjectKey
from tokenservice.edge.kube import Patch
from tokenservice.errors import ApiError, Conflict, LeaseLost, NotFound

_log = logging.getLogger(__name__)

PLANNING_ANNOTATION = "taas.dev/planning"


class LeaseApi(Protocol):
    """What leadership needs of the API server."""

    async def get(self, key: ObjectKey) -> Json: ...

    async def create(self, kind: str, body: Json) -> Json: ...

    async def patch(self, key: ObjectKey, body: Json | list[Json], how: Patch, subresource: str = "") -> Json: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How long a Lease lasts, how long its holder trusts it, how often it is renewed; seconds."""

    duration: float = 15.0
    trust: float = 10.0
    retry: float = 2.0


@dataclass(frozen=True, slots=True)
class _Seen:
    """The last record seen, and when it was first seen by our own clock.

    `renewed` says that another came before it: the very first may have been there for days.
    """

    record: tuple[object, ...]
    at: float
    renewed: bool = False
    plans: bool = False


class Lease:
    """Leadership of one process. `plans` says whether its passes succeed."""

    def __init__(
        self,
        api: LeaseApi,
        key: ObjectKey,
        identity: str,
        *,
        plans: Callable[[], bool] = lambda: True,
        terms: Terms | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.key = key
        self.identity = identity
        self.terms = terms or Terms()
        self._api = api
        self._plans = plans
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._jitter = jitter
        self._valid_until = float("-inf")
        self._seen = _Seen((), float("-inf"))
        self._own: Json | None = None

    def held(self) -> bool:
        """Whether this process may write now."""
        return self._clock() < self._valid_until

    def planned(self) -> bool:
        """Whether someone leads, here or elsewhere, whose passes succeed: heard of within three renewals."""
        if self.held():
            return self._plans()
        fresh = self._seen.renewed and self._clock() - self._seen.at < 3 * self.terms.retry
        return fresh and self._taken and self._seen.plans

    async def acquire(self) -> None:
        """Waits until this process leads."""
        while not await self._try():
            await self._sleep(self.terms.retry * (1 + self._jitter() / 5))
        _log.info("leading as %s", self.identity)

    async def hold(self) -> None:
        """Renews for ever. Raises LeaseLost once leadership is gone or cannot be renewed in time."""
        while True:
            await self._sleep(self.terms.retry)
            renewed = await self._try()
            if self._taken or not (renewed or self.held()):
                self._valid_until = float("-inf")
                why = f"{self._holder} does" if self._taken else "the Lease was not renewed in time"
                raise LeaseLost(f"{self.identity} leads no more: {why}")

    async def release(self) -> None:
        """Lets the next process lead at once, on a clean exit."""
        if not self.held():
            return
        self._valid_until = float("-inf")
        try:
            lease = await self._api.get(self.key)
            if (lease.get("spec") or {}).get("holderIdentity") == self.identity:  # it may have been taken meanwhile
                await self._write(lease, holder="", duration=1)
        except ApiError as error:
            _log.warning("the Lease was not released, others wait %.0f s: %s", self.terms.duration, error)

    @property
    def _holder(self) -> object:
        return self._seen.record[0] if self._seen.record else None

    @property
    def _taken(self) -> bool:
        return self._holder not in (self.identity, None, "")

    async def _try(self) -> bool:
        """One attempt to take or renew; validity counts from before the request was sent."""
        began = self._clock()
        try:
            async with asyncio.timeout(self.terms.trust / 2):
                won = await self._take(began)
        except (ApiError, TimeoutError) as error:
            _log.warning("Lease %s/%s: %s", self.key.namespace, self.key.name, str(error) or "no answer in time")
            return False
        if won:
            self._valid_until = began + self.terms.trust
        return won

    async def _take(self, now: float) -> bool:
        if self._own is not None and await self._renew(self._own, now):
            return True
        try:
            lease = await self._api.get(self.key)
        except NotFound:
            return await self._create(now)
        self._look(lease, now)
        if self._taken and now < self._seen.at + _duration(lease, self.terms.duration):
            return False
        return await self._renew(lease, now)

    async def _renew(self, lease: Json, now: float) -> bool:
        """Writes over exactly what was read, or what we wrote last: nobody else has written since, or it conflicts."""
        self._own = None
        try:
            self._own = await self._write(lease, holder=self.identity, duration=round(self.terms.duration))
        except (Conflict, NotFound):
            return False
        self._look(self._own, now)
        return True

    async def _create(self, now: float) -> bool:
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "namespace": self.key.namespace,
                "name": self.key.name,
                "annotations": self._annotations(self.identity),
            },
            "spec": self._spec(self.identity, round(self.terms.duration), taken=True, transitions=0),
        }
        try:
            self._own = await self._api.create("Lease", body)
        except Conflict:
            return False
        self._look(self._own, now)
        return True

    async def _write(self, lease: Json, *, holder: str, duration: int) -> Json:
        """Writes on exactly the revision that was read."""
        spec = lease.get("spec") or {}
        taken = holder not in ("", spec.get("holderIdentity"))
        transitions = int(spec.get("leaseTransitions") or 0) + taken
        patch = {
            "metadata": {
                "resourceVersion": lease["metadata"]["resourceVersion"],
                "uid": lease["metadata"]["uid"],
                "annotations": self._annotations(holder),
            },
            "spec": self._spec(holder, duration, taken=taken, transitions=transitions),
        }
        return await self._api.patch(self.key, patch, Patch.MERGE)

    def _annotations(self, holder: str) -> dict[str, str]:
        return {PLANNING_ANNOTATION: "true" if holder and self._plans() else "false"}

    def _spec(self, holder: str, duration: int, *, taken: bool, transitions: int) -> Json:
        now = self._wall_clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: Json = {"holderIdentity": holder, "leaseDurationSeconds": duration, "renewTime": now}
        return spec | ({"acquireTime": now, "leaseTransitions": transitions} if taken else {})

    def _look(self, lease: Json, now: float) -> None:
        """Remembers since when the record has been as it is."""
        spec = lease.get("spec") or {}
        record = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if record != self._seen.record:
            plans = (lease["metadata"].get("annotations") or {}).get(PLANNING_ANNOTATION) == "true"
            self._seen = _Seen(record, now, renewed=bool(self._seen.record), plans=plans)


def _duration(lease: Json, default: float) -> float:
    return float((lease.get("spec") or {}).get("leaseDurationSeconds") or default)
