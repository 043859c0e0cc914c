"""Which node a replica goes to, and which replica goes first.

Tensor-parallel sizes 1, 2, 4 and 8 divide each other, so on nodes of eight accelerators first-fit-decreasing onto the
fullest node that fits wastes nothing (research: divisible item sizes). What remains to be won is keeping whole nodes
free while replicas come and go: fill nodes that are in use before opening another, and take away where the node is
nearest to empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from tokenservice.core.model import Pod
from tokenservice.core.room import Room, usable

Admits = Callable[[Pod, Room], bool]


def place(
    pods: Sequence[Pod], rooms: Mapping[str, Room], admits: Admits, avoid: frozenset[str] = frozenset()
) -> dict[str, str | None]:
    """Node by pod uid; None where nothing fits. `avoid` names nodes that are being emptied."""
    left = {name: room for name, room in rooms.items() if name not in avoid and usable(room.node)}
    chosen: dict[str, str | None] = {}
    for pod in sorted(pods, key=_largest_first):
        target = best_node(pod, left.values(), admits)
        chosen[pod.uid] = target
        if target is not None:
            left[target] = left[target].less(pod)
    return chosen


def best_node(pod: Pod, rooms: Iterable[Room], admits: Admits) -> str | None:
    """The fullest node that fits: in use before empty, then least left over, then by name."""
    fitting = [room for room in rooms if room.fits(pod) and admits(pod, room)]
    return min(fitting, key=lambda room: _tightness(pod, room)).node.name if fitting else None


def victims(pods: Iterable[Pod], rooms: Mapping[str, Room], count: int) -> tuple[Pod, ...]:
    """The `count` pods whose going frees the most: one after the other, each seeing the earlier ones gone."""
    staying = list(pods)
    used = {name: room.used for name, room in rooms.items()}
    gone: list[Pod] = []
    while staying and len(gone) < count:
        victim = min(staying, key=lambda pod: _worth_keeping(pod, rooms, used))
        staying.remove(victim)
        gone.append(victim)
        if victim.node in used:
            used[victim.node] -= sum(victim.accelerators.values())
    return tuple(gone)


def _largest_first(pod: Pod) -> tuple[int, float, str, str]:
    return (-sum(pod.accelerators.values()), pod.created_at, pod.namespace, pod.name)


def _tightness(pod: Pod, room: Room) -> tuple[bool, int, str]:
    left_over = sum(room.free.get(name, 0) - count for name, count in pod.accelerators.items())
    return (room.used == 0, left_over, room.node.name)


def _worth_keeping(
    pod: Pod, rooms: Mapping[str, Room], used: Mapping[str, int]
) -> tuple[bool, bool, bool, bool, int, float, str]:
    """Lowest goes first: not serving, marked, on a cordoned node, on the node nearest to empty, the youngest.

    A ReplicaSet takes pods that do not serve before it looks at marks, so the order agrees with it. A node that
    foreign pods hold cannot be emptied by us, so it counts as full.
    """
    room = rooms.get(pod.node or "")
    cordoned = room is not None and not usable(room.node)
    held_by_others = room is not None and room.foreign > 0
    return (
        pod.ready,
        pod.deletion_cost >= 0,
        not cordoned,
        held_by_others,
        used.get(pod.node or "", 0),
        -pod.created_at,
        pod.name,
    )
