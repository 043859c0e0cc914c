"""The simulator's counts are those of the real control plane."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from e2e.agreement.counts import agreement, real, setting, simulated, table

OUT = Path(__file__).resolve().parents[1] / "out"
WARM_UP_SECONDS = 60
"""The operator begins with a service that nobody used, the simulator with one that nobody has looked at."""

SHARE = 0.95
LEAST_SWING = 4
"""Replicas between the least and the most of a service: counts that stand still agree by themselves."""


@pytest.mark.timeout(900)
def test_the_simulator_and_the_control_plane_agree_on_replica_counts() -> None:
    given = setting()
    simulation, reality = simulated(given), real(given)
    shares = {
        f"{name} {what}": agreement(
            getattr(simulation, what)[name], getattr(reality, what)[name], start=WARM_UP_SECONDS
        )
        for name in simulation.asked
        for what in ("asked", "ready")
    }
    OUT.mkdir(exist_ok=True)
    numbers = {"within_one": shares, "simulated": asdict(simulation), "real": asdict(reality)}
    (OUT / "agreement.json").write_text(json.dumps(numbers))
    print(table(simulation, reality))
    print(", ".join(f"{name}: {share:.1%}" for name, share in shares.items()))
    assert all(max(counts) - min(counts) >= LEAST_SWING for counts in simulation.asked.values())
    assert min(shares.values()) >= SHARE, shares
