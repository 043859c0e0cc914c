"""Which node a replica goes to, and which replica goes first.

Tensor-parallel sizes 1, 2, 4 and 8 divide each other, so on nodes of eight accelerators first-fit-decreasing onto the
fullest node that fits wastes nothing (research: divisible item sizes). What remains to be won is keeping whole nodes
free while replicas come and go: fill nodes that are in use before opening another, and take away where the node is
nearest to empty.

Which node has the model's weights decides only between nodes that are as good for that. A cold start costs its replica
minutes, once; a node that is opened for it, or a gap that no larger replica fits, costs accelerators for as long as the
replica lives, and takes the room that another service's start may need. Nodes that are as good are common: all that are
empty, and all that hold replicas of one size.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from heapq import nsmallest

from tokenservice.core.model import Node, Pod, ServiceKey
from tokenservice.core.room import Room, usable

Admits = Callable[[Pod, Room], bool]
"""Whether the rules of a pod's service and variant allow a node; of the pod itself nothing else may be asked."""

Site = Callable[[Node], Hashable]
"""Nodes with the same site are admitted or refused alike."""

Held = tuple[frozenset[str], ...]
"""For each image that a pod needs the nodes that have it; those of the largest image first."""


def nothing_held(_pod: Pod) -> Held:
    """Where nobody knows what nodes have, or it is of no account."""
    return ()


def own_site(node: Node) -> Hashable:
    """Every node judged by itself: right for any rules, slow for many nodes."""
    return node.name


def place(
    pods: Sequence[Pod],
    rooms: Mapping[str, Room],
    admits: Admits,
    avoid: frozenset[str] = frozenset(),
    site: Site = own_site,
    held: Callable[[Pod], Held] = nothing_held,
) -> dict[str, str | None]:
    """Node by pod uid; None where nothing fits. `avoid` names nodes that are being emptied."""
    left = (room for name, room in rooms.items() if name not in avoid and usable(room.node))
    return Yard(left, admits, site, held).place(pods)


class Yard:
    """Rooms that are being filled, indexed so that a pod finds its node without a look at every other.

    Mutable: who tries something takes it back. It picks what `best_node` picks, in the order of `tightness`.
    """

    def __init__(
        self,
        rooms: Iterable[Room],
        admits: Admits,
        site: Site = own_site,
        held: Callable[[Pod], Held] = nothing_held,
    ) -> None:
        self.rooms = {room.node.name: room for room in rooms}
        self._admits, self._site, self._held = admits, site, held
        self._admitted: dict[tuple[ServiceKey | None, str], list[_Shelves]] = {}

    @cached_property
    def _shelves(self) -> dict[Hashable, _Shelves]:
        """Sorted in when the first pod asks: most decisions place nothing."""
        found: dict[Hashable, _Shelves] = {}
        for name in sorted(self.rooms):
            room = self.rooms[name]
            site = self._site(room.node)
            if site not in found:
                found[site] = _Shelves(room, self.rooms)
            found[site].add(room)
        return found

    def place(self, pods: Iterable[Pod]) -> dict[str, str | None]:
        """Node by pod uid, the largest pods first; what is given is taken. Pods of a group get all of it or nothing.

        Two groups that hold a part each would wait for one another.
        """
        found = dict[str, str | None]()
        for unit in _units(pods):
            fits = len(unit) == 1 or self.holds(unit)
            found |= {pod.uid: self.fill(pod) if fits else None for pod in unit}
        return found

    def holds(self, pods: Sequence[Pod]) -> bool:
        """Whether all the pods fit at once; everything is as before afterwards."""
        return self.best(pods[0]) is not None if len(pods) == 1 else self.holds_elsewhere(pods, "")

    def fill(self, pod: Pod) -> str | None:
        """Takes the pod's room on the best node, if there is any."""
        name = self.best(pod)
        if name is not None:
            self._put(self.rooms[name].less(pod))
        return name

    def best(self, pod: Pod, but: str = "") -> str | None:
        """The node for a pod, other than `but`, in the order of `tightness`."""
        held = self._held(pod)
        found = [room for shelves in self._shelves_for(pod) if (room := shelves.best(pod, but, held)) is not None]
        return min(found, key=lambda room: tightness(pod, room, held)).node.name if found else None

    def first(self, pod: Pod, count: int, held: Held) -> list[str]:
        """The `count` best nodes for a pod, the best first, fewer where it fits on fewer."""
        found = [room for shelves in self._shelves_for(pod) for room in shelves.first(pod, count)]
        best = nsmallest(count, found, key=lambda room: tightness(pod, room, held))
        return [room.node.name for room in best]

    def holds_elsewhere(self, pods: Sequence[Pod], source: str) -> bool:
        """Whether all the pods would fit on nodes other than `source`; everything is as before afterwards."""
        before, fits = dict[str, Room](), True
        for pod in sorted(pods, key=_largest_first):
            name = self.best(pod, source)
            if name is None:
                fits = False
                break
            before.setdefault(name, self.rooms[name])
            self._put(self.rooms[name].less(pod))
        for room in before.values():
            self._put(room)
        return fits

    def _shelves_for(self, pod: Pod) -> list[_Shelves]:
        key = (pod.service, pod.variant)
        found = self._admitted.get(key)
        if found is None:
            found = [one for one in self._shelves.values() if self._admits(pod, one.sample)]
            self._admitted[key] = found
        return found

    def _put(self, room: Room) -> None:
        self._remove(self.rooms[room.node.name])
        self._add(room)

    def _add(self, room: Room) -> None:
        self._shelves[self._site(room.node)].add(room)
        self.rooms[room.node.name] = room

    def _remove(self, room: Room) -> None:
        self._shelves[self._site(room.node)].remove(room)
        del self.rooms[room.node.name]


