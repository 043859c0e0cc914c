"""The operator in this process: its own code in a thread, killed and started again in a second.

A kill is one: all tasks are cancelled, the Lease is kept, no gate is lifted, and the door has let nothing through from
the moment the test chose. What is left out is kopf, which marks the fleet dirty and answers the probe; the watches that
decisions rest on are the operator's own. `process.py` runs all of it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from e2e.faults.process import terms
from tokenservice.app import loop, runtime
from tokenservice.app.loop import Decide
from tokenservice.app.runtime import Operator
from tokenservice.app.settings import Settings
from tokenservice.core.model import Delete, Plan, Reason, ServiceMetrics, Snapshot
from tokenservice.edge.kube import Kube, connect
from tokenservice.edge.metrics import Metrics

FACTOR = 10.0
"""How much shorter than the defaults the operator's own intervals are here."""

PLAN_INTERVAL_SECONDS = 0.5


@dataclass(slots=True)
class Log:
    """What the operator has logged in this process."""

    records: list[logging.LogRecord] = field(default_factory=list)

    def errors(self) -> list[str]:
        """Tracebacks, and lines at ERROR."""
        return [_shown(record) for record in self.records if record.exc_info or record.levelno >= logging.ERROR]


@contextmanager
def logged() -> Iterator[Log]:
    """Everything that the operator logs meanwhile."""
    log = Log()
    handler = logging.Handler(logging.INFO)
    handler.emit = log.records.append  # type: ignore[method-assign,assignment]
    for name in ("tokenservice", "asyncio"):
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("tokenservice").setLevel(logging.INFO)
    try:
        yield log
    finally:
        for name in ("tokenservice", "asyncio"):
            logging.getLogger(name).removeHandler(handler)


class Instance:
    """One life of the operator. `plans` are all that it decided, oldest first, with when and on what."""

    def __init__(
        self,
        kubeconfig: str,
        settings: Settings,
        *,
        decide: Decide | None = None,
        lease_seconds: float | None = None,
    ) -> None:
        self._lease_seconds = lease_seconds
        self.plans: list[tuple[float, Snapshot, Plan]] = []
        self.error: BaseException | None = None
        self._decide = decide or runtime._core_decide()
        self._kubeconfig, self._settings = kubeconfig, settings
        self._loop: asyncio.AbstractEventLoop | None = None
        self._operator: Operator | None = None
        self._task: asyncio.Task[None] | None = None
        self._says_goodbye = False
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)
        self._thread.start()

    @property
    def leads(self) -> bool:
        operator = self._operator
        return operator is not None and operator.lease.held() and operator.planner.healthy

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def idle_since(self, moment: float, passes: int = 2) -> bool:
        """Whether the last passes since then found nothing to do and nothing to write."""
        recent = [plan for at, _, plan in self.plans[-passes:] if at > moment]
        return len(recent) == passes and not any(plan.actions or plan.statuses for plan in recent)

    @property
    def informed(self) -> bool:
        """Whether the last decision knew of every service what is asked of it, the recent peak included."""
        if not self.plans:
            return False
        _, snapshot, _ = self.plans[-1]
        known = (m for m in snapshot.metrics.values() if isinstance(m, ServiceMetrics))
        peaks = [metrics.peak_requests_per_second for metrics in known]
        return len(peaks) == len(snapshot.services) and all(peak < math.inf for peak in peaks)

    def kill(self) -> None:
        """No goodbye. The door must have been shut before, or what is under way may still arrive."""
        self._end(says_goodbye=False)

    def stop(self) -> None:
        """As the kubelet would."""
        self._end(says_goodbye=True)

    def _end(self, *, says_goodbye: bool) -> None:
        self._says_goodbye = says_goodbye
        if self._loop is not None and self._task is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(20)
        assert not self._thread.is_alive(), f"the operator does not end:\n{_where(self._thread)}"

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except asyncio.CancelledError:
            return
        except BaseException as error:  # the operator ended by itself: said by the test that looks
            self.error = error

    async def _main(self) -> None:
        metrics = Metrics()
        kube = Kube(await connect(self._kubeconfig), observer=metrics.observe_request)
        self._operator = Operator(kube, self._settings, metrics, self._recorded)
        if self._lease_seconds is not None:
            self._operator.lease.terms = terms(self._lease_seconds)
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            await runtime._until(asyncio.Event(), *self._operator.tasks())
        finally:
            if self._says_goodbye:
                await self._operator.leave()
            await kube.close()

    def _recorded(self, snapshot: Snapshot, now: float) -> Plan:
        plan = self._decide(snapshot, now)
        self.plans.append((time.monotonic(), snapshot, plan))
        return plan


def removed_on_stale_views(life: Instance) -> list[str]:
    """What was to be removed by plans that knew that a view of theirs was old."""
    return [
        f"{action.message}, while {', '.join(snapshot.stale_kinds)} were stale"
        for _, snapshot, plan in life.plans
        for action in plan.actions
        if snapshot.stale_kinds and (isinstance(action, Delete) or action.reason is Reason.SCALED_DOWN)
    ]


@contextmanager
def quick() -> Iterator[None]:
    """Passes follow changes in a tenth of the usual time."""
    before = loop.DEBOUNCE_SECONDS
    loop.DEBOUNCE_SECONDS = before / FACTOR
    try:
        yield
    finally:
        loop.DEBOUNCE_SECONDS = before


def _shown(record: logging.LogRecord) -> str:
    trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
    return f"{record.levelname} {record.name}: {record.getMessage()}\n{trace}".strip()


def _where(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    return "".join(traceback.format_stack(frame)) if frame else ""
