"""When a status is worth writing, and which changes people are told of.

Conditions and counts go out at once. Measured figures move all the time, so they go out when one of them has changed
by 5 % and the last write is a while ago (60 s by default): a write wakes every watcher, and a status that is written
in each pass would wake the operator itself. Figures inside sentences are held to the same rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenservice.api.conditions import ConditionType
from tokenservice.core.conditions import FALSE, TRUE, by_type
from tokenservice.core.model import Action, Apply, Event, Json, ObjectKey, Reason, Service
from tokenservice.core.names import ENGINE_KINDS
from tokenservice.core.pace import turn
from tokenservice.core.status import ServiceReport, at_once, verdicts

NOTABLE_CHANGE = 0.05

_AT_ONCE = (
    "observedGeneration",
    "endpoint",
    "replicas",
    "readyReplicas",
    "desiredReplicas",
    "replicaSummary",
    "variantSummary",
    "selector",
    "variants",
    "adapters",
    "warmNodes",
)
_EXACT = ("nodes", "accelerators", "allocated", "acceleratorsInUse", "acceleratorsFragmented", "workload")
"""Counts, and what is planned with while metrics are missing: written whatever they differ by, if not at once."""
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")

NORMAL, WARNING = "Normal", "Warning"

_TOLD = frozenset(
    {
        Reason.CREATED,
        Reason.UPDATED,
        Reason.SCALED_UP,
        Reason.SCALED_DOWN,
        Reason.MOVE_STARTED,
        Reason.MOVE_CANCELLED,
        Reason.SLOW_REPLICA,
        Reason.SURGED,
        Reason.REMOVED,
    }
)
"""Reasons of actions that users are told of; where each pod was placed is in the pod itself."""


def rests(last_written_at: float | None, now: float, pause_seconds: float, uid: str = "") -> bool:
    """Whether figures wait: for the pause after the last write, and for up to half as long again, each object for its
    own time, so that statuses that were written together are not written together for ever."""
    if last_written_at is None:
        return False
    return now - last_written_at < pause_seconds * (1 + turn(uid) / 2)


def changed(
    previous: Json, desired: Json, last_written_at: float | None, now: float, pause_seconds: float
) -> Json | None:
    """The status to write, or None when what stands there is good enough."""
    if urgent(previous) != urgent(desired):
        return desired
    if rests(last_written_at, now, pause_seconds):
        return None
    same = [previous.get(name) for name in _EXACT] == [desired.get(name) for name in _EXACT]
    return None if same and _similar(previous, desired) else desired


def events(service: Service, status: Json, actions: Sequence[Action]) -> tuple[Event, ...]:
    """What people are told of one service: its conditions' transitions, then what is done and why.

    `service` carries the status that stands there, `status` is the new one. `actions` may be the whole plan's.
    """
    regarding = ObjectKey("TokenService", service.key.namespace, service.key.name)
    told = [*_transitions(service.status, status), *_doings(service, actions)]
    return tuple(
        Event(regarding=regarding, uid=service.uid, type=kind, reason=reason, message=message)
        for kind, reason, message in dict.fromkeys(told)
    )


_Told = tuple[str, Reason, str]


def urgent(status: Json) -> Json:
    """What is written at once when it differs: counts, and of conditions all but their words."""
    conditions = {
        kind: (condition.get("status"), condition.get("reason"), condition.get("observedGeneration"))
        for kind, condition in by_type(status).items()
    }
    decided = (status.get("decision") or {}).get("reason")
    return {name: status.get(name) for name in _AT_ONCE} | {"conditions": conditions, "decision": decided}


def urgent_of(report: ServiceReport) -> Json:
    """What is `urgent` in the status of a report, without the status."""
    generation = report.service.generation
    conditions = {
        kind.value: (verdict.status, verdict.reason.value, generation) for kind, verdict in verdicts(report).items()
    }
    decided = report.decision.reason.value if report.decision is not None else None
    return {**at_once(report), "conditions": conditions, "decision": decided}


def _similar(before: Any, after: Any) -> bool:
    """Equal but for figures that differ by less than 5 %."""
    if before == after:  # most of a status, most of the time
        return True
    match before, after:
        case Mapping(), Mapping():
            return before.keys() == after.keys() and all(_similar(before[key], after[key]) for key in after)
        case list(), list():
            return len(before) == len(after) and all(map(_similar, before, after))
        case str(), str():
            return _similar_text(before, after)
        case ((int() | float()), (int() | float())):
            return before == after or not _notable(before, after)
        case _:
            return bool(before == after)


def _similar_text(before: str, after: str) -> bool:
    """Text between the figures must be the same."""
    old, new = _NUMBER.split(before), _NUMBER.split(after)
    figures = zip(old[1::2], new[1::2], strict=False)
    return old[::2] == new[::2] and not any(_notable(float(a), float(b)) for a, b in figures if a != b)


def _notable(before: float, after: float) -> bool:
    return abs(before - after) >= NOTABLE_CHANGE * max(abs(before), abs(after))


def _transitions(previous: Json, status: Json) -> Iterator[_Told]:
    before, after = by_type(previous), by_type(status)
    stalled = after.get(ConditionType.STALLED, {}).get("status") == TRUE
    for kind, new in after.items():
        if new["reason"] in _WARNED and before.get(kind, {}).get("reason") != new["reason"]:
            yield WARNING, Reason(new["reason"]), new["message"]
    for kind, good in _GOOD.items():
        if kind in after and not (stalled and kind is ConditionType.READY):
            yield from _transition(kind, good, before.get(kind, {}), after[kind])


_GOOD = {
    ConditionType.STALLED: FALSE,
    ConditionType.CAPACITY_AVAILABLE: TRUE,
    ConditionType.METRICS_AVAILABLE: TRUE,
    ConditionType.READY: TRUE,
}
"""Conditions whose transitions are told, and their good status."""


_WARNED = frozenset({Reason.MAXIMUM_OUTRANKED, Reason.SLOW_REPLICA})
"""Reasons that people are warned of whatever the status of the condition that has them."""


def _transition(kind: ConditionType, good: str, old: Json, new: Json) -> Iterator[_Told]:
    """A warning when it turns bad or is bad for another reason, a word when it is good again.

    Readiness is the other way round: a service starts without it, so its coming is news and its first lack is not.
    """
    bad = FALSE if good == TRUE else TRUE
    turned = old.get("status") != new["status"]
    is_readiness = kind is ConditionType.READY
    if new["status"] == bad and (turned or old.get("reason") != new["reason"]):
        if not is_readiness or old.get("status") == TRUE:
            yield WARNING, Reason(new["reason"]), new["message"]
    elif new["status"] == good and turned and (is_readiness or old.get("status") == bad):
        yield NORMAL, Reason(new["reason"]), new["message"]


def _doings(service: Service, actions: Sequence[Action]) -> Iterator[_Told]:
    for action in actions:
        quiet = isinstance(action, Apply) and action.manifest.get("kind") not in ENGINE_KINDS
        if action.service == service.key and action.reason in _TOLD and not quiet:
            yield NORMAL, action.reason, action.message
