"""How the parts of one process hang together, where that decides something."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from tokenservice.app.runtime import Operator
from tokenservice.app.settings import Settings
from tokenservice.core.model import Plan
from tokenservice.edge.metrics import Metrics


@pytest.mark.parametrize(
    ("passes", "sees_pods", "plans"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_pods_are_held_back_only_for_who_plans_and_sees_them(*, passes: bool, sees_pods: bool, plans: bool) -> None:
    made = Operator(cast(Any, None), Settings(), Metrics(), lambda snapshot, now: Plan())
    for store in made.stores:
        if sees_pods or store.kind != "Pod":
            store.replace({}, "1")
    if passes:
        made.planner.passed_at = time.monotonic()
    assert made._plans() is plans
