"""The whole bed as the tests want it: a quick fleet policy, the slow model, and everything running."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import pytest
import yaml

from e2e.testbed.bed import Bed
from e2e.testbed.operator import NAMESPACE
from e2e.tests.support.api import eventually
from e2e.tests.support.site import profile

Json = dict[str, Any]

TIME_SCALE = 40.0
"""Engines start within a second or two."""

VALUES: Json = {"adapterLoader": {"image": f"example.org/adapter-loader@sha256:{'0' * 64}"}}
"""Of the chart. The image is never run: the farm plays it with its own program."""

OPERATOR = "system:serviceaccount:tokenservice-system:tokenservice"

FLEET: Json = {
    "apiVersion": "taas.dev/v1alpha1",
    "kind": "TokenFleet",
    "metadata": {"name": "default"},
    "spec": {
        "prometheus": {"windowSeconds": 8, "stalenessSeconds": 10},
        # Nothing moves by itself; the test of packing says otherwise.
        "consolidation": {"scaleDownWindowSeconds": 10, "cooldownSeconds": 3600},
    },
}
"""Minutes of the defaults as seconds: the tests ask what happens, not how patiently."""


def prepare(bed: Bed) -> None:
    """What is there beside the chart."""
    bed.cluster.apply(FLEET, profile("vLLM"), profile("SGLang"))


def cleared(bed: Bed) -> None:
    """Takes it away from a cluster that goes on without the tests."""
    if not bed.cluster.owned:
        objects = yaml.safe_dump_all([FLEET, profile("vLLM"), profile("SGLang")])
        bed.cluster.kubectl("delete", "--ignore-not-found", "--filename=-", stdin=objects)


def mended(bed: Bed) -> None:
    """Starts again whatever a test has stopped."""
    if "prometheus" not in bed.prometheus.processes.pids:
        bed.prometheus.start()
    if "farm" not in bed.processes.pids:
        bed.start_farm()
    if "operator" not in bed.processes.pids:
        bed.operator.start()
    bed.processes.check()
    eventually(lambda: leads(bed), "the operator leads", 120)


def reinstalled(bed: Bed, *missing: str, **values: Any) -> None:
    """Brings the chart to these values, and starts the operator afresh, without the `missing` objects."""
    bed.operator.values = bed.operator.values | values
    bed.operator.stop()
    bed.operator.install()
    for thing in missing:
        bed.cluster.kubectl("delete", thing, "-n", NAMESPACE, "--ignore-not-found")
    mended(bed)


def leads(bed: Bed) -> bool:
    """Whether the operator leads, and its passes succeed."""
    state = health(bed).get("state") or {}
    return bool(state.get("leading") and state.get("planning"))


def health(bed: Bed) -> Json:
    """What the operator says of itself; empty when it says nothing."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{bed.operator.health_port}/healthz", timeout=2) as answer:
            found: Json = json.load(answer)
            return found
    except (OSError, ValueError):
        return {}


def audit(bed: Bed, user: str = OPERATOR, since: float = 0.0, stage: str = "ResponseComplete") -> list[Json]:
    """What a user asked of the API server since a moment (seconds of the epoch), from its audit log.

    A watch that goes on has reached the stage ResponseStarted only.
    """
    log, found = bed.cluster.folder / "audit.log", []
    if not bed.cluster.owned:
        pytest.skip("the audit log of a cluster that was there is not ours to read")
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since))
    with log.open() as lines:
        for line in lines:
            if user not in line:
                continue
            entry = json.loads(line)
            mine = entry["user"]["username"] == user and entry["stage"] == stage
            if mine and entry["requestReceivedTimestamp"] >= moment:
                found.append(entry)
    return found


def writes(entries: list[Json]) -> list[str]:
    """The writes among them, in words."""
    verbs = ("create", "update", "patch", "delete", "deletecollection")
    return [
        "{verb} {resource} {namespace}/{name} -> {code}".format(
            verb=entry["verb"],
            resource=entry["objectRef"]["resource"],
            namespace=entry["objectRef"].get("namespace", ""),
            name=entry["objectRef"].get("name", ""),
            code=entry["responseStatus"]["code"],
        )
        for entry in entries
        if entry["verb"] in verbs
    ]
