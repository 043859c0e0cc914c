"""Carries a plan's actions out.

Actions run as soon as those they come after have succeeded, 32 at a time, those that stand first in the plan before
others. Pods for which no node has room are let go when all that are to have one were: the scheduler would give them
what was meant for others. Before every write the fence is asked whether this process still leads; every write carries
what it expects to find. Each action is safe to repeat, so a crash at any point needs no cleaning up, and nothing is
retried in here: a conflict or a vanished object ends the action quietly, the next plan is made from what is then there.
What stays in the way until somebody acts is no conflict but an outcome of its own, and told. What can wait is left to
the next plan where this one takes long: when a thousand services come, pods of the first would wait for what nobody
needs of the last.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from graphlib import TopologicalSorter
from heapq import heappop, heappush
from typing import Protocol

from tokenservice.core.model import (
    Action,
    Apply,
    Delete,
    Json,
    ObjectKey,
    Place,
    ServiceKey,
    SetDeletionCost,
    SetServing,
)
from tokenservice.core.names import (
    DELETION_COST_ANNOTATION,
    FIELD_MANAGER,
    MANAGED_BY_LABEL,
    PLACEMENT_GATE,
    SERVING_CONDITION,
)
from tokenservice.edge.kube import Page, Patch, key_of
from tokenservice.edge.projections import belongs_to, is_sibling
from tokenservice.edge.store import Version
from tokenservice.errors import ApiError, Conflict, NotFound, Retryable, Taken

_log = logging.getLogger(__name__)

PARALLEL_WRITES = 32
"""An API server with much to do answers each of us as often as we ask: with eight, the controllers that follow the
first of a thousand services hold up the last. Its priority and fairness keep us from holding up others."""

PATIENCE_SECONDS = 8.0

LATE_SECONDS = 10.0
"""For so long a plan waits for the answer to one write. A webhook of one namespace that answers late, if ever, would
else hold up what is decided for all."""

MANY_OWNERS = 8
"""From so many of a namespace on, owners are listed instead of asked for one by one."""

_ALL_PLACED = ""
"""Stands in the order of a plan for all its pods that are given a node; no action has this id."""

_NEVER = "1"
"""A revision that no object ever has: an apply that carries it creates, and conflicts with whatever is there."""


class Writer(Protocol):
    """What carrying out needs of the API server."""

    async def get(self, key: ObjectKey) -> Json: ...

    async def find(self, key: ObjectKey) -> Json | None: ...

    def list_pages(self, kind: str, namespace: str = "") -> AsyncIterator[Page]: ...

    async def apply(
        self, manifest: Json, *, manager: str = FIELD_MANAGER, force: bool = True, subresource: str = ""
    ) -> Json: ...

    async def patch(self, key: ObjectKey, body: Json | list[Json], how: Patch, subresource: str = "") -> Json: ...

    async def delete(self, key: ObjectKey, *, uid: str, resource_version: str) -> Json: ...


class Fence(Protocol):
    """Whether this process may write."""

    def held(self) -> bool: ...


class Versions(Protocol):
    """Which object was last seen under a name."""

    def version(self, key: ObjectKey) -> Version | None: ...


class Result(StrEnum):
    """How an action ended."""

    DONE = "Done"
    CONFLICT = "Conflict"
    TAKEN = "Taken"
    GONE = "Gone"
    FAILED = "Failed"
    RETRYABLE = "Retryable"
    SKIPPED = "Skipped"
    LEFT = "Left"
    FENCED = "Fenced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one action; `revision` is the resourceVersion that it wrote."""

    action: Action
    result: Result
    message: str = ""
    after_seconds: float = 0.0
    written: tuple[tuple[ObjectKey, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all of them."""

    outcomes: tuple[Outcome, ...] = ()

    @property
    def done(self) -> tuple[Action, ...]:
        return tuple(outcome.action for outcome in self.outcomes if outcome.result is Result.DONE)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """What someone should hear of: in the way or refused for good, or worth another try."""
        return tuple(o for o in self.outcomes if o.result in (Result.TAKEN, Result.FAILED, Result.RETRYABLE))

    @property
    def retry_after(self) -> float:
        """Seconds that the API server asked us to wait."""
        return max((outcome.after_seconds for outcome in self.outcomes), default=0.0)

    @property
    def written(self) -> tuple[tuple[ObjectKey, str], ...]:
        """Objects that were written, with the resourceVersion of the answer."""
        return tuple(pair for outcome in self.outcomes for pair in outcome.written)


class Applier:
    """Turns actions into writes."""

    def __init__(
        self,
        writer: Writer,
        fence: Fence,
        versions: Versions,
        *,
        again: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        parallel: int = PARALLEL_WRITES,
    ) -> None:
        """`again` is told when something was left."""
        self._writer = writer
        self._fence = fence
        self._versions = versions
        self._again = again
        self._clock = clock
        self._wall_clock = wall_clock
        self._parallel = parallel
        self._owners = _Owners(writer, ())
        self._late: dict[str, asyncio.Task[Outcome]] = {}

    async def apply(self, actions: Sequence[Action]) -> Report:
        """Runs all actions in the order they ask for. Raises ValueError for a plan that has none.

        Two services may want a child of the same name: the first in the plan makes it, the other is told.
        """
        first: dict[str, Action] = {}
        for action in actions:
            first.setdefault(action.id, action)
        lacking = frozenset((action.id, action.service) for action in actions if first[action.id] is not action)
        done = await self._carry_out(_Run(tuple(first.values()), lacking))
        report = Report(tuple(done[a.id] if first[a.id] is a else _doubled(a, first[a.id]) for a in actions))
        if any(outcome.result is Result.LEFT for outcome in report.outcomes):
            self._again()
        return report

    async def _carry_out(self, run: _Run) -> dict[str, Outcome]:
        """Outcomes by id. A write without an answer is not waited for; until it has one, it is not made again."""
        until = self._clock() + PATIENCE_SECONDS
        self._owners = _Owners(self._writer, run.actions)
        pending: dict[asyncio.Task[Outcome], tuple[Action, float]] = {}
        try:
            while run.active:
                while self._has_slot(len(pending)) and (action := run.next()) is not None:
                    task = asyncio.create_task(self._act(run, action, until))
                    pending[task] = action, self._clock() + LATE_SECONDS
                await asyncio.wait(pending, timeout=self._patience(pending), return_when=asyncio.FIRST_COMPLETED)
                for task, (action, at) in list(pending.items()):
                    if task.done() or at <= self._clock():
                        del pending[task]
                        run.finish(task.result() if task.done() else self._leave(action, task))
        finally:
            for task in pending:
                task.cancel()
        return run.outcomes

    def _has_slot(self, pending: int) -> bool:
        return pending == 0 or (pending < self._parallel and pending + len(self._late) < 2 * self._parallel)

    def _patience(self, pending: Mapping[asyncio.Task[Outcome], tuple[Action, float]]) -> float:
        return max(0.0, min(at for _, at in pending.values()) - self._clock())

    def _leave(self, action: Action, task: asyncio.Task[Outcome]) -> Outcome:
        self._late[action.id] = task
        task.add_done_callback(lambda _: self._late.pop(action.id, None))
        message = f"the API server did not answer within {LATE_SECONDS:.0f} s"
        return Outcome(action=action, result=Result.RETRYABLE, message=message)

    async def _act(self, run: _Run, action: Action, until: float) -> Outcome:
        if action.id in self._late:
            return Outcome(action=action, result=Result.SKIPPED, message="the last try has no answer yet")
        if blocker := run.blocker(action):
            return Outcome(action=action, result=Result.SKIPPED, message=f"waits for {blocker}")
        if action.can_wait and self._clock() > until:
            return Outcome(action=action, result=Result.LEFT, message="the next plan goes on")
        if not self._fence.held():
            return Outcome(action=action, result=Result.FENCED, message="this process leads no more")
        return await self._attempt(action)

    async def _attempt(self, action: Action) -> Outcome:
        try:
            return Outcome(action=action, result=Result.DONE, written=tuple(await self._write(action)))
        except Taken as error:
            return Outcome(action=action, result=Result.TAKEN, message=error.message)
        except Conflict as error:
            return Outcome(action=action, result=Result.CONFLICT, message=error.message)
        except NotFound as error:
            return Outcome(action=action, result=Result.GONE, message=error.message)
        except Retryable as error:
            return Outcome(action=action, result=Result.RETRYABLE, message=error.message, after_seconds=error.after)
        except ApiError as error:
            return Outcome(action=action, result=Result.FAILED, message=f"{error.reason}: {error.message}")
        except Exception as error:  # a fault of ours that one action shows: the others are carried out
            _log.exception("%s failed", action.id)
            message = f"an error of the operator's own: {type(error).__name__}: {error}"
            return Outcome(action=action, result=Result.FAILED, message=message)

    async def _write(self, action: Action) -> Iterable[tuple[ObjectKey, str]]:
        match action:
            case Apply():
                return [await self._apply(action)]
            case Delete():
                await self._writer.delete(action.key, uid=action.uid, resource_version=action.resource_version)
                return []
            case SetDeletionCost():
                return [await self._mark(action)]
            case SetServing():
                return [await self._set_serving(action.pod, action.uid, serving=action.serving)]
            case Place():
                return [await self.place(action.pod, action.uid, action.node, self._fence.held)]
            case _:
                raise TypeError(f"{type(action).__name__} is not an action that can be carried out")

    async def _apply(self, action: Apply) -> tuple[ObjectKey, str]:
        """Over a live object the uid goes with the revision: a revision alone would create what was deleted."""
        if action.resource_version is None:
            return _written(await self._create(action.manifest))
        seen = self._versions.version(key_of(action.manifest))
        if seen is None:
            raise NotFound("deleted since it was seen")
        return _written(await self._over(action.manifest, seen.uid, action.resource_version))

    async def _create(self, manifest: Json) -> Json:
        """Only what is not there: a leader that was frozen on the way must not write over its successor's work.

        What is there and is not a child of the same service may be anybody's: it stays, and is in the way until
        somebody removes it. Our watches do not show it, so it is asked for; a child was made by another leader.
        """
        await self._check_owner(manifest)
        try:
            return await self._writer.apply(_expecting(manifest, resourceVersion=_NEVER))
        except Conflict as conflict:
            there = await self._writer.find(key_of(manifest))
            if there is None or is_sibling(there, manifest):
                raise
            raise Taken(_in_the_way(there, manifest), status=conflict.status) from conflict

    async def _check_owner(self, manifest: Json) -> None:
        """Nothing is made for who is gone: a view in which only the children's going is seen would make them anew."""
        for key, uid in _owners_of(manifest):
            if await self._owners.uid(key) != uid:
                raise NotFound(f"{key.kind} {key.name} is gone")

    async def _over(self, manifest: Json, uid: str, revision: str) -> Json:
        return await self._writer.apply(_expecting(manifest, uid=uid, resourceVersion=revision))

    async def _mark(self, action: SetDeletionCost) -> tuple[ObjectKey, str]:
        annotations = {DELETION_COST_ANNOTATION: str(action.cost)}
        body = {"metadata": {"uid": action.uid, "annotations": annotations}}
        return _written(await self._writer.patch(action.pod, body, Patch.MERGE))

    async def _set_serving(self, pod: ObjectKey, uid: str, *, serving: bool) -> tuple[ObjectKey, str]:
        body = {"metadata": {"uid": uid}, "status": {"conditions": [self._serving(serving)]}}
        return _written(await self._writer.patch(pod, body, Patch.STRATEGIC, "status"))

    async def place(
        self, pod: ObjectKey, uid: str, node: str | None, may: Callable[[], bool] = lambda: True
    ) -> tuple[ObjectKey, str]:
        """Nominates, lets it serve, and only then lifts our gate: a pod without its gate can always become Ready.

        Both are strategic merges, so that the conditions and the gates of others stay as they are. `may` is asked
        between the two: who was frozen there lifts no gate that a successor may want to hold.
        """
        status: Json = {"conditions": [self._serving(True)]}
        if node is not None:
            status["nominatedNodeName"] = node
        await self._writer.patch(pod, {"metadata": {"uid": uid}, "status": status}, Patch.STRATEGIC, "status")
        if not may():
            raise Conflict("this process leads no more")
        lifted = {"schedulingGates": [{"$patch": "delete", "name": PLACEMENT_GATE}]}
        return _written(await self._writer.patch(pod, {"metadata": {"uid": uid}, "spec": lifted}, Patch.STRATEGIC))

    def _serving(self, serving: bool) -> Json:
        now = datetime.fromtimestamp(self._wall_clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "type": SERVING_CONDITION,
            "status": str(serving),
            "reason": "Serving" if serving else "Shifted",
            "lastTransitionTime": now,
        }


def _owners_of(manifest: Json) -> list[tuple[ObjectKey, str]]:
    """Keys and uids."""
    metadata = manifest["metadata"]
    owners = metadata.get("ownerReferences") or ()
    return [(ObjectKey(owner["kind"], metadata["namespace"], owner["name"]), owner["uid"]) for owner in owners]


class _Owners:
    """Who is there of those that a plan makes children for: asked for once, however many children an owner lacks."""

    def __init__(self, writer: Writer, actions: Sequence[Action]) -> None:
        made = (action.manifest for action in actions if isinstance(action, Apply) and action.resource_version is None)
        counts = Counter(_place(key) for key in {key for manifest in made for key, _ in _owners_of(manifest)})
        self._writer = writer
        self._many = {place for place, count in counts.items() if count >= MANY_OWNERS}
        self._answers: dict[ObjectKey, asyncio.Future[dict[ObjectKey, str]]] = {}

    async def uid(self, key: ObjectKey) -> str | None:
        """None when it is not there, or is being deleted."""
        asked = place if (place := _place(key)) in self._many else key
        if asked not in self._answers:
            self._answers[asked] = asyncio.ensure_future(self._ask(asked))
        return (await self._answers[asked]).get(key)

    async def _ask(self, asked: ObjectKey) -> dict[ObjectKey, str]:
        """Uids of one owner, or of all of a place."""
        if asked.name:
            return _living([await self._writer.get(asked)])
        pages = self._writer.list_pages(asked.kind, asked.namespace)
        return {key: uid async for page in pages for key, uid in _living(page.items).items()}


def _place(key: ObjectKey) -> ObjectKey:
    """All of its kind and namespace."""
    return key._replace(name="")


def _living(objects: Iterable[Json]) -> dict[ObjectKey, str]:
    """Uids of those that are not being deleted."""
    return {key_of(it): it["metadata"]["uid"] for it in objects if not it["metadata"].get("deletionTimestamp")}


class _Run:
    """The order of one plan, and how far it got."""

    def __init__(self, actions: Sequence[Action], lacking: frozenset[tuple[str, ServiceKey | None]]) -> None:
        """`lacking` are ids that are another service's, and the service that goes without."""
        self.outcomes: dict[str, Outcome] = {}
        self.actions = actions
        self._lacking = lacking
        self._places = {action.id: place for place, action in enumerate(actions)}
        self._ready: list[int] = []
        self._sorter = TopologicalSorter(_order(actions))
        self._sorter.prepare()

    @property
    def active(self) -> bool:
        return self._sorter.is_active()

    def next(self) -> Action | None:
        """The first action of the plan that nothing holds up any more, each once; None while all others wait."""
        while ids := self._sorter.get_ready():
            if _ALL_PLACED in ids:
                self._sorter.done(_ALL_PLACED)
            for id_ in set(ids) - {_ALL_PLACED}:
                heappush(self._ready, self._places[id_])
        return self.actions[heappop(self._ready)] if self._ready else None

    def blocker(self, action: Action) -> str | None:
        """The first action that had to succeed before and did not; one that was never planned did not."""
        lacks = {id_ for id_ in action.after if (id_, action.service) in self._lacking}
        return next((id_ for id_ in action.after if id_ in lacks or not self._succeeded(id_)), None)

    def finish(self, outcome: Outcome) -> None:
        self.outcomes[outcome.action.id] = outcome
        self._sorter.done(outcome.action.id)

    def _succeeded(self, id_: str) -> bool:
        outcome = self.outcomes.get(id_)
        return outcome is not None and outcome.result is Result.DONE


def _order(actions: Sequence[Action]) -> dict[str, set[str]]:
    """Ids that have to be over before each begins; that one failed holds back only what comes `after` it."""
    known = {action.id for action in actions}
    order = {action.id: known & set(action.after) for action in actions}
    places = [action for action in actions if isinstance(action, Place)]
    if loose := [place.id for place in places if place.node is None]:
        order[_ALL_PLACED] = {place.id for place in places if place.node is not None}
        for id_ in loose:
            order[id_].add(_ALL_PLACED)
    return order


def _doubled(action: Action, first: Action) -> Outcome:
    """Of two actions with one id, the second: who made the first is the older one, or comes first by name."""
    owner = f"TokenService {first.service.name}" if first.service is not None else "another TokenService"
    message = f"{owner} makes a child of the same name: give one of the two another name"
    return Outcome(action=action, result=Result.TAKEN, message=message)


def _in_the_way(there: Json, manifest: Json) -> str:
    """What has the child's name, and the way out; one's own child is known by its label alone."""
    named = f"{manifest['kind']} {manifest['metadata']['name']} is there already"
    if belongs_to(there["metadata"]) == belongs_to(manifest["metadata"]):
        return f"{named} without its label: put {MANAGED_BY_LABEL}={FIELD_MANAGER} back"
    return (
        f"{named} and is not of this TokenService; the operator leaves what is of others alone:"
        " rename or remove it, or give the TokenService another name"
    )


def _expecting(manifest: Json, **metadata: str) -> Json:
    return {**manifest, "metadata": {**manifest["metadata"], **metadata}}


def _written(obj: Json) -> tuple[ObjectKey, str]:
    return key_of(obj), str(obj["metadata"]["resourceVersion"])
