"""A scenario in YAML: what traffic goes to which services, for how long.

seconds: 120            # of real time
time_scale: 12          # arrivals are this much denser than in the trace
seed: 1
services:
  - {name: chat, namespace: team, service: chat, model: chat, ttft_seconds: 2, tpot_seconds: 0.05,
     trace: conv, start_seconds: 0, copies: 1.5}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from e2e.load.account import Account, Objectives, Outcome
from e2e.load.client import Target
from e2e.load.endpoints import ServiceKey
from e2e.load.trace import Kind, Recipe


@dataclass(frozen=True, slots=True)
class Scenario:
    """What to send where, for how long."""

    seconds: float
    time_scale: float
    seed: int
    targets: Mapping[str, Target]
    recipes: Mapping[str, Recipe]


def read_scenario(text: str) -> Scenario:
    """Parse the YAML above. KeyError or ValueError name what is missing or wrong."""
    scenario = yaml.safe_load(text)
    services = {str(service["name"]): service for service in scenario["services"]}
    return Scenario(
        float(scenario["seconds"]),
        float(scenario.get("time_scale", 1)),
        int(scenario.get("seed", 0)),
        {name: _target(name, service) for name, service in services.items()},
        {name: _recipe(service) for name, service in services.items()},
    )


def _target(name: str, service: Mapping[str, Any]) -> Target:
    return Target(
        ServiceKey(service.get("namespace", "default"), service.get("service", name)),
        service.get("model", name),
        Objectives(float(service["ttft_seconds"]), float(service["tpot_seconds"])),
    )


def _recipe(service: Mapping[str, Any]) -> Recipe:
    return Recipe(
        Kind(service["trace"]),
        float(service.get("start_seconds", 0)),
        float(service.get("copies", 1)),
        float(service.get("jitter_seconds", 2)),
    )


def summary(accounts: Mapping[str, Account]) -> dict[str, dict[str, float]]:
    """Totals per service."""
    return {
        name: {
            "arrived": account.arrived,
            **{str(outcome): account.outcomes[outcome] for outcome in Outcome},
            "attainment": account.attainment,
            "output_tokens": account.delivered_output_tokens,
            "input_tokens": account.delivered_input_tokens,
        }
        for name, account in accounts.items()
    }
