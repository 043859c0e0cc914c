"""One run of the results page: a policy at one of its settings, or the oracle's search for one service."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenservice.simulate.assemble import Setting, setting
from tokenservice.simulate.compare import ORACLE, perform
from tokenservice.simulate.compare import Task as Task
from tokenservice.simulate.oracle import Foresight, Near, search
from tokenservice.simulate.policies import POLICIES
from tokenservice.simulate.result import Result
from tokenservice.simulate.results.code import Name, everything
from tokenservice.simulate.run import OPERATOR
from tokenservice.simulate.scenario import load


@dataclass(frozen=True, slots=True)
class Search:
    """The oracle for one service, on the scenario's seed 0; `near` is where to begin."""

    scenario: Path
    service: str
    near: Near | None = None
    policy: str = ORACLE


Unit = Task | Search
Outcome = Result | Foresight
Found = Mapping[Unit, Outcome]


def run_unit(unit: Unit) -> Outcome:
    """Runs it, in whichever process."""
    if isinstance(unit, Task):
        return perform(unit)
    read = _setting(unit.scenario)
    offer = next(one for key, one in read.offers.items() if key.name == unit.service)
    return search(read, offer, near=unit.near)


@lru_cache(maxsize=2)
def _setting(scenario: Path) -> Setting:
    return setting(load(scenario), seed=0)


_RUN = "tokenservice.simulate"
_EVERY: tuple[Name, ...] = ((f"{_RUN}.scenario", "load"), (f"{_RUN}.assemble", "setting"))
_FLEET: tuple[Name, ...] = ((f"{_RUN}.assemble", "fleet"), (f"{_RUN}.result", "result"))
DECISION: frozenset[Name] = frozenset(
    {
        (f"{_RUN}.control", "Operator"),
        (f"{_RUN}.assemble", "operator"),
        ("tokenservice.core.engines", "command"),  # what a simulated engine is started with is read by nobody
    }
)
"""Where the operator's own decision begins: no other policy's result rests on what lies behind."""

_PEERS: frozenset[Name] = frozenset({(f"{_RUN}.policies", "POLICIES")})


def rests_on(unit: Unit) -> tuple[tuple[Name, ...], frozenset[Name]]:
    """Where the code of a run begins, and what is not its own."""
    if isinstance(unit, Search):
        return (*_EVERY, (f"{_RUN}.oracle", "search")), DECISION
    if unit.policy == OPERATOR:
        return (*_EVERY, *_FLEET), frozenset()
    if unit.policy not in POLICIES:
        return (*_EVERY, *_FLEET, (f"{_RUN}.run", "decider")), DECISION | _PEERS
    return (*_EVERY, *_FLEET, *everything(module_of(unit.policy))), DECISION


def module_of(policy: str) -> str:
    """The module that a peer stands in."""
    make = POLICIES[policy].sweep[0].make
    return str(getattr(make, "func", make).__module__)
