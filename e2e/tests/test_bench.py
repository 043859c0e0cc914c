"""The benchmark of scale, small enough for a test: its figures come out, and rest is rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.bench.__main__ import main

SERVICES = 40


@pytest.mark.timeout(600)
def test_a_small_fleet_becomes_deployments_rests_and_is_planned_alike_after_a_restart(tmp_path: Path) -> None:
    written = tmp_path / "bench.json"
    options = [f"--services={SERVICES}", "--rounds=1", "--idle-seconds=20", "--scrape-seconds=5", "--status-seconds=4"]
    assert main([*options, f"--json={written}"]) == 0
    found = json.loads(written.read_text())
    assert found["services"] == SERVICES
    assert found["idle_writes_other_than_lease"] == 0, found["idle_writes"]
    assert found["idle_api_requests_per_minute"] <= 60, (
        "half of them more than the Lease's are chance in so short a time"
    )
    assert 1 <= found["prometheus_queries_per_round"] < 20, "as many for forty services as for one"
    assert 0 < found["rss_bytes"] < 300e6
    assert found["apply_to_deployment_seconds"] > 0
    assert found["restart_to_plan_seconds"] > 0
