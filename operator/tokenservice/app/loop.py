"""The planning task: observe -> decide -> apply -> report, one pass at a time.

A pass begins a second after something changed (so that a burst is one pass), at once when metrics were read, and in
any case when neither has happened for three intervals. Errors of a pass are logged, counted and followed by a pause
that doubles with jitter; the next pass starts from what is then there. So does the rest that a single action gets when
the API server did not carry it out but may later.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from tokenservice.core.learning import learn
from tokenservice.core.model import (
    Action,
    Apply,
    Event,
    ObjectKey,
    Plan,
    Problem,
    Reason,
    ServiceKey,
    Snapshot,
)
from tokenservice.core.refinement import Refinement
from tokenservice.core.refusal import refusal, remembered, taken
from tokenservice.edge.apply import Outcome, Report, Result
from tokenservice.edge.projections import Unreadable

_log = logging.getLogger(__name__)

DEBOUNCE_SECONDS = 1.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
_HEALTHY_INTERVALS = 6

T = TypeVar("T")

Decide = Callable[[Snapshot, float], Plan]
Written = Iterable[tuple[ObjectKey, str]]


class Observes(Protocol):
    """Gives the facts."""

    def snapshot(self, lagging: Iterable[str], previous: Plan) -> Snapshot | None: ...

    def unreadable(self) -> list[Unreadable]: ...


class Applies(Protocol):
    """Carries actions out."""

    async def apply(self, actions: Sequence[Action]) -> Report: ...


class Reports(Protocol):
    """Writes statuses and events."""

    async def report(self, plan: Plan) -> tuple[tuple[ObjectKey, str], ...]: ...


class Expects(Protocol):
    """Knows which of our writes the stores have not shown yet."""

    def add(self, written: Written) -> None: ...

    async def settle(self) -> tuple[str, ...]: ...


class Measures(Protocol):
    """Takes what a pass is measured by."""

    def time(self, stage: str, seconds: float) -> None: ...

    def count_action(self, reason: str, result: str) -> None: ...

    def count_error(self, error: str) -> None: ...

    def show(self, plan: Plan) -> None: ...


@dataclass(frozen=True, slots=True)
class _Rest:
    """How long an action rests after it failed, and until when by the clock."""

    seconds: float
    until: float


@dataclass(kw_only=True)
class Planner:
    """Runs passes while this process leads."""

    observes: Observes
    decide: Decide
    applies: Applies
    reports: Reports
    expects: Expects
    measures: Measures
    interval_seconds: float
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    jitter: Callable[[], float] = random.random
    plan: Plan = field(default_factory=Plan)
    passed_at: float = float("-inf")
    _dirty: asyncio.Event = field(default_factory=asyncio.Event)
    _due: asyncio.Event = field(default_factory=asyncio.Event)
    _failing: set[tuple[str, str]] = field(default_factory=set)
    _rest_of: dict[str, _Rest] = field(default_factory=dict)
    _pause: float = 0.0
    _refinements: Mapping[str, Refinement] = field(default_factory=dict)
    _refusals: Mapping[ServiceKey, Problem] | None = None
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "decide"))

    def mark_dirty(self) -> None:
        """Something changed: a pass follows within a second."""
        self._dirty.set()

    def tick(self) -> None:
        """Metrics are fresh: a pass follows at once."""
        self._due.set()

    @property
    def healthy(self) -> bool:
        """Whether passes succeed; nobody should wait for us when they do not."""
        return self.clock() - self.passed_at < max(10.0, _HEALTHY_INTERVALS * self.interval_seconds)

    async def run(self) -> None:
        """Passes, for ever."""
        while True:
            await self._wait()
            try:
                await self.turn()
            except Exception as error:  # the queue's own: whatever went wrong, the next pass starts afresh
                _log.exception("the pass failed")
                self.measures.count_error(type(error).__name__)
                self._slow_down(0.0)
            await self.sleep(self._pause * (0.5 + self.jitter() / 2))

    async def turn(self) -> None:
        """One pass."""
        lagging = await self.expects.settle()
        snapshot = self.observes.snapshot(lagging, self.plan)
        if snapshot is None:
            _log.info("waiting for the first list of every kind, and for the first metrics")
            return
        refusals = remembered(snapshot.services) if self._refusals is None else self._refusals
        self.plan = await self._decide(replace(snapshot, refusals=refusals))
        report = await self._apply(self.plan)
        self._refusals = _refusals(report)
        known = self._refinements
        learned = self._beside("learning", lambda: learn(known, snapshot, self.wall_clock()))
        self._refinements, taught = learned or (known, ())
        done = _of_what_was_done(self.plan.events, report)
        told = (*done, *_complaints(report, snapshot), *_unreadable(self.observes.unreadable()))
        self.expects.add(
            await self._timed(
                "report", self.reports.report(replace(self.plan, events=told, statuses=(*self.plan.statuses, *taught)))
            )
        )
        self._beside("exporting figures", lambda: self.measures.show(self.plan))
        self.passed_at = self.clock()
        self._settle_pace(report)

    async def _decide(self, snapshot: Snapshot) -> Plan:
        """In a thread: a large fleet takes a quarter of a second, and webhook and Lease must not wait for it.

        Always in the same: each thread has a heap of its own, and what one decision makes another, of a later
        decision, lets go. In the threads of a pool all heaps grow as large as one would.
        """
        work = asyncio.get_running_loop().run_in_executor(self._thread, self.decide, snapshot, self.wall_clock())
        return await self._timed("decide", work)

    async def _apply(self, plan: Plan) -> Report:
        """What rests is left out: who cannot be written for now, as where a webhook fails, slows no other down."""
        now = self.clock()
        rests = {id_ for id_, rest in self._rest_of.items() if now < rest.until}
        report = await self._timed("apply", self.applies.apply([a for a in plan.actions if a.id not in rests]))
        self.expects.add(report.written)
        for outcome in report.outcomes:
            self.measures.count_action(str(outcome.action.reason), str(outcome.result))
        resting = [action for action in plan.actions if action.id in rests]
        self._let_rest(report, resting)
        self._log(report)
        left = (Outcome(action=action, result=Result.SKIPPED, message="rests after it failed") for action in resting)
        return Report((*report.outcomes, *left))

    def _beside(self, what: str, work: Callable[[], T]) -> T | None:
        """Does what no decision of this pass rests on; where that fails, by a fault of ours, the pass goes on."""
        try:
            return work()
        except Exception as error:
            _log.exception("%s failed", what)
            self.measures.count_error(type(error).__name__)
            return None

    def _let_rest(self, report: Report, resting: Sequence[Action]) -> None:
        """What failed and may succeed later is tried less and less often, each action at its own pace."""
        before, now = self._rest_of, self.clock()
        self._rest_of = {action.id: before[action.id] for action in resting}
        for outcome in report.outcomes:
            if outcome.result is Result.RETRYABLE:
                known = before.get(outcome.action.id)
                seconds = _doubled(known.seconds if known else 0.0)
                self._rest_of[outcome.action.id] = _Rest(seconds, now + seconds * (0.5 + self.jitter() / 2))

    def _log(self, report: Report) -> None:
        """One line an action; what fails the same way in pass after pass is said once."""
        failing = {(outcome.action.id, outcome.message) for outcome in report.failures}
        failing |= {(id_, message) for id_, message in self._failing if id_ in self._rest_of}
        for outcome in report.outcomes:
            known = (outcome.action.id, outcome.message) in self._failing
            level = logging.DEBUG if known else _LEVELS.get(outcome.result, logging.DEBUG)
            action, why = outcome.action, f" ({outcome.message})" if outcome.message else ""
            _log.log(level, "%s %s %s: %s%s", outcome.result, action.reason, action.id, action.message, why)
        self._failing = failing

    async def _timed(self, stage: str, work: Awaitable[T]) -> T:
        began = self.clock()
        try:
            return await work
        finally:
            self.measures.time(stage, self.clock() - began)

    async def _wait(self) -> None:
        """Returns when a pass is due."""
        dirty, due = (asyncio.ensure_future(event.wait()) for event in (self._dirty, self._due))
        try:
            timeout = 3 * self.interval_seconds
            await asyncio.wait((dirty, due), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not self._due.is_set() and self._dirty.is_set():
                await asyncio.wait((due,), timeout=DEBOUNCE_SECONDS)
        finally:
            dirty.cancel()
            due.cancel()
        self._dirty.clear()
        self._due.clear()

    def _settle_pace(self, report: Report) -> None:
        """An API server that asks for rest gets it."""
        if report.retry_after:
            self._slow_down(report.retry_after)
        else:
            self._pause = 0.0

    def _slow_down(self, at_least: float) -> None:
        self._pause = _doubled(max(self._pause, at_least))


def _doubled(seconds: float) -> float:
    return min(max(FIRST_PAUSE_SECONDS, 2 * seconds), LONGEST_PAUSE_SECONDS)


_LEVELS = {
    Result.DONE: logging.INFO,
    Result.TAKEN: logging.WARNING,
    Result.FAILED: logging.ERROR,
    Result.RETRYABLE: logging.WARNING,
}


def _refusals(report: Report) -> dict[ServiceKey, Problem]:
    """Children that cannot be as they should, the first of each service: for the next plan to tell."""
    found: dict[ServiceKey, Problem] = {}
    for outcome in report.outcomes:
        action, tells = outcome.action, {Result.TAKEN: taken, Result.FAILED: refusal}.get(outcome.result)
        if isinstance(action, Apply) and action.service is not None and tells is not None:
            what = f"{action.manifest['kind']} {action.manifest['metadata']['name']}"
            found.setdefault(action.service, tells(what, outcome.message))
    return found


def _of_what_was_done(events: Iterable[Event], report: Report) -> Iterable[Event]:
    """Without those of actions that were not: the next plan tells them when it does them."""
    left = {
        (ObjectKey("TokenService", *action.service), action.reason, action.message)
        for outcome in report.outcomes
        if (action := outcome.action).service is not None and outcome.result is not Result.DONE
    }
    return [event for event in events if (event.regarding, event.reason, event.message) not in left]


def _complaints(report: Report, snapshot: Snapshot) -> Iterable[Event]:
    """What was refused for good, told to whom it concerns; an API server in trouble is nobody's in particular."""
    uids = {service.key: service.uid for service in snapshot.services}
    for outcome in report.failures:
        service = outcome.action.service
        if outcome.result is Result.FAILED and service in uids and service is not None:
            yield Event(
                regarding=ObjectKey("TokenService", *service),
                uid=uids[service],
                type="Warning",
                reason=outcome.action.reason,
                message=f"not done: {outcome.action.message}: {outcome.message}",
            )


def _unreadable(objects: Iterable[Unreadable]) -> Iterable[Event]:
    for found in objects:
        message = f"{found.error}: {found.meanwhile} until this is mended"
        yield Event(regarding=found.key, uid=found.uid, type="Warning", reason=Reason.INVALID_SPEC, message=message)
