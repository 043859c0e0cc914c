"""Emptying nodes: which node, and whether it pays.

A node is worth emptying when all of its replicas fit onto other nodes in use, when the price of the node over the
payback time exceeds the price of warming the replicas up again, and when nothing on it arrived within the cooldown:
the node that received a replica yesterday must not be today's candidate. Each proposal is looked at twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tokenservice.core.index import grouped
from tokenservice.core.model import Pod, Proposal
from tokenservice.core.packing import Admits, Site, Yard, own_site
from tokenservice.core.room import Room, usable

LEAVING = -1000
"""Deletion cost that marks a pod as leaving: the mark lives on the pod, so a restart forgets nothing."""

VICTIM = -100
"""Deletion cost of the pod that a scale-in should take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The limits of the fleet, in seconds, hours and US dollars."""

    cooldown_seconds: float
    payback_hours: float
    second_look_seconds: float
    max_moves: int


def proposals(
    on_node: Mapping[str, tuple[Pod, ...]],
    rooms: Mapping[str, Room],
    admits: Admits,
    movable: Callable[[Pod], bool],
    pays_back: Callable[[Room, tuple[Pod, ...]], bool],
    rules: Rules,
    earlier: tuple[Proposal, ...],
    now: float,
    site: Site = own_site,
) -> tuple[Proposal, ...]:
    """The node to empty next, if any: the least used first. `on_node` are our pods that stay, by node name."""
    in_use = Yard((room for room in rooms.values() if room.used > 0 and usable(room.node)), admits, site)
    for room in sorted(rooms.values(), key=lambda room: (room.used, room.node.name)):
        residents = on_node.get(room.node.name, ())
        may = bool(residents) and _may_empty(room, residents, movable, rules, now) and pays_back(room, residents)
        if may and in_use.holds_elsewhere(residents, room.node.name):
            return (_since(room, residents, earlier, now),)
    return ()


def due(proposal: Proposal, rules: Rules, now: float) -> bool:
    """Whether the proposal has stood long enough to be acted on."""
    return now - proposal.since >= rules.second_look_seconds


def stand(pod: Pod) -> str | None:
    """The node that a pod of ours is bound to and stays on."""
    return None if pod.deleting or pod.service is None else pod.node


def by_node(pods: Iterable[Pod]) -> dict[str, tuple[Pod, ...]]:
    """Pods of ours that stay, by the node that they are bound to."""
    return grouped(tuple(pods), stand)


def _may_empty(
    room: Room, residents: tuple[Pod, ...], movable: Callable[[Pod], bool], rules: Rules, now: float
) -> bool:
    rested = all(now - pod.created_at >= rules.cooldown_seconds for pod in residents)
    return usable(room.node) and room.foreign == 0 and rested and all(movable(pod) for pod in residents)


def _since(room: Room, residents: tuple[Pod, ...], earlier: tuple[Proposal, ...], now: float) -> Proposal:
    names = tuple(sorted(f"{pod.namespace}/{pod.name}" for pod in residents))
    same = [p for p in earlier if p.node == room.node.name and p.pods == names]
    return Proposal(node=room.node.name, pods=names, since=same[0].since if same else now)
