"""kstatus, the rules by which GitOps tools judge any object: sigs.k8s.io/cli-utils, pkg/kstatus/status.

Written from its published rules for objects of unknown kinds. Note the last line: an object that says nothing of
itself counts as done.
"""

from __future__ import annotations

from typing import Any

TERMINATING, IN_PROGRESS, FAILED, CURRENT = "Terminating", "InProgress", "Failed", "Current"


def kstatus(body: dict[str, Any]) -> str:
    """How Flux, kpt and their kin see the object."""
    metadata, status = body.get("metadata", {}), body.get("status", {})
    if metadata.get("deletionTimestamp"):
        return TERMINATING
    observed = status.get("observedGeneration")
    if observed is not None and observed != metadata.get("generation"):
        return IN_PROGRESS
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", ())}
    if conditions.get("Reconciling") == "True":
        return IN_PROGRESS
    if conditions.get("Stalled") == "True":
        return FAILED
    if conditions.get("Ready") in ("False", "Unknown"):
        return IN_PROGRESS
    return CURRENT
