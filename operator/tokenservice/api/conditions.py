"""Conditions as the Kubernetes API conventions and kstatus want them, and the status a new object starts with.

A resource without conditions counts as finished for GitOps tools, so the CRD itself defaults Ready=Unknown.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from tokenservice.api.base import REQUIRED, ApiModel, field


class ConditionType(StrEnum):
    """All of them are published from the first write on."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    OBJECTIVES_MET = "ObjectivesMet"
    CAPACITY_AVAILABLE = "CapacityAvailable"
    METRICS_AVAILABLE = "MetricsAvailable"
    MODEL_VERIFIED = "ModelVerified"


class Condition(ApiModel):
    """metav1.Condition."""

    type: str = field(REQUIRED, "Name of the condition", max_length=316)
    status: str = field(REQUIRED, "True, False or Unknown", schema={"enum": ["True", "False", "Unknown"]}, max_length=7)
    reason: str = field(REQUIRED, "CamelCase reason of the last change", min_length=1, max_length=1024)
    message: str = field(REQUIRED, "The same in a sentence for people", max_length=32768)
    last_transition_time: str = field(
        REQUIRED, "When the status last changed", schema={"format": "date-time"}, max_length=64
    )
    observed_generation: int | None = field(
        None, "Generation of the spec that it speaks of", unit="generation", default_text="0", ge=0
    )


CONDITIONS_SCHEMA: dict[str, Any] = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


def initial_conditions() -> list[dict[str, str]]:
    """What the CRD defaults before the operator has looked."""
    return [
        {
            "type": "Ready",
            "status": "Unknown",
            "reason": "Pending",
            "message": "Waiting for the operator",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }
    ]
