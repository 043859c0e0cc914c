"""Replicas of several pods, which no node holds together: a leader that serves, and workers that compute with it.

To every decision such a replica is its leader. Workers only hold accelerators: what they do is what their leader does,
and what keeps one of them from running keeps the replica from serving. When any pod of a group fails, the
LeaderWorkerSet makes the whole group anew, so half a group never serves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from tokenservice.core.model import Pod


def joined(pods: tuple[Pod, ...]) -> tuple[Pod, ...]:
    """The same pods, in the same order, where the pods of a group tell one story."""
    if not any(pod.group for pod in pods):
        return pods
    leaders = {(pod.namespace, pod.group): pod for pod in pods if pod.group and not pod.worker}
    workers = dict[tuple[str, str], list[Pod]]()
    for pod in pods:
        if pod.worker:
            workers.setdefault((pod.namespace, pod.group), []).append(pod)
    return tuple([_joined(pod, leaders, workers) if pod.group else pod for pod in pods])


def _joined(pod: Pod, leaders: dict[tuple[str, str], Pod], workers: dict[tuple[str, str], list[Pod]]) -> Pod:
    key = (pod.namespace, pod.group)
    if not pod.worker:
        return _speaking_for(pod, workers.get(key, ()))
    leader = leaders.get(key)
    if leader is None:
        return replace(pod, ready=False)
    return replace(pod, ready=leader.ready and not leader.deleting, serving=leader.serving)


def _speaking_for(leader: Pod, workers: Sequence[Pod]) -> Pod:
    """With what is said of any of its group; of the leader itself first."""
    return replace(
        leader,
        unschedulable=leader.unschedulable or any(worker.unschedulable for worker in workers),
        unbound=leader.unbound or _first(worker.unbound for worker in workers),
        failure=leader.failure or _first(worker.failure for worker in workers),
        waiting_reason=leader.waiting_reason or _first(worker.waiting_reason for worker in workers),
        unverified=leader.unverified or any(worker.unverified for worker in workers),
    )


def _first(words: Iterable[str | None]) -> str | None:
    return next((said for said in words if said), None)


def ordinal(leader: Pod) -> int:
    """Place of a group in its set, by which the highest goes first; the set names its leaders by it."""
    text = leader.name.rpartition("-")[2]
    return int(text) if text.isdecimal() else 0
