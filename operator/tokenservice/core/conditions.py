"""Conditions as the API conventions and kstatus want them.

All of a kind's conditions are always there, each speaks of the generation that was looked at, and the time of
transition moves only when the status does. Stalled and Reconciling are never true at once: kstatus would call the
object in progress for ever, where it has failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from tokenservice.api.conditions import ConditionType
from tokenservice.core.model import Json, Problem, Reason

TRUE, FALSE, UNKNOWN = "True", "False", "Unknown"
_MESSAGE_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a condition says."""

    status: str
    reason: Reason
    message: str


def rendered(verdicts: Mapping[ConditionType, Verdict], previous: Json, generation: int, now: float) -> list[Json]:
    """The conditions of a status; `previous` is the status that stands there."""
    before = by_type(previous)
    return [_condition(kind, verdict, before.get(kind, {}), generation, now) for kind, verdict in verdicts.items()]


def by_type(status: Json) -> dict[str, Json]:
    """Conditions of a status by their type."""
    return {condition["type"]: condition for condition in status.get("conditions") or ()}


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC and whole seconds, as metav1.Time is written."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def stalled(problems: tuple[Problem, ...]) -> Verdict:
    """True for what only a user can mend; the first problem gives the reason, all of them the message."""
    if not problems:
        return Verdict(FALSE, Reason.ACCEPTED, "the spec is accepted")
    text = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
    return Verdict(TRUE, problems[0].reason, shortened(text))


def shortened(text: str, limit: int = _MESSAGE_LIMIT) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _condition(kind: ConditionType, verdict: Verdict, before: Json, generation: int, now: float) -> Json:
    kept = before.get("lastTransitionTime") if before.get("status") == verdict.status else None
    return {
        "type": kind.value,
        "status": verdict.status,
        "reason": verdict.reason.value,
        "message": verdict.message,
        "lastTransitionTime": kept or timestamp(now),
        "observedGeneration": generation,
    }
