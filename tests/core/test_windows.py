"""Over which times metrics are read."""

from __future__ import annotations

import pytest

from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.windows import Windows


@pytest.mark.parametrize(
    ("asked", "peak"),
    [(None, 300), (0, 60), (59, 60), (61, 61)],
    ids=["default", "at once", "shorter than two windows of rates", "longer"],
)
def test_the_peak_outlasts_the_dip_that_a_new_replica_makes(asked: int | None, peak: int) -> None:
    """Its first requests are in no rate, for one window: with no look back that is longer, it would go again."""
    consolidation = {"scaleDownWindowSeconds": asked} if asked is not None else {}
    fleet = TokenFleetSpec.model_validate({"consolidation": consolidation})
    assert Windows.of(fleet).peak == peak
