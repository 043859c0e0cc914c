"""Puts the process together and takes it apart; the only place that constructs anything with I/O.

    reflectors -> stores -----+
                              +-> observer -> planner (decide) -> applier  -> API server
    Prometheus -> metering ---+                               -> reporter -> status, events, /metrics

Everything but planning runs in every process, so that a second one is a warm standby. Planning needs the Lease; who
loses it exits. On the way out everything stops first, then gates that are left are lifted, then the Lease is given
back, so that nothing waits for a process that is gone.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from tokenservice import collection
from tokenservice.app.bulkhead import Bulkhead
from tokenservice.app.framework import Connection, connection_info, run_kopf
from tokenservice.app.gatekeeper import Gatekeeper
from tokenservice.app.handlers import Hooks
from tokenservice.app.loop import Decide, Planner
from tokenservice.app.metering import Facts, Metering
from tokenservice.app.observe import CHILD_KINDS, Observer
from tokenservice.app.settings import Settings, identity, load
from tokenservice.catalogue import accelerator_class_objects, architectures, capacity_profile_objects
from tokenservice.core.memo import Memo
from tokenservice.core.model import Json, ObjectKey, Plan, Pod, Snapshot
from tokenservice.core.names import FIELD_MANAGER, MANAGED_BY_LABEL
from tokenservice.edge.apply import Applier
from tokenservice.edge.catalogue import apply_catalogue
from tokenservice.edge.events import Events
from tokenservice.edge.expectations import Expectations
from tokenservice.edge.kube import Kube, connect
from tokenservice.edge.lease import Lease
from tokenservice.edge.metrics import Metrics
from tokenservice.edge.projections import CHILDREN, COMPLAINTS, PROJECTIONS, Complaint
from tokenservice.edge.prometheus import PrometheusReader
from tokenservice.edge.reflector import Reflector
from tokenservice.edge.report import Reporter
from tokenservice.edge.resources import OPTIONAL_KINDS, RESOURCES
from tokenservice.edge.store import Projection, Store, Stores
from tokenservice.edge.webhook import Webhook
from tokenservice.errors import TokenServiceError

_log = logging.getLogger(__name__)

_CATALOGUE_RETRY_SECONDS = 10.0

STUCK_SECONDS = 300.0
"""A leader without a finished pass for this long is restarted by its liveness probe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Where the cluster is (None: the one this process runs in) and where the settings are (None: defaults)."""

    kubeconfig: str | None = None
    context: str | None = None
    config: str | None = None


def run(options: Options, decide: Decide | None = None) -> int:
    """Runs the operator until it is told to stop; returns the exit code."""
    try:
        asyncio.run(_main(options, decide or _core_decide()))
    except TokenServiceError as error:
        _log.error("stopping: %s", error)
        return 1
    return 0


def _core_decide() -> Decide:
    """The decision, one service's failure kept from the others."""
    decide: Callable[[Snapshot, float, Memo], Plan] = importlib.import_module("tokenservice.core.decide").decide
    return Bulkhead(decide)


async def _main(options: Options, decide: Decide) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    collection.seldom()
    settings = load(options.config)
    _set_up_logging(settings.log_level)
    metrics = Metrics()
    client = await connect(options.kubeconfig, options.context)
    kube = Kube(client, observer=metrics.observe_request)
    operator = Operator(kube, settings, metrics, decide)
    loop = asyncio.get_running_loop()
    metrics.watch("tasks", "Tasks of the event loop.", lambda: float(len(asyncio.all_tasks(loop))))
    hooks = operator.hooks(loop, client.configuration)
    try:
        async with AsyncExitStack() as stack:
            stack.callback(metrics.serve(settings.metrics.port, settings.listen_address))
            stack.push_async_callback(operator.leave)
            await _until(
                stop,
                *operator.tasks(),
                run_kopf(
                    hooks,
                    identity=operator.lease.identity,
                    namespaces=settings.watch_namespaces,
                    health_address=settings.listen_address,
                    health_port=settings.health.port,
                ),
            )
    finally:
        await kube.close()


