"""The chart: what it installs, what an upgrade changes, and what is left when it is gone."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import pytest

from e2e.testbed.cluster import TestbedError
from e2e.testbed.operator import CHART, NAMESPACE, RELEASE
from e2e.tests.support.api import eventually
from e2e.tests.support.bed import OPERATOR, audit, leads, mended
from e2e.tests.support.site import Site

pytestmark = pytest.mark.cluster

WEBHOOK = "tokenservice-pods"


def uids(site: Site) -> list[str]:
    return sorted(pod["metadata"]["uid"] for pod in site.pods())


def gated_on_creation(site: Site) -> bool:
    """Whether a new pod of the service is held for the planner."""
    with site.watched("pods") as record:
        site.kubectl("delete", "pod", site.pods()[0]["metadata"]["name"], "--wait=false")
        added = eventually(
            lambda: [body for kind, body in record.events if kind == "ADDED" and _new(body)], "a new pod"
        )
    return any(gate["name"] == "taas.dev/placement" for gate in added[0]["spec"].get("schedulingGates") or [])


def _new(pod: dict[str, dict[str, object]]) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and not pod["spec"].get("nodeName")


def test_an_install_brings_the_kinds_the_catalogue_and_a_webhook_that_is_trusted(site: Site) -> None:
    kinds = site.kubectl("api-resources", "--api-group=taas.dev", "-o", "name").split()
    assert {kind.partition(".")[0] for kind in kinds} == {
        "tokenservices",
        "tokenfleets",
        "acceleratorclasses",
        "capacityprofiles",
    }
    classes = {found["metadata"]["name"] for found in site.api.list("acceleratorclasses")}
    assert {"h100", "h200", "b200", "a100", "l40s", "l4", "mi300x", "mi325x"} <= classes
    hooks = site.api.get("mutatingwebhookconfigurations", WEBHOOK)
    assert hooks is not None
    (hook,) = hooks["webhooks"]
    assert (hook["failurePolicy"], hook["timeoutSeconds"]) == ("Ignore", 1)
    assert hook["clientConfig"].get("caBundle")
    site.node()
    site.serving()
    assert gated_on_creation(site)


@pytest.mark.parametrize(
    "forbidden",
    ["get secrets", "create pods", "delete nodes", "patch nodes", "update tokenservices", "create clusterroles"],
)
def test_the_operator_may_not(site: Site, forbidden: str) -> None:
    answer = site.kubectl("auth", "can-i", *forbidden.split(), f"--as={OPERATOR}", check=False)
    assert answer.split()[0] == "no"


def test_an_upgrade_restarts_the_operator_and_no_engine(site: Site) -> None:
    site.node()
    site.serving(scaling={"minReplicas": 2})
    before, operator = uids(site), site.bed.operator
    operator.values = operator.values | {
        "operator": {"planIntervalSeconds": 1, "logLevel": "debug"},
        "allowedEngineImages": ["example.org/engines/"],
    }
    with site.traffic(rate=2.0) as traffic:
        operator.install()
        operator.stop()
        mended(site.bed)
        config = site.bed.cluster.get("configmap", RELEASE, "-n", NAMESPACE)["data"]["config.yaml"]
        assert "planIntervalSeconds: 1" in config
        site.kubectl("annotate", "tsvc", "chat", "looked=again")
        traffic.goes_on()
    assert traffic.lost == {}
    assert uids(site) == before
    eventually(lambda: gated_on_creation(site), "its webhook is trusted again", 60, pause=2.0)


def test_kinds_that_grow_change_nothing_and_an_older_chart_is_refused(site: Site, tmp_path: Path) -> None:
    """The next version has a field more; this operator, which does not know it, plays the one that was not upgraded."""
    site.node()
    site.serving(scaling={"minReplicas": 2})
    before, spec, operator = uids(site), site.service()["spec"], site.bed.operator
    values = operator.values
    try:
        with site.traffic(rate=2.0) as traffic:
            operator.install(grown(tmp_path / "chart"))
            mended(site.bed)
            assert (site.service()["spec"], site.service()["metadata"]["generation"]) == (spec, 1)
            site.kubectl("patch", "tokenservice", "chat", "--type=merge", '--patch={"spec":{"novel":"yes"}}')
            assert "spec.novel" in site.wait_true("Stalled")["message"]
            with pytest.raises(TestbedError, match="older schema"):
                operator.install()
            assert site.service()["spec"]["novel"] == "yes"
            operator.values = values | {"crds": {"allowDowngrade": True}}
            operator.install()
            site.eventually(lambda: "novel" not in site.service()["spec"], "the field is dropped")
            site.kubectl("annotate", "tsvc", "chat", "looked=again")
            site.wait_condition("Stalled", "False")
            traffic.goes_on()
        assert traffic.lost == {}
        assert uids(site) == before
    finally:
        operator.values = values | {"crds": {"allowDowngrade": True}}
        operator.install()
        operator.values = values


def grown(chart: Path) -> Path:
    """The chart of the next version: services have a field more."""
    shutil.copytree(CHART, chart)
    description, kinds = chart / "Chart.yaml", chart / "templates/crds.yaml"
    description.write_text(re.sub(r"(?m)^version: .*$", "version: 99.0.0", description.read_text()))
    paused = "\n              paused:\n"
    assert kinds.read_text().count(paused) == 1
    kinds.write_text(kinds.read_text().replace(paused, f"\n              novel:\n                type: string{paused}"))
    return chart


def test_whichever_process_is_asked_is_trusted_and_knows_that_someone_plans(site: Site) -> None:
    site.node()
    site.serving()
    operator = site.bed.operator
    try:
        port = operator.start_standby("standby")
        eventually(lambda: authorities(site) >= 2, "the standby's authority is published", 60)
        assert leads(site.bed)
        called_at(site, port)
        eventually(lambda: gated_on_creation(site), "the standby gates a pod", 30, pause=2.0)
        site.wait_ready_pods(1)
    finally:
        called_at(site, operator.webhook_port)
        operator.stop("standby")
    eventually(lambda: gated_on_creation(site), "and so does the leader", 30, pause=2.0)


def authorities(site: Site) -> int:
    """How many processes the API server trusts."""
    hooks = site.api.get("mutatingwebhookconfigurations", WEBHOOK)
    assert hooks is not None
    bundle = base64.b64decode(hooks["webhooks"][0]["clientConfig"].get("caBundle", ""))
    return bundle.count(b"BEGIN CERTIFICATE")


def called_at(site: Site, port: int) -> None:
    """Sends the API server to one process, as a Service does by chance."""
    url = {"op": "replace", "path": "/webhooks/0/clientConfig/url", "value": f"https://127.0.0.1:{port}/mutate"}
    site.kubectl("patch", "mutatingwebhookconfiguration", WEBHOOK, "--type=json", f"--patch={json.dumps([url])}")


def test_after_an_uninstall_engines_serve_restart_and_schedule(site: Site) -> None:
    site.node()
    site.serving(scaling={"minReplicas": 2})
    before = uids(site)
    try:
        with site.traffic(rate=2.0) as traffic:
            site.bed.operator.stop()
            site.bed.operator.uninstall()
            assert site.api.get("mutatingwebhookconfigurations", WEBHOOK) is None
            assert site.service()["status"]["readyReplicas"] == 2
            assert uids(site) == before
            site.kubectl("delete", "pod", site.pods()[0]["metadata"]["name"], "--wait=false")
            site.wait_ready_pods(2)
            site.eventually(lambda: len(site.endpoints()) == 2, "both are endpoints")
            traffic.goes_on()
            kept = uids(site)
            site.bed.operator.install()
            mended(site.bed)
            site.wait_true("Ready")
            assert uids(site) == kept, "what was found is taken over as it is"
            traffic.goes_on()
    finally:
        if site.api.get("mutatingwebhookconfigurations", WEBHOOK) is None:
            site.bed.operator.install()
    assert traffic.lost == {}


def test_the_operator_never_asked_for_what_it_may_not(site: Site) -> None:
    """Of all that it did since the run began, uninstalls included: nothing was refused for want of rights."""
    assert leads(site.bed)
    asked = audit(site.bed)
    refused = {
        f"{entry['verb']} {entry['objectRef']['resource']}"
        for entry in asked
        if entry["annotations"].get("authorization.k8s.io/decision") == "forbid"
    }
    assert asked
    assert refused == set()
