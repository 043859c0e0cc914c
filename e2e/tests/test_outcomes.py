"""What keeps replicas from coming about is told in the cluster's words, and is told no more when it is gone."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from e2e.tests.support.api import Json, throughout
from e2e.tests.support.site import MODEL, Site

pytestmark = pytest.mark.cluster

WORDS = "ValueError: max_model_len is greater than the derived 8192"


def quota(site: Site, **hard: str) -> None:
    named = {name.replace("__", "/").replace("_", "."): amount for name, amount in hard.items()}
    manifest = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small", "namespace": site.namespace}}
    site.bed.cluster.apply(manifest | {"spec": {"hard": named}})


def stalled(site: Site, reason: str, words: str) -> Json:
    """The condition, once it says that."""
    return site.eventually(
        lambda: (
            found
            if (found := site.condition("Stalled")).get("reason") == reason and words in found["message"]
            else None
        ),
        f"Stalled says {reason}: {words}",
    )


def test_what_a_quota_refuses_is_told_in_its_words_until_it_is_raised(site: Site) -> None:
    """First another child, then pods: the API server refuses the one to us, the others to a ReplicaSet."""
    site.node()
    quota(site, count__poddisruptionbudgets_policy="0", requests_nvidia_com__gpu="1")
    site.apply(scaling={"minReplicas": 2})
    found = stalled(site, "Refused", "PodDisruptionBudget chat: exceeded quota: small")
    assert "have the ResourceQuota of the namespace raised" in found["message"]
    assert site.deployments() == [], "what depends on it waits"
    quota(site, requests_nvidia_com__gpu="1")
    found = stalled(site, "Refused", "exceeded quota: small, requested: requests.nvidia.com/gpu=1")
    assert found["message"].startswith("pods of h100-vllm-tp1-bf16")
    assert site.condition("CapacityAvailable")["reason"] == "Refused"
    assert len(site.told("Refused")) >= 2
    site.kubectl("delete", "resourcequota", "small")
    for pod in site.pods():  # a ReplicaSet that was refused sleeps for long, and wakes when one of its pods changes
        site.kubectl("annotate", "pod", pod["metadata"]["name"], "woken=1")
    site.wait_true("Ready")
    assert site.wait_condition("Stalled", "False")["reason"] == "Accepted"


def fail_starts(site: Site, *, fails: bool) -> None:
    """Engines of this site that start from now on never answer; or do again."""
    rules = [{"namespace": site.namespace, "fails": True}] if fails else []
    requests.put(f"{site.bed.farm_url}/admin/starts", json=rules, timeout=10).raise_for_status()


def crashes(site: Site, old: set[str]) -> None:
    """What a kubelet writes of a new engine that ended twice."""
    fresh = site.eventually(
        lambda: [pod for pod in site.pods() if pod["metadata"]["name"] not in old and pod["status"].get("podIP")],
        "the new version starts",
    )
    for pod in fresh:
        (seen,) = pod["status"]["containerStatuses"]
        ended = {"exitCode": 1, "reason": "Error", "message": f"Traceback\n{WORDS}\n"}
        state: dict[str, Any] = {
            "restartCount": 2,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": ended},
        }
        name = pod["metadata"]["name"]
        site.api.patch("pods", name, {"status": {"containerStatuses": [seen | state]}}, site.namespace, "status")


def context_length(site: Site) -> str:
    """What the Deployment tells engines."""
    (found,) = site.deployments()
    args: list[str] = found["spec"]["template"]["spec"]["containers"][0]["args"]
    return next((arg for arg in " ".join(args).replace("=", " ").split() if arg in ("65536", "4096")), "")


def test_a_change_that_does_not_come_up_is_told_and_goes_back_only_where_asked_to(site: Site) -> None:
    site.node()
    site.serving(scaling={"minReplicas": 2})
    good = {pod["metadata"]["name"] for pod in site.pods()}
    try:
        with site.traffic(rate=1.0) as traffic:
            fail_starts(site, fails=True)
            bad: dict[str, Any] = {"scaling": {"minReplicas": 2}, "engine": {"name": "vLLM", "maxModelLen": 65_536}}
            site.apply(**bad)
            crashes(site, good)
            said = stalled(site, "EngineFailed", WORDS)["message"]
            assert "2 replicas of the last good version serve on" in said
            throughout(lambda: context_length(site) == "65536", "Manual keeps trying", seconds=6, pause=1.0)

            site.apply(**bad, rollback="Automatic")
            said = stalled(site, "RolledBack", WORDS)["message"]
            assert context_length(site) == ""
            site.eventually(lambda: {p["metadata"]["name"] for p in site.pods()} == good, "the failing replica goes")
            assert set(site.endpoints()) == good, "the good ones never went"

            fail_starts(site, fails=False)
            site.apply(**(bad | {"engine": {"name": "vLLM", "maxModelLen": 4096}}), rollback="Automatic")
            site.wait_true("Ready")
            site.eventually(lambda: context_length(site) == "4096", "the next edit is tried")
            site.eventually(lambda: good.isdisjoint(site.endpoints()), "and serves")
            assert site.wait_condition("Stalled", "False")["reason"] == "Accepted"
            traffic.goes_on(2)
    finally:
        fail_starts(site, fails=False)
    assert traffic.lost == {}


REFUSED = "refused: Hash mismatch for 'model.safetensors'"


def refuses(site: Site, old: set[str]) -> None:
    """What a kubelet writes of the one new replica, whose verifier ended twice: its engine was never begun."""
    (pod,) = site.eventually(
        lambda: [pod for pod in site.pods() if pod["metadata"]["name"] not in old and pod["status"].get("podIP")],
        "one replica more starts",
    )
    (verifier,), (engine,) = pod["status"]["initContainerStatuses"], pod["status"]["containerStatuses"]
    ended = {"exitCode": 3, "reason": "Error", "message": f"{REFUSED}\n"}
    crashing = {
        "ready": False,
        "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended},
    }
    waiting = {"started": False, "state": {"waiting": {"reason": "PodInitializing"}}}
    status = {
        "phase": "Pending",
        "initContainerStatuses": [verifier | crashing],
        "containerStatuses": [engine | waiting],
    }
    site.api.patch("pods", pod["metadata"]["name"], {"status": status}, site.namespace, "status")


def doubted(site: Site) -> str:
    """What ModelVerified says once it is False."""
    found = site.wait_condition("ModelVerified", "False")
    assert found["reason"] == "VerificationFailed"
    assert REFUSED in found["message"]
    return str(found["message"])


def test_a_model_that_was_changed_starts_no_engine_and_those_verified_before_serve_on(site: Site) -> None:
    """Seen by one replica more first, then by a new version."""
    site.node()
    verification = {"publicKey": {"name": "release-key"}}
    asked: dict[str, Any] = {"model": {"uri": f"hf://{MODEL}", "verification": verification}}
    site.serving(**asked, replicas=2)
    promised = f"hf://{MODEL} signed by key model.pub of ConfigMap release-key"
    assert site.wait_true("ModelVerified")["message"] == promised
    good = {pod["metadata"]["name"] for pod in site.pods()}
    try:
        with site.traffic(rate=1.0) as traffic:
            fail_starts(site, fails=True)
            site.apply(**asked, replicas=3)
            refuses(site, good)
            assert "2 replicas that started before serve on" in doubted(site)
            site.apply(**asked, replicas=2)
            assert site.wait_true("ModelVerified")["message"] == promised
            site.eventually(lambda: {p["metadata"]["name"] for p in site.pods()} == good, "the refused replica goes")

            site.apply(**asked, replicas=2, engine={"name": "vLLM", "maxModelLen": 4096})
            refuses(site, good)
            assert "2 replicas of the last good version serve on" in doubted(site)
            assert stalled(site, "VerificationFailed", REFUSED)
            assert set(site.endpoints()) == good, "the good ones never went"
            traffic.goes_on(2)
    finally:
        fail_starts(site, fails=False)
    assert traffic.lost == {}


def test_a_claim_that_is_not_there_is_told_and_costs_no_replica(site: Site) -> None:
    """Nothing is taken away for a replica that room would not help."""
    site.node()
    site.serving(scaling={"minReplicas": 1}, replicas=2)
    good = {pod["metadata"]["name"] for pod in site.pods()}
    adapters = [{"name": "tone", "uri": "pvc://weights/tone"}]
    site.apply(scaling={"minReplicas": 1}, replicas=2, model={"uri": f"hf://{MODEL}", "adapters": adapters})
    said = stalled(site, "EngineFailed", 'persistentvolumeclaim "weights" not found')["message"]
    assert "create the claim" in said
    assert set(site.endpoints()) == good
