"""A service that makes the decision fail is set aside, and the others are decided on without it.

`decide` is total by intent; where it raises after all, it is a fault of ours that shows on one service, and without
this nobody would be scaled for as long as that service is as it is. It is found by halves, so a fleet of a thousand
costs ten decisions, once. Set aside it is what one with a spec that cannot be read is: nothing of it is changed, what
its replicas hold stays theirs, and `Stalled` says why. It is tried again when its spec changes and after a while, for
what failed may have been a pod of its, or a figure.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from tokenservice.core.memo import Memo
from tokenservice.core.model import Plan, Service, Snapshot

_log = logging.getLogger(__name__)

AGAIN_SECONDS = 600.0
AT_ONCE = 8
"""Services that one pass sets aside at most. Where more fail it is hardly the services: the pass fails, and is told."""


@dataclass(frozen=True, slots=True)
class _Aside:
    """What the decision about a service failed with, of which version of it, and when it is tried again."""

    generation: int
    words: str
    until: float


@dataclass(slots=True)
class Bulkhead:
    """The decision, for one process that plans one fleet, one pass at a time."""

    decide: Callable[[Snapshot, float, Memo], Plan]
    _memo: Memo = field(default_factory=Memo)
    _aside: dict[str, _Aside] = field(default_factory=dict)

    def __call__(self, snapshot: Snapshot, now: float) -> Plan:
        """The plan for all that can be decided on; raises what `decide` raises where no service is to blame."""
        here = {service.uid: service.generation for service in snapshot.services}
        self._aside = {
            uid: aside for uid, aside in self._aside.items() if here.get(uid) == aside.generation and now < aside.until
        }
        left = AT_ONCE
        while True:
            known = self._without(snapshot, ())
            try:
                return self.decide(known, now, self._memo)
            except Exception as error:
                self._memo = Memo()  # what a decision that broke off left in it, or found there, is worth nothing
                culprit = self._culprit(known, now) if left else None
                if culprit is None:
                    raise
                _log.exception("the decision failed for %s, which is set aside", culprit.key)
                words = f"{type(error).__name__}: {error}"
                self._aside[culprit.uid] = _Aside(culprit.generation, words, now + AGAIN_SECONDS)
                left -= 1

    def _without(self, snapshot: Snapshot, others: Iterable[Service]) -> Snapshot:
        """The same with these, and those set aside, held as they are, whatever their figures say."""
        words = {service.uid: "" for service in others} | {uid: aside.words for uid, aside in self._aside.items()}
        if not words:
            return snapshot
        keys = {service.key for service in snapshot.services if service.uid in words}
        return replace(
            snapshot,
            services=tuple(_held(snapshot.services, words)),
            metrics={key: found for key, found in snapshot.metrics.items() if key not in keys},
            hindsights={key: found for key, found in snapshot.hindsights.items() if key not in keys},
        )

    def _culprit(self, snapshot: Snapshot, now: float) -> Service | None:
        """The service without which, and without those before it, a decision can be taken; None where there is none.

        There is none either where it can be taken with all of them: then it was what the memo held.
        """
        able = [service for service in snapshot.services if service.spec is not None]
        if not self._raises(snapshot, now) or self._raises(self._without(snapshot, able), now):
            return None
        fails, succeeds = 0, len(able)
        while succeeds - fails > 1:
            middle = (fails + succeeds) // 2
            if self._raises(self._without(snapshot, able[:middle]), now):
                fails = middle
            else:
                succeeds = middle
        return able[fails]

    def _raises(self, snapshot: Snapshot, now: float) -> bool:
        try:
            self.decide(snapshot, now, Memo())
        except Exception:  # the one that is asked about; it is logged by who asks
            return True
        return False


def _held(services: Iterable[Service], words: dict[str, str]) -> Iterator[Service]:
    for service in services:
        held = service.uid in words and service.spec is not None
        yield replace(service, spec=None, error=words[service.uid], undecided=True) if held else service
