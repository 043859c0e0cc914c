"""A day of churn: services scale up and down, and the operator's own packing keeps the nodes they need few.

Nothing here packs: replicas go where `core.packing.place` says, leave as `core.packing.victims` says, and nodes are
emptied as `core.repack` proposes, make-before-break: both replicas hold their accelerators until the new one serves.
The nodes that nobody uses are taken to be given back at once, so what is measured is packing alone.

Every service asks for a level that swings once a day (between a quarter and all of its peak, at its own hour) times a
random walk that is drawn back to one; tensor-parallel sizes are 1, 2, 4 and 8 in turn.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count

import numpy as np

from tokenservice.core.fragmentation import Ints
from tokenservice.core.model import Node, Pod, Proposal, ServiceKey
from tokenservice.core.packing import place, victims
from tokenservice.core.repack import Rules, by_node, due, proposals
from tokenservice.core.room import Room, rooms

NODE_ACCELERATORS = 8
SIZES = (1, 2, 4, 8)
_RESOURCE = "accelerator"
_STEP_SECONDS = 60.0
_DAY_STEPS = 24 * 60
_SCALE_STEPS = 5
_START_SECONDS = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """The day. `peak_accelerators` is what each service has at its hour, about; the walk goes on top.

    At most `moved_share_per_hour` of the replicas are moved within any hour.
    """

    services: int = 80
    peak_accelerators: float = 24.0
    walk: float = 0.05
    moved_share_per_hour: float = 0.02
    consolidate: bool = True
    seed: int = 42


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """What the day came to; `excess` is nodes in use over ceil(accelerators asked for / 8), meaned over the minutes."""

    excess: float
    worst_excess: float
    mean_nodes: float
    mean_bound: float
    mean_replicas: float
    started: int
    removed: int
    moved: int
    most_moved_share_per_hour: float


def counts(churn: Churn) -> Ints:
    """Replicas that each service asks for, by five minutes of the day and by service; at least one."""
    rng = np.random.default_rng(churn.seed)
    steps, size = _DAY_STEPS // _SCALE_STEPS, np.array([_size(index) for index in range(churn.services)])
    hour = rng.normal(14, 3, churn.services)
    scale = churn.peak_accelerators * rng.lognormal(0, 0.5, churn.services) / size
    time = np.arange(steps)[:, None] * 24 / steps
    swing = 0.625 + 0.375 * np.cos((time - hour) * math.pi / 12)
    walk = np.zeros((steps, churn.services))
    for step in range(1, steps):
        walk[step] = 0.98 * walk[step - 1] + rng.normal(0, churn.walk, churn.services)
    return np.asarray(np.maximum(1, np.round(scale * swing * np.exp(walk))), dtype=np.int64)


def day(churn: Churn) -> Day:
    """The whole day, a minute at a time."""
    wanted = counts(churn)
    fleet = _Fleet(churn, _nodes_enough_for(wanted))
    used, bounds, replicas = [], [], []
    for step in range(_DAY_STEPS):
        fleet.minute(step * _STEP_SECONDS, wanted[step // _SCALE_STEPS] if step % _SCALE_STEPS == 0 else None)
        used.append(fleet.nodes_in_use())
        bounds.append(math.ceil(_accelerators(wanted[step // _SCALE_STEPS]) / NODE_ACCELERATORS))
        replicas.append(int(wanted[step // _SCALE_STEPS].sum()))
    excess = np.array(used) / np.array(bounds) - 1
    return Day(
        excess=float(excess.mean()),
        worst_excess=float(excess.max()),
        mean_nodes=float(np.mean(used)),
        mean_bound=float(np.mean(bounds)),
        mean_replicas=float(np.mean(replicas)),
        started=fleet.started,
        removed=fleet.removed,
        moved=fleet.moved,
        most_moved_share_per_hour=fleet.most_moved_share,
    )


class _Fleet:
    """Pods on nodes. `_moving` holds, by uid, a pod that is to go and the one that stands in for it."""

    def __init__(self, churn: Churn, nodes: tuple[Node, ...]) -> None:
        self._churn, self._nodes = churn, nodes
        self._rules = Rules(
            cooldown_seconds=300, payback_hours=1.0, second_look_seconds=10, max_moves=NODE_ACCELERATORS
        )
        self._numbers = count(1)
        self._pods: dict[str, Pod] = {}
        self._moving: dict[str, str] = {}
        self._proposals: tuple[Proposal, ...] = ()
        self._moves: deque[float] = deque()
        self.started = self.removed = self.moved = 0
        self.most_moved_share = 0.0

    def minute(self, now: float, wanted: Iterable[int] | None) -> None:
        """Moves that are done, then what services ask for, then what consolidation proposes."""
        started = [pod for pod in self._pods.values() if not pod.ready and now - pod.created_at >= _START_SECONDS]
        self._pods |= {pod.uid: replace(pod, ready=True) for pod in started}
        self._finish_moves()
        if wanted is not None:
            self._scale([int(target) for target in wanted], now)
        if self._churn.consolidate:
            self._consolidate(now)

    def nodes_in_use(self) -> int:
        return len({pod.node for pod in self._pods.values()})

    def _finish_moves(self) -> None:
        for old, new in list(self._moving.items()):
            if self._pods[new].ready:
                del self._pods[old], self._moving[old]

    def _scale(self, wanted: list[int], now: float) -> None:
        """Services that want fewer give first, so that the others find the room."""
        stand_ins = set(self._moving.values())
        mine: list[list[Pod]] = [[] for _ in wanted]
        for pod in self._pods.values():
            if pod.uid not in stand_ins and pod.service is not None:
                mine[int(pod.service.name)].append(pod)
        for pods, target in zip(mine, wanted, strict=True):
            for pod in victims(pods, self._rooms(), len(pods) - target) if target < len(pods) else ():
                self._remove(pod)
        emptied = frozenset(self._pods[uid].node or "" for uid in self._moving)
        new = [self._new(index, now) for index, target in enumerate(wanted) for _ in range(target - len(mine[index]))]
        self._pods |= {pod.uid: pod for pod in self._placed(new, emptied)}
        self.started += len(new)

    def _remove(self, pod: Pod) -> None:
        """A pod that is about to move takes the one that stands in for it along."""
        self.removed += 1
        del self._pods[pod.uid]
        stand_in = self._moving.pop(pod.uid, None)
        if stand_in is not None:
            del self._pods[stand_in]

    def _new(self, index: int, now: float) -> Pod:
        number = next(self._numbers)
        return Pod(
            namespace="fleet",
            name=f"replica-{number}",
            uid=f"{number}",
            resource_version="",
            created_at=now,
            accelerators={_RESOURCE: _size(index)},
            service=_key(index),
            variant=f"tp{_size(index)}",
        )

    def _placed(self, pods: list[Pod], avoid: frozenset[str]) -> list[Pod]:
        chosen = place(pods, self._rooms(), _anywhere, avoid, site=_one_site) if pods else {}
        return [replace(pod, node=chosen[pod.uid]) for pod in pods]

    def _rooms(self) -> dict[str, Room]:
        return rooms(self._nodes, self._pods.values())

    def _consolidate(self, now: float) -> None:
        while self._moves and now - self._moves[0] >= 3600:
            self._moves.popleft()
        if self._moving:
            return
        allowance = int(self._churn.moved_share_per_hour * len(self._pods)) - len(self._moves)
        self._proposals = proposals(
            by_node(self._pods.values()),
            self._rooms(),
            _anywhere,
            lambda pod: pod.ready,
            lambda _, residents: len(residents) <= allowance,
            self._rules,
            self._proposals,
            now,
            site=_one_site,
        )
        for proposal in self._proposals:
            if due(proposal, self._rules, now):
                self._move([pod for pod in self._pods.values() if pod.node == proposal.node], proposal.node, now)

    def _move(self, residents: list[Pod], source: str, now: float) -> None:
        before = len(self._pods)
        new = [self._new(int(pod.service.name), now) for pod in residents if pod.service]
        for old, pod in zip(residents, self._placed(new, frozenset({source})), strict=True):
            self._pods[pod.uid] = pod
            self._moving[old.uid] = pod.uid
            self._moves.append(now)
        self.moved += len(new)
        self.most_moved_share = max(self.most_moved_share, len(self._moves) / before)


def _size(index: int) -> int:
    return SIZES[index % len(SIZES)]


def _key(index: int) -> ServiceKey:
    return ServiceKey("fleet", str(index))


def _anywhere(_pod: Pod, _room: Room) -> bool:
    return True


def _one_site(_node: Node) -> str:
    return ""


def _accelerators(wanted: Iterable[int]) -> int:
    return sum(int(target) * _size(index) for index, target in enumerate(wanted))


def _nodes_enough_for(wanted: Iterable[Iterable[int]]) -> tuple[Node, ...]:
    most = max(_accelerators(row) for row in wanted)
    return tuple(_node(index) for index in range(most * 2 // NODE_ACCELERATORS + 1))


def _node(index: int) -> Node:
    return Node(
        name=f"node-{index:04}",
        labels={},
        allocatable={_RESOURCE: NODE_ACCELERATORS},
        cpu_cores=math.inf,
        memory_bytes=math.inf,
        ready=True,
        schedulable=True,
        created_at=0.0,
    )
