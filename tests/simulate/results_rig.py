"""Canned results and small lists for the tests of the results page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from tokenservice.core.utilization import Waterfall
from tokenservice.simulate.fleet import Moment
from tokenservice.simulate.oracle import Foresight
from tokenservice.simulate.result import Result, ServiceResult

SCENARIOS = Path(__file__).parents[2] / "docs" / "scenarios"
QUICK = SCENARIOS / "quick.yaml"


def service(attainment: float, tier: str = "Guaranteed") -> ServiceResult:
    """A service that attains so much, for want of TTFT."""
    return ServiceResult(
        tier=tier,
        requests=100,
        attainment=attainment,
        ttft_attainment=attainment,
        tpot_attainment=1.0,
        deferrable=1.0,
        output_tokens=1000,
        tokens_owed=0,
        worth=0.5,
    )


def result(
    *, hours: float = 10.0, utilization: float = 0.5, attainment: float = 0.995, policy: str = "p", seed: int = 0
) -> Result:
    """A run of one service; what is not U is headroom, but for a tenth that loads."""
    return Result(
        scenario="quick",
        policy=policy,
        seed=seed,
        utilization=utilization,
        waterfall=Waterfall(
            utilization=utilization,
            slo_misses=0.0,
            headroom=0.9 - utilization,
            cold_start=0.1,
            draining=0.0,
            fragmentation=0.0,
            idle_nodes=0.0,
        ),
        services={"chat": service(attainment)},
        accelerator_hours=hours,
        dollars=3 * hours,
        dollars_per_million_tokens=2.5,
        joules_per_token=1.25,
        goodput_per_accelerator_hour=100.0,
        changes=1,
        replicas_started=1,
        moves=0,
        nodes_started=1,
        tokens_owed=0,
        timeline=(Moment(0.0, 4, {"chat": 4}, {"chat": 4}, {"chat": 2.5}),),
    )


def foresight(hours: float = 6.0) -> Foresight:
    """The oracle at U 0.8."""
    return Foresight(
        accelerator_hours=hours, attainment=0.991, work=0.8 * hours * 3600, factor=1.1, smoothed_seconds=30.0
    )


def seeded(*figures: float) -> tuple[Result, ...]:
    """Runs with these hours, a seed each."""
    return tuple(replace(result(hours=hours), seed=seed) for seed, hours in enumerate(figures))


def written(folder: Path, *studies: dict[str, object]) -> Path:
    """A list of studies in a file; each has what it must have, and its scenario is `quick.yaml` unless it says."""
    body = [{"title": "T", "scenario": str(QUICK), "secondsPerRun": 1, "peers": "none"} | it for it in studies]
    file = folder / "results.yaml"
    file.write_text(yaml.safe_dump({"studies": body}))
    return file


def minute(folder: Path, name: str = "minute", **fields: object) -> Path:
    """A scenario file: the first minute of `quick.yaml`."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"extends": str(QUICK), "name": name, "durationSeconds": 60} | fields))
    return file