class _Shelves:
    """Nodes of one site: by resource, and there by (whether empty, how much is free), which is the order of taking."""

    def __init__(self, sample: Room, rooms: Mapping[str, Room]) -> None:
        self.sample = sample
        self._rooms = rooms
        self._names: dict[str, dict[tuple[bool, int], list[str]]] = {}

    def add(self, room: Room) -> None:
        for resource, free in room.free.items():
            insort(self._names.setdefault(resource, {}).setdefault((room.used == 0, free), []), room.node.name)

    def remove(self, room: Room) -> None:
        for resource, free in room.free.items():
            shelves, key = self._names[resource], (room.used == 0, free)
            shelf = shelves[key]
            del shelf[bisect_left(shelf, room.node.name)]
            if not shelf:
                del shelves[key]

    def best(self, pod: Pod, but: str = "", held: Held = ()) -> Room | None:
        """As `best_node` among these other than `but`; who asks for other than one resource has to look at them all."""
        if len(pod.accelerators) != 1:
            name = best_node(pod, self._all(), lambda _pod, room: room.node.name != but, held)
            return self._rooms[name] if name is not None else None
        ((resource, count),) = pod.accelerators.items()
        shelves = self._names.get(resource, {})
        for key in sorted(key for key in shelves if key[1] >= count):
            rooms = (self._rooms[name] for name in shelves[key] if name != but)
            found = _lacking_least((room for room in rooms if room.fits(pod)), held)
            if found is not None:
                return found
        return None

    def first(self, pod: Pod, count: int) -> list[Room]:
        """At least the `count` best of these, whatever they hold: what is as good as the last of them is there too."""
        if len(pod.accelerators) != 1:
            return [room for room in self._all() if room.fits(pod)]
        ((resource, wanted),) = pod.accelerators.items()
        shelves, found = self._names.get(resource, {}), list[Room]()
        for key in sorted(key for key in shelves if key[1] >= wanted):
            if len(found) >= count:
                break
            found += [room for name in shelves[key] if (room := self._rooms[name]).fits(pod)]
        return found

    def _all(self) -> list[Room]:
        names = {name for shelves in self._names.values() for shelf in shelves.values() for name in shelf}
        return [self._rooms[name] for name in sorted(names)]


def _lacking_least(rooms: Iterable[Room], held: Held) -> Room | None:
    """The first that lacks no image; none of the others is looked at then."""
    best: Room | None = None
    least: tuple[bool, ...] = ()
    for room in rooms:
        lacked = lacks(room.node.name, held)
        if not any(lacked):
            return room
        if best is None or lacked < least:
            best, least = room, lacked
    return best


def best_node(pod: Pod, rooms: Iterable[Room], admits: Admits, held: Held = ()) -> str | None:
    """The fullest node that fits, in the order of `tightness`."""
    fitting = [room for room in rooms if room.fits(pod) and admits(pod, room)]
    return min(fitting, key=lambda room: tightness(pod, room, held)).node.name if fitting else None


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


def _units(pods: Iterable[Pod]) -> list[tuple[Pod, ...]]:
    """Pods that are placed together, each group where its first would come alone."""
    found: dict[object, list[Pod]] = {}
    for pod in sorted(pods, key=_largest_first):
        found.setdefault((pod.namespace, pod.group) if pod.group else pod.uid, []).append(pod)
    return [tuple(unit) for unit in found.values()]


def _largest_first(pod: Pod) -> tuple[int, float, str, str]:
    return (-sum(pod.accelerators.values()), pod.created_at, pod.namespace, pod.name)


def tightness(pod: Pod, room: Room, held: Held = ()) -> tuple[bool, int, tuple[bool, ...], str]:
    """Lowest is best: in use before empty, then least left over, then with the images that it needs, then by name."""
    left_over = sum(room.free.get(name, 0) - count for name, count in pod.accelerators.items())
    return (room.used == 0, left_over, lacks(room.node.name, held), room.node.name)


def lacks(node: str, held: Held) -> tuple[bool, ...]:
    """Which images are not on the node: to lack the first is worse than to lack all the others."""
    return tuple([node not in nodes for nodes in held])


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
