"""What the demo serves and to whom: six TokenServices of `docs/examples`, each with its share of a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from e2e.load.account import Objectives
from e2e.load.client import Target
from e2e.load.endpoints import ServiceKey
from e2e.load.trace import Kind, Recipe
from e2e.testbed.nodes import H100, L40S, MI300X, Pool
from tokenservice.api.token_service import TokenServiceSpec

Json = dict[str, Any]
EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"
NAMESPACE = "default"

TIME_SCALE = 10.0
"""Arrivals, cold starts, node starts and cooldowns run so much faster than life; engine steps do not."""

WARM_UP_SECONDS = 30.0
MEASURED_SECONDS = 120.0
NODE_START_SECONDS = 180.0
NODE_IDLE_SECONDS = 60.0

RECIPES: Mapping[str, Recipe] = {
    "chat-70b": Recipe(Kind.CONV, start_s=0, copies=0.5),
    "chat-8b": Recipe(Kind.CONV, start_s=1700, copies=0.5),
    "code-32b": Recipe(Kind.CODE, start_s=0, copies=0.7),
    "assistant-mi300x": Recipe(Kind.CODE, start_s=1500, copies=0.4),
    "reasoner-120b": Recipe(Kind.RARE, start_s=600, copies=6),
    "helper-8b": Recipe(Kind.RARE, start_s=300, copies=1.5),
}
"""Two chats on `conv`, two coding assistants on `code`, two models that are rarely used."""


@dataclass(frozen=True, slots=True)
class Example:
    """A TokenService of the documentation."""

    name: str
    document: Json
    spec: TokenServiceSpec

    @property
    def model_name(self) -> str:
        return self.spec.model.served_name or self.name

    @property
    def target(self) -> Target:
        goals = self.spec.objectives
        bounds = Objectives(goals.time_to_first_token.seconds, goals.time_per_output_token.seconds)
        return Target(ServiceKey(NAMESPACE, self.name), self.model_name, bounds)


def examples() -> dict[str, Example]:
    """The six services, by name, in the order of the recipes."""
    found = {}
    for name in RECIPES:
        document = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
        found[name] = Example(name, document, TokenServiceSpec.model_validate(document["spec"]))
    return found


_L40S = replace(L40S, count=1, cpu=16, memory="128Gi", labels=dict(L40S.labels) | {"nvidia.com/gpu.count": "1"})
"""One card a node, as clouds rent them."""


def pools(time_scale: float) -> tuple[Pool, ...]:
    """Node pools of the three kinds, times compressed."""
    start, idle = NODE_START_SECONDS / time_scale, NODE_IDLE_SECONDS / time_scale
    return tuple(
        Pool(template=template, maximum=maximum, start_seconds=start, idle_seconds=idle)
        for template, maximum in ((H100, 16), (MI300X, 6), (_L40S, 16))
    )


def fleet(time_scale: float) -> Json:
    """The TokenFleet: as full as the objectives allow, cooldowns compressed, windows as short as 5 s scrapes allow."""
    return {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "TokenFleet",
        "metadata": {"name": "default"},
        "spec": {
            "targetUtilization": 0.9,
            "prometheus": {"windowSeconds": 15, "stalenessSeconds": 20},
            "consolidation": {
                "scaleDownWindowSeconds": round(300 / time_scale),
                "cooldownSeconds": round(300 / time_scale),
                "maxConcurrentMoves": 2,
            },
        },
    }
