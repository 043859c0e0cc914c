"""Which variant each new service starts with: all of them at once, by what they cost together.

The cheapest variant of each would do if there were enough of every class. Where a class is short, the question is who
gives way to another variant at the least extra cost: a multiple-choice knapsack. Each class gets a shadow price per
accelerator, raised while more is asked for than there is (the Lagrangian dual, by subgradient); every service takes
what is cheapest at these prices; what then still does not fit gives way in the order of regret per accelerator. Against
the linear-programming bound the loss is a fraction of a percent (`tokenservice bench plan` measures it).

Tiers are strict: a tier chooses from what the tiers before have left. Services that run keep the variant they have,
for a change would cost a start of every replica; what they still miss is taken off first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokenservice.api.token_service import Tier
from tokenservice.core.allocation import ALTERNATIVE_PRICE_LIMIT, Want
from tokenservice.core.model import ServiceKey

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_ROUNDS = 120
_TIERS = (Tier.GUARANTEED, Tier.ELASTIC, Tier.SPOT)


@dataclass(frozen=True, slots=True)
class Ways:
    """What services may choose from, a row each: US dollars per hour, accelerators and class of every way.

    All have the shape (services, ways); a way that is none costs infinity. `stock` is what each class has left.
    """

    cost: Floats
    accelerators: Floats
    classes: Ints
    stock: Floats

    def used(self, choice: Ints) -> Floats:
        """Accelerators of each class that a choice of ways takes."""
        rows = np.arange(len(choice))
        taken = self.accelerators[rows, choice]
        return np.bincount(self.classes[rows, choice], weights=taken, minlength=len(self.stock)).astype(np.float64)


def chosen(wants: Sequence[Want], stock: Mapping[str, int]) -> dict[ServiceKey, int]:
    """Index in `ranked` for each want that has options; `stock` counts free accelerators by class."""
    names = sorted(stock)
    left = np.array([stock[name] for name in names], dtype=float)
    found: dict[ServiceKey, int] = {}
    for tier in _TIERS:
        mine = [want for want in wants if want.service.spec is not None and want.service.spec.tier is tier]
        left = np.maximum(left - _growth(mine, names), 0.0)
        free = [want for want in mine if want.options]
        if free:
            ways = _ways(free, names, left)
            choice = choose(ways)
            left = np.maximum(left - ways.used(choice), 0.0)
            found |= {want.service.key: int(index) for want, index in zip(free, choice, strict=True)}
    return found


def choose(ways: Ways) -> Ints:
    """The way of each service. Where not all find room it is the cheapest: then age decides, or nodes are added."""
    cheapest: Ints = np.argmin(ways.cost, axis=1)
    if np.all(ways.used(cheapest) <= ways.stock):
        return cheapest
    priced = ways.cost + _prices(ways)[ways.classes] * ways.accelerators
    found = _repaired(ways, priced, np.argmin(priced, axis=1))
    return _improved(ways, found) if np.all(ways.used(found) <= ways.stock) else cheapest


def _growth(wants: Sequence[Want], names: Sequence[str]) -> Floats:
    """Accelerators that services without a choice still miss of their variant."""
    missing = dict.fromkeys(names, 0.0)
    for want in wants:
        if not want.options and want.variant.accelerator.name in missing:
            there = sum(want.current.values())
            missing[want.variant.accelerator.name] += max(0, want.replicas - there) * want.variant.accelerators
    return np.array([missing[name] for name in names])


def _ways(wants: Sequence[Want], names: Sequence[str], stock: Floats) -> Ways:
    width = max(len(want.options) for want in wants)
    shape = (len(wants), width)
    ways = Ways(np.full(shape, np.inf), np.zeros(shape), np.zeros(shape, dtype=np.int64), stock)
    place = {name: index for index, name in enumerate(names)}
    for row, want in enumerate(wants):
        for column, ((variant, _), count) in enumerate(zip(want.ranked, want.options, strict=True)):
            if count > 0 and variant.accelerator.name in place:
                ways.cost[row, column] = count * variant.price_per_hour
                ways.accelerators[row, column] = count * variant.accelerators
                ways.classes[row, column] = place[variant.accelerator.name]
        ways.cost[row, ways.cost[row] > ALTERNATIVE_PRICE_LIMIT * ways.cost[row].min()] = np.inf
        if not np.isfinite(ways.cost[row]).any():
            ways.cost[row, want.primary] = 0.0
    return ways


def _prices(ways: Ways) -> Floats:
    """Shadow prices, US dollars per accelerator-hour, of the best dual bound that the subgradient meets."""
    finite = np.isfinite(ways.cost)
    scale = float(np.median(ways.cost[finite] / np.maximum(ways.accelerators[finite], 1.0)))
    price, best, highest = np.zeros(len(ways.stock)), np.zeros(len(ways.stock)), -np.inf
    for number in range(_ROUNDS):
        priced = ways.cost + price[ways.classes] * ways.accelerators
        choice = np.argmin(priced, axis=1)
        bound = float(priced.min(axis=1).sum() - price @ ways.stock)
        if bound > highest:
            highest, best = bound, price
        over = (ways.used(choice) - ways.stock) / np.maximum(ways.stock, 1.0)
        price = np.maximum(0.0, price + scale / (1 + number / 6) * np.clip(over, -1.0, 1.0))
    return best


def _repaired(ways: Ways, priced: Floats, choice: Ints) -> Ints:
    """Moves services off classes that are asked for too much, least regret per accelerator first."""
    choice, used = choice.copy(), ways.used(choice)
    rows = np.arange(len(choice))
    freed = ways.accelerators[rows, choice][:, None] - np.where(
        ways.classes == ways.classes[rows, choice][:, None], ways.accelerators, 0.0
    )
    regret = (priced - priced[rows, choice][:, None]) / np.maximum(freed, 1e-9)
    regret[freed <= 0] = np.inf
    moved = set[int]()
    for flat in np.argsort(regret, axis=None, kind="stable"):
        row, column = divmod(int(flat), regret.shape[1])
        if not np.isfinite(regret[row, column]) or np.all(used <= ways.stock):
            break
        old, new = ways.classes[row, choice[row]], ways.classes[row, column]
        takes = ways.accelerators[row, column]
        if row not in moved and used[old] > ways.stock[old] and (old == new or used[new] + takes <= ways.stock[new]):
            used[old] -= ways.accelerators[row, choice[row]]
            used[new] += takes
            choice[row] = column
            moved.add(row)
    return choice


def _improved(ways: Ways, choice: Ints) -> Ints:
    """Lets services take a cheaper way for which there is room after all, the largest saving first."""
    choice, used = choice.copy(), ways.used(choice)
    rows = np.arange(len(choice))
    saving = ways.cost[rows, choice][:, None] - ways.cost
    for flat in np.argsort(-saving, axis=None, kind="stable"):
        row, column = divmod(int(flat), saving.shape[1])
        if saving[row, column] <= 0:
            break
        if ways.cost[row, column] >= ways.cost[row, choice[row]]:
            continue
        without = used - _taken(ways, row, int(choice[row]))
        then = without + _taken(ways, row, column)
        new = ways.classes[row, column]
        if then[new] <= ways.stock[new]:
            choice[row], used = column, then
    return choice


def _taken(ways: Ways, row: int, column: int) -> Floats:
    taken = np.zeros(len(ways.stock))
    taken[ways.classes[row, column]] = ways.accelerators[row, column]
    return taken