def _set_up_logging(level: str) -> None:
    """One line a record. kopf speaks of every event at INFO; what it has to say is said at WARNING."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("kopf", "aiohttp.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it warns that signals are not its own
    logging.getLogger("kopf.objects").addFilter(_brief)


def _brief(record: logging.LogRecord) -> bool:
    """kopf copies objects; one that is nested too deep for that has thousands of lines of traceback at each change."""
    if record.exc_info and isinstance(record.exc_info[1], RecursionError):
        record.exc_info = None
    return True


async def _until(stop: asyncio.Event, *work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` until `stop`, or until one of them fails, whose error is raised; ends the others either way."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    waiter = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiter}:
            task.result()
    finally:
        for task in (waiter, *tasks):
            task.cancel()
        await asyncio.gather(waiter, *tasks, return_exceptions=True)


class Operator:
    """All parts of one process."""

    def __init__(self, kube: Kube, settings: Settings, metrics: Metrics, decide: Decide) -> None:
        self._kube = kube
        self._settings = settings
        self._metrics = metrics
        self.stores, self._reflectors = _views(kube, settings, self._mark_dirty)
        complaints, hearing = _view(kube, settings, "Event", COMPLAINTS, self._mark_dirty)
        self._reflectors += hearing
        lease_key = ObjectKey("Lease", settings.lease.namespace, settings.lease.name)
        self.lease = Lease(kube, lease_key, identity(), plans=self._plans)
        self._applier = Applier(kube, self.lease, self.stores, again=self._mark_dirty)
        self._gatekeeper = Gatekeeper(pods=self._pods, lifts=self._applier)
        reporter = Reporter(kube, Events(kube, self.lease.identity), self.lease, self.stores, again=self._mark_dirty)
        self._metering = Metering(
            PrometheusReader(
                bearer_token_file=settings.prometheus.token_file or None,
                timeout_seconds=settings.prometheus.timeout_seconds,
            ),
            default_address=settings.prometheus.address or None,
            interval_seconds=settings.plan_interval_seconds,
        )
        self._observer = Observer(
            stores=self.stores,
            metering=self._metering,
            settings=settings.core,
            architectures=architectures(),
            status_written_at=reporter.status_written_at,
            complaints=lambda: [found for store in complaints for found in store.values(Complaint)],
        )
        self.planner = Planner(
            observes=self._observer,
            decide=decide,
            applies=self._applier,
            reports=reporter,
            expects=Expectations(self.stores),
            measures=metrics,
            interval_seconds=settings.plan_interval_seconds,
        )
        self._webhook = self._make_webhook()
        self._leading_since: float | None = None
        self._watch_metrics()

    def tasks(self) -> Iterable[Coroutine[Any, Any, None]]:
        """What runs for as long as the process does."""
        yield from (reflector.run() for reflector in self._reflectors)
        yield self._gatekeeper.run()
        yield self._lead()
        if self._webhook is not None:
            yield self._webhook.run()

    def hooks(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> Hooks:
        """What kopf, in its own thread, may reach."""
        return Hooks(
            mark_dirty=lambda: _from_thread(loop, self._mark_dirty),
            connection=lambda: connection_info(connection),
            state=self._state,
            stuck=self._stuck,
        )

    async def leave(self) -> None:
        """After everything has stopped: nothing may wait for this process."""
        if self.lease.held():
            await self._gatekeeper.lift()
        await self.lease.release()

    async def _lead(self) -> None:
        """Waits for the Lease, then plans for as long as it is held."""
        await self.lease.acquire()
        self._leading_since = time.monotonic()
        await _until(asyncio.Event(), self.lease.hold(), self._plan())

    async def _plan(self) -> None:
        """The catalogue comes first, or the first plan would call every service unknown."""
        objects = [*accelerator_class_objects(), *capacity_profile_objects()] if self._settings.catalogue else []
        left = await apply_catalogue(self._kube, objects, self.lease)
        if self._webhook is not None:
            await self._webhook.maintain()
        await _until(
            asyncio.Event(),
            self.planner.run(),
            self._metering.run(self._asked, self.planner.tick),
            self._publish(left),
        )

    async def _publish(self, left: list[Json]) -> None:
        """Tries the rest of the catalogue for ever; CRDs may be younger than this process."""
        while True:
            await asyncio.sleep(_CATALOGUE_RETRY_SECONDS)
            left = await apply_catalogue(self._kube, left, self.lease)

    def _asked(self) -> Facts | None:
        return (self._observer.services(), self._observer.policy()) if self.stores.synced else None

    def _make_webhook(self) -> Webhook | None:
        chosen = self._settings.webhook
        if not chosen.enabled:
            return None
        return Webhook(
            api=self._kube,
            configuration=ObjectKey("MutatingWebhookConfiguration", "", chosen.configuration),
            hosts=[chosen.server_name],
            address=self._settings.listen_address,
            port=chosen.port,
            active=self.lease.planned,
            count=self._metrics.count_review,
        )

    def _pods(self) -> list[Pod]:
        return [pod for pod in self.stores.values("Pod", Pod) if pod.service is not None]

    def _plans(self) -> bool:
        """Whether pods may be held back for the planner: who does not see them lets none go."""
        return self.planner.healthy and "Pod" not in self.stores.stale_kinds()

    def _mark_dirty(self) -> None:
        self.planner.mark_dirty()

    def _state(self) -> dict[str, Any]:
        return {"leading": self.lease.held(), "planning": self.planner.healthy, "unlisted": self.stores.missing_kinds()}

    def _stuck(self) -> str | None:
        since = max(self.planner.passed_at, self._leading_since or float("inf"))
        quiet = time.monotonic() - since
        return f"no pass was finished for {quiet:.0f} s" if quiet > STUCK_SECONDS else None

    def _watch_metrics(self) -> None:
        watch, watch_all = self._metrics.watch, self._metrics.watch_all
        watch("lease_held", "Whether this process leads.", lambda: float(self.lease.held()))
        watch("planning_healthy", "Whether passes succeed.", lambda: float(self.planner.healthy))
        watch_all("store_age_seconds", "Seconds since a kind was heard of.", "kind", self.stores.ages)


def _from_thread(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)


def _views(kube: Kube, settings: Settings, wake: Callable[[], None]) -> tuple[Stores, list[Reflector]]:
    """A store and a reflector for every kind and namespace."""
    stores, reflectors = list[Store[Any]](), list[Reflector]()
    unused = {kind for kind, used in settings.optional_kinds.items() if not used}
    for kind in [*PROJECTIONS, *(kind for kind in CHILD_KINDS if kind not in unused)]:
        found, following = _view(kube, settings, kind, PROJECTIONS.get(kind, CHILDREN), wake)
        stores += found
        reflectors += following
    return Stores(stores), reflectors


def _view(
    kube: Kube, settings: Settings, kind: str, projection: Projection[Any], wake: Callable[[], None]
) -> tuple[list[Store[Any]], list[Reflector]]:
    """Those of one kind."""
    namespaces = settings.watch_namespaces if RESOURCES[kind].namespaced and settings.watch_namespaces else ("",)
    stores = [Store[Any](kind, projection, namespace=namespace, wake=wake) for namespace in namespaces]
    selector = f"{MANAGED_BY_LABEL}={FIELD_MANAGER}" if projection is CHILDREN else ""
    optional = kind in OPTIONAL_KINDS
    return stores, [Reflector(kube, store, selector=selector, optional=optional) for store in stores]
