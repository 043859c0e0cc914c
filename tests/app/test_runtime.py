"""How the parts of one process hang together, where that decides something."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from tokenservice.app.runtime import Operator, _set_up_logging
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


@pytest.fixture
def kopf_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("kopf.objects")
    before = list(logger.filters)
    yield logger
    logger.filters[:] = before


@pytest.mark.parametrize(("error", "traced"), [(RecursionError("too deep"), False), (KeyError("spec"), True)])
def test_an_object_too_deep_for_kopf_does_not_fill_the_log(
    error: Exception, traced: bool, kopf_logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    _set_up_logging("info")
    try:
        raise error
    except Exception as caught:
        kopf_logger.exception("unexpected: %r", caught)
    assert (caplog.records[0].exc_info is not None) is traced
