"""What stands in README and docs/demo.md comes from the numbers of a run."""

from __future__ import annotations

from typing import Any

from e2e.demo.readme import block, hpa_block


def phase(utilization: float, attainment: float | None = 0.995) -> dict[str, Any]:
    return {
        "utilization": utilization,
        "slo_attainment": 0.998,
        "accelerator_hours": 4.0,
        "dollars_per_million_tokens": 7.75,
        "joules_per_token": 1.5,
        "client_worst_lag_seconds": 0.03,
        "services": {"chat": {"attainment": attainment}},
    }


def test_the_readme_says_how_many_times_static_it_is() -> None:
    numbers = {"trace": "drawn", "static": phase(0.2), "operator": phase(0.3, None), "reaction_seconds": None}
    text = block(numbers)
    assert "| SLO-goodput utilization | 0.200 | 0.300 |" in text
    assert "1.50 times the utilization of static sizes. Traffic: drawn." in text
    assert "chat 99.5% and -." in text


def test_every_setting_of_the_hpa_has_a_column() -> None:
    tried = {"HPA at 0.5": phase(0.1), "HPA at 0.7": phase(0.15, 0.9)}
    text = hpa_block({"trace": "drawn", "static": phase(0.2), "operator": phase(0.3), "hpa_tried": tried})
    command = "`python -m e2e.demo.hpa --share 0.5 --share 0.7`"
    assert text.splitlines()[0] == f"| one run of {command} | static sizes | operator | HPA at 0.5 | HPA at 0.7 |"
    assert "| chat, within both objectives | 99.5% | 99.5% | 99.5% | 90.0% |" in text
    assert text.endswith("late by at most 0.03 s.\n")


def test_a_run_on_a_busy_machine_is_called_that() -> None:
    late = phase(0.3) | {"client_worst_lag_seconds": 1.7}
    numbers = {"trace": "drawn", "static": phase(0.2), "operator": late, "hpa_tried": {}}
    assert "late by at most 1.70 s: the machine was busy" in hpa_block(numbers)
