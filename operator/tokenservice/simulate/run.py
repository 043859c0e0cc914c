"""One run of a scenario under a policy, by name."""

from __future__ import annotations

from collections.abc import Callable

from tokenservice.core.model import ServiceKey
from tokenservice.errors import InputError
from tokenservice.simulate.assemble import Setting, fleet
from tokenservice.simulate.policies import POLICIES
from tokenservice.simulate.policies.static import Sizes, Static, pooled_sizes, smallest_sizes
from tokenservice.simulate.policy import Policy
from tokenservice.simulate.result import Result, result

OPERATOR = "operator"
_STATIC = {
    "static-p99": "each service at ceil(p99 of its 10 s demand / lambda*), for the whole time",
    "static-pooled": "the p99 of the summed demand, shared out, for the whole time",
    "static-smallest": "each service at the fewest replicas that keep 99 %, found by runs, for the whole time",
}

_SOON_SECONDS = 10.0
"""Every run starts at the sizes of static-p99: another static fleet is to have its own at once, not in an hour."""


def names() -> dict[str, str]:
    """Every policy, and what it is in a line."""
    peers = {name: peer.description for name, peer in POLICIES.items()}
    return {OPERATOR: "this operator's decision, the very code it runs"} | _STATIC | peers


def run(
    setting: Setting, policy: str = OPERATOR, choice: int = 0, progress: Callable[[float], None] = lambda _: None
) -> Result:
    """Runs the scenario once. `choice` is a peer's setting, its published default first. InputError for no policy."""
    return carried_out(setting, decider(setting, policy, choice, progress), label(policy, choice), progress)


def carried_out(
    setting: Setting, decides: Policy | None, name: str, progress: Callable[[float], None] = lambda _: None
) -> Result:
    """Runs the scenario once under a policy that is at hand; None stands for the operator."""
    running = fleet(setting, decides)
    running.run(progress)
    return result(running, scenario=setting.scenario.name, policy=name, seed=setting.seed)


def label(policy: str, choice: int = 0) -> str:
    """`keda` or `keda (target=12)`."""
    if not choice:
        return policy
    return f"{policy} ({POLICIES[policy].sweep[choice].label})"


def looks_ahead(policy: str, choice: int = 0) -> bool:
    """Whether it is told the true rate of the future."""
    return policy in POLICIES and POLICIES[policy].sweep[choice].foresight


def decider(
    setting: Setting, policy: str, choice: int = 0, progress: Callable[[float], None] = lambda _: None
) -> Policy | None:
    """A new policy; None stands for the operator."""
    if policy == OPERATOR:
        return None
    if policy == "static-p99":
        return Static(policy, setting.static, period_seconds=_SOON_SECONDS)
    if policy == "static-pooled":
        demand = {key: one.demand for key, one in setting.offers.items()}
        sizes = pooled_sizes(demand, {key: one.lambda_star for key, one in setting.offers.items()})
        return Static(policy, sizes, period_seconds=_SOON_SECONDS)
    if policy == "static-smallest":
        return Static(policy, _smallest(setting, progress), period_seconds=_SOON_SECONDS)
    return POLICIES[known(policy)].sweep[choice].make()


def _smallest(setting: Setting, progress: Callable[[float], None]) -> dict[ServiceKey, int]:
    """By about ten runs of the scenario, from the sizes of static-p99; each is told from 0 to 1."""

    def attained(sizes: Sizes) -> dict[ServiceKey, float]:
        static = Static("static", sizes, period_seconds=_SOON_SECONDS)
        found = carried_out(setting, static, static.name, progress).services
        return {key: found[key.name].attainment for key in sizes}

    return smallest_sizes(attained, setting.static)


def known(policy: str) -> str:
    """The name, if there is such a policy: before anything is measured for it. InputError if not."""
    if policy not in names():
        raise InputError(f"there is no policy {policy!r}; there are {', '.join(names())}")
    return policy
