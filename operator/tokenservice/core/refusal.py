"""What keeps children and replicas from coming about, in the cluster's own words, and what to do about it.

A refused child is known from the last attempt to write it. Refused pods are known from their Deployment: the ReplicaSet
keeps the words of the refusal, which arrive as its condition ReplicaFailure and go when a pod was admitted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tokenservice.api.conditions import ConditionType
from tokenservice.core.conditions import by_type, shortened
from tokenservice.core.model import Child, Json, Pod, Problem, Reason, Service, ServiceKey

_WORDS = 600
_SERVE_ON = re.compile(r"; \d+ replicas serve on$")
_WHO = re.compile(r"^(?:Forbidden|Invalid): |^\S+ \"[^\"]*\" is (?:forbidden|invalid): ", re.IGNORECASE)

PREPARED_SECONDS = 60.0
"""A volume that is still being detached elsewhere, or a Secret that is applied a little later, is no failure."""

_ADVICE = (
    (r"exceeded quota", "have the ResourceQuota of the namespace raised, or lower minReplicas or the volume"),
    (r"failed quota.*must specify", "have a LimitRange of the namespace give defaults for what the quota counts"),
    (r"violates PodSecurity", "have the namespace's Pod Security level lowered, or enginePodPatch of the chart mended"),
    (r"(?:maximum|minimum) .*usage per", "have the LimitRange of the namespace changed, or set spec.engine.resources"),
    (r"^(?:ErrImage|ImagePull|InvalidImage)", "check spec.engine.image or engineImages of the chart, and the registry"),
    (r"secret .*not found|find key", "create the Secret, with the key, that spec.model.credentials names"),
    (r"configmap .*not found|non-existent config key", "create the ConfigMap, with the key, that the message names"),
    (r"registered CSI drivers", "have the CSI driver run on the nodes of this class"),
    (r"Multi-Attach", "use a claim that several nodes may mount: ReadOnlyMany or ReadWriteMany"),
    (r"OOMKilled", "raise spec.engine.resources.memory"),
    (r"persistentvolumeclaim", "create the claim that spec.model.uri, or that of an adapter or draft, names"),
)


def advice(words: str) -> str:
    """The field or the object that mends what these words complain of; empty where nobody knows."""
    return next((told for pattern, told in _ADVICE if re.search(pattern, words)), "")


def refusal(what: str, words: str) -> Problem:
    """That the cluster does not let something be."""
    return Problem(
        Reason.REFUSED, what, f"{own_words(words)} ({advice(words) or 'have it allowed'}; it is tried again)"
    )


def taken(what: str, words: str) -> Problem:
    """That the name of a child is somebody else's."""
    return Problem(Reason.NAME_TAKEN, what, words)


def remembered(services: Iterable[Service]) -> dict[ServiceKey, Problem]:
    """What statuses say of children that cannot be: known to a process that has not tried to write any yet."""
    found: dict[ServiceKey, Problem] = {}
    for service in services:
        stalled = by_type(service.status).get(ConditionType.STALLED, {})
        if stalled.get("reason") in (Reason.REFUSED, Reason.NAME_TAKEN):
            what, _, words = str(stalled.get("message", "")).partition(": ")
            found[service.key] = Problem(Reason(stalled["reason"]), what, _SERVE_ON.sub("", words))
    return found


def own_words(text: str) -> str:
    """A refusal without the name of what was refused: a ReplicaSet tries each time with another pod."""
    words = " ".join(text.split())
    while (match := _WHO.match(words)) is not None:
        words = words[match.end() :]
    return shortened(words, _WORDS)


def refused_pods(deployment: Child | None) -> str | None:
    """Why the cluster lets a Deployment have no more pods; None while it does."""
    condition = _condition(deployment, "ReplicaFailure")
    return own_words(condition.get("message", "")) if condition.get("status") == "True" else None


def overdue(pods: Sequence[Pod], limit_seconds: float, now: float) -> str | None:
    """What is said of pods of which no start has ended within the limit, good or bad; None while there is hope.

    A container that is too slow is ended by its startup probe, which `rollback.failure` tells. This is of pods that
    do not even come so far: a volume that cannot be mounted, an image that takes for ever.
    """
    late = [pod for pod in pods if pod.starting_since is not None and now - pod.starting_since > limit_seconds]
    if not late or any(pod.ready for pod in pods):
        return None
    first = min(late, key=lambda pod: pod.name).name
    return f"{first} is not ready {limit_seconds:.0f} s after it got its node; kubectl describe pod {first} says why"


def unprepared(pods: Sequence[Pod], now: float) -> str | None:
    """What is said of pods that still lack a volume or a sandbox after a minute; None while there is hope."""
    if any(pod.ready for pod in pods):
        return None
    late = [
        p for p in pods if p.complaint and p.starting_since is not None and now - p.starting_since > PREPARED_SECONDS
    ]
    return min(late, key=lambda pod: pod.name).complaint if late else None


def _condition(deployment: Child | None, kind: str) -> Json:
    status = deployment.body.get("status", {}) if deployment is not None else {}
    return next((found for found in status.get("conditions") or () if found.get("type") == kind), {})
