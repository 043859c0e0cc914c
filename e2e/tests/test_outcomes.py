"""What keeps replicas from coming about is told in the cluster's words, and is told no more when it is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests

from e2e.tests.support.api import Json, is_true, throughout
from e2e.tests.support.bed import reinstalled
from e2e.tests.support.nodes import foreign_pod
from e2e.tests.support.site import MODEL, Site
from tokenservice.core.names import VARIANT_LABEL

pytestmark = pytest.mark.cluster

WORDS = "ValueError: max_model_len is greater than the derived 8192"


def quota(site: Site, **hard: str) -> None:
    named = {name.replace("__", "/").replace("_", "."): amount for name, amount in hard.items()}
    manifest = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small", "namespace": site.namespace}}
    site.bed.cluster.apply(manifest | {"spec": {"hard": named}})


def stalled(site: Site, reason: str, words: str, name: str = "chat") -> Json:
    """The condition, once it says that."""
    return site.eventually(
        lambda: (
            found
            if (found := site.condition("Stalled", name)).get("reason") == reason and words in found["message"]
            else None
        ),
        f"Stalled of {name} says {reason}: {words}",
    )


def well(site: Site, name: str = "chat") -> None:
    """It serves, and nothing is said any more."""
    site.wait_true("Ready", name)
    assert site.wait_condition("Stalled", "False", name)["reason"] == "Accepted"


def test_what_a_quota_refuses_is_told_in_its_words_until_it_is_raised(site: Site) -> None:
    """First another child, then pods: the API server refuses the one to us, the others to a ReplicaSet."""
    site.node()
    quota(site, count__networkpolicies_networking_k8s_io="0", requests_nvidia_com__gpu="1")
    site.apply(scaling={"minReplicas": 2})
    found = stalled(site, "Refused", "NetworkPolicy chat: exceeded quota: small")
    assert "have the ResourceQuota of the namespace raised" in found["message"]
    assert site.deployments() == [], "engines wait for what their pods need"
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


def test_what_a_limit_range_refuses_is_told_in_its_words_until_it_is_changed(site: Site) -> None:
    site.node()
    bounds = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small", "namespace": site.namespace}}
    site.bed.cluster.apply(bounds | {"spec": {"limits": [{"type": "Container", "max": {"memory": "1Gi"}}]}})
    site.apply()
    found = stalled(site, "Refused", "maximum memory usage per Container is 1Gi")
    assert found["message"].startswith("pods of h100-vllm-tp1-bf16")
    assert "have the LimitRange of the namespace changed, or set spec.engine.resources" in found["message"]
    site.kubectl("delete", "limitrange", "small")
    well(site)


def test_what_pod_security_refuses_is_told_and_what_serves_goes_on(site: Site) -> None:
    """An administrator's patch asks for more than the namespace gives; each new template rolls engines."""
    site.node()
    site.serving()
    (before,) = site.endpoints()
    try:
        reinstalled(site.bed, enginePodPatch={"spec": {"hostNetwork": True}})
        found = stalled(site, "Refused", 'violates PodSecurity "restricted')
        assert "host namespaces (hostNetwork=true)" in found["message"]
        assert (
            "have the namespace's Pod Security level lowered, or enginePodPatch of the chart mended" in found["message"]
        )
        assert "1 replicas serve on" in found["message"]
        assert site.endpoints() == [before]
    finally:
        reinstalled(site.bed, enginePodPatch={})
    well(site)
    assert site.endpoints() == [before], "it was never touched"


def test_a_namespace_that_goes_takes_its_services_along_without_an_error(site: Site) -> None:
    """Grace is short: pods still there after five seconds are looked at again only after half their grace."""
    site.node()
    site.serving(scaling={"maxRequestSeconds": 1})
    site.apply("waiting", scaling={"minReplicas": 20, "maxRequestSeconds": 1})
    log = site.bed.cluster.folder / "logs/operator.log"
    before = len(log.read_text())
    site.kubectl("delete", "namespace", site.namespace, "--wait=false")
    site.eventually(lambda: site.api.get("namespaces", site.namespace) is None, "the namespace is gone")
    said = [line for line in log.read_text()[before:].splitlines() if " ERROR " in line or "Traceback" in line]
    assert said == []


# --- What a kubelet says ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """What becomes of the first pod of a service, and what is told of it."""

    container: Json
    said: str
    fix: str
    conditions: list[Json] = field(default_factory=list)
    event: str = ""


LONG_AGO = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
CREATING: Json = {"started": False, "state": {"waiting": {"reason": "ContainerCreating"}}}
NO_DRIVER = (
    "MountVolume.MountDevice failed: driver name efs.csi.aws.com not found in the list of registered CSI drivers"
)
KUBELET: dict[str, Bad] = {
    "pull": Bad(
        {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "example.org/none: not found"}}},
        said="ImagePullBackOff: example.org/none: not found",
        fix="check spec.engine.image or engineImages of the chart, and the registry",
    ),
    "memory": Bad(
        {
            "restartCount": 2,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
        },
        said="ended with 137 (OOMKilled)",
        fix="raise spec.engine.resources.memory",
    ),
    "secret": Bad(
        {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}}},
        said='CreateContainerConfigError: secret "hub" not found',
        fix="create the Secret, with the key, that spec.model.credentials names",
    ),
    "driver": Bad(
        CREATING,
        said=f"FailedMount: {NO_DRIVER}",
        fix="have the CSI driver run on the nodes of this class",
        conditions=[LONG_AGO, {"type": "PodReadyToStartContainers", "status": "False"}],
        event=NO_DRIVER,
    ),
    "slow": Bad(
        {"started": False, "state": {"running": {}}},
        said="s after it got its node; kubectl describe pod",
        fix="mend the spec",
        conditions=[LONG_AGO],
    ),
}


def mount_fails(pod: Json, note: str) -> Json:
    """The event as a kubelet's recorder writes it: of the core group, one object that is counted up."""
    metadata, now = pod["metadata"], time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.17", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
        "type": "Warning",
        "reason": "FailedMount",
        "message": note,
        "source": {"component": "kubelet", "host": "a-node"},
        "count": 7,
        "firstTimestamp": now,
        "lastTimestamp": now,
    }


def befalls(site: Site, name: str, bad: Bad) -> None:
    """The kubelet writes it."""
    (pod,) = site.eventually(
        lambda: [pod for pod in site.pods(name) if pod["status"].get("podIP")], f"{name} starts on its node"
    )
    types = {one["type"] for one in bad.conditions}
    others = [one for one in pod["status"]["conditions"] if one["type"] not in types]
    (container,) = pod["status"]["containerStatuses"]
    states = [container | {"ready": False} | bad.container]
    status = {"conditions": [*others, *bad.conditions], "containerStatuses": states}
    if bad.event:
        site.bed.cluster.apply(mount_fails(pod, bad.event))
    site.api.patch("pods", pod["metadata"]["name"], {"status": status}, site.namespace, "status")


@contextmanager
def failing_starts(site: Site, *names: str) -> Iterator[None]:
    """Engines that start meanwhile never answer: those of these services."""
    try:
        fail_starts(site, *names)
        yield
    finally:
        fail_starts(site)


def test_what_keeps_a_first_replica_from_starting_is_told_with_its_fix_and_harms_no_other(site: Site) -> None:
    for _ in range(2):
        site.node()
    site.serving()
    with failing_starts(site, *KUBELET):
        for name in KUBELET:
            site.apply(name)
        for name, bad in KUBELET.items():
            befalls(site, name, bad)
        for name, bad in KUBELET.items():
            found = stalled(site, "EngineFailed", bad.said, name)
            assert bad.fix in found["message"], name
            assert not is_true(site.service(name), "Ready")
            site.eventually(lambda name=name: site.told("EngineFailed", name), f"an event of {name}")  # type: ignore[misc]
        assert is_true(site.service(), "Ready")
        assert site.complete()["usage"]["completion_tokens"] == 8
        site.kubectl("scale", "tsvc/chat", "--replicas=2")
        site.wait_ready_pods(2)
    for pod in [pod for name in KUBELET for pod in site.pods(name)]:
        site.kubectl("delete", "pod", pod["metadata"]["name"], "--wait=false")
    for name in KUBELET:
        well(site, name)


def fail_starts(site: Site, *names: str) -> None:
    """Engines of these services that start from now on never answer; all others do again."""
    rules = [{"namespace": site.namespace, "service": name, "fails": True} for name in names]
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
            fail_starts(site, "chat")
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

            fail_starts(site)
            site.apply(**(bad | {"engine": {"name": "vLLM", "maxModelLen": 4096}}), rollback="Automatic")
            site.wait_true("Ready")
            site.eventually(lambda: context_length(site) == "4096", "the next edit is tried")
            site.eventually(lambda: good.isdisjoint(site.endpoints()), "and serves")
            assert site.wait_condition("Stalled", "False")["reason"] == "Accepted"
            traffic.goes_on(2)
    finally:
        fail_starts(site)
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
            fail_starts(site, "chat")
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
        fail_starts(site)
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


def test_a_change_of_variant_gets_through_where_no_accelerator_is_free(site: Site) -> None:
    """Another engine is another Deployment. One replica can be missed: it makes room for its successor."""
    site.bed.cluster.apply(foreign_pod(site, "neighbour", site.node(), gpus=6))
    asked: dict[str, Any] = {"scaling": {"minReplicas": 1}, "replicas": 2}
    site.serving(**asked)
    with site.traffic(rate=0.5) as traffic:
        site.apply(**asked, engine={"name": "SGLang"})
        site.eventually(lambda: [_variant(it) for it in site.deployments()] == ["h100-sglang-tp1-bf16"], "it took over")
        site.eventually(lambda: len(site.endpoints()) == 2, "both serve")
        traffic.goes_on(2)
    assert traffic.lost == {}


def test_replicas_that_find_no_room_are_taken_back_in_the_middle_of_a_rollout_which_then_gets_through(
    site: Site,
) -> None:
    """The rollout would wait for room for all that were asked for, and the scale-in for the end of the rollout."""
    site.bed.cluster.apply(foreign_pod(site, "neighbour", site.node(), gpus=5))
    asked: dict[str, Any] = {"scaling": {"minReplicas": 1}}
    changed: dict[str, Any] = asked | {"engine": {"name": "vLLM", "maxModelLen": 4096}}
    site.serving(**asked, replicas=3)
    site.apply(**asked, replicas=6)
    site.eventually(lambda: sum(not pod["spec"].get("nodeName") for pod in site.pods()) == 3, "three find no room")
    site.apply(**changed, replicas=6)
    site.eventually(lambda: len({_template(pod) for pod in site.pods()}) == 2, "the new version rolls out")
    with site.traffic(rate=0.5) as traffic:
        site.apply(**changed, replicas=3)
        site.eventually(lambda: _all_new(site) and len(site.endpoints()) == 3, "three of the new version serve")
        traffic.goes_on(2)
    assert traffic.lost == {}


def _template(pod: Json) -> str:
    return str(pod["metadata"]["labels"]["pod-template-hash"])


def _all_new(site: Site) -> bool:
    (deployment,) = site.deployments()
    status = deployment["status"]
    return bool(status.get("updatedReplicas") == status.get("replicas") == 3 and len(site.pods()) == 3)


def _variant(deployment: Json) -> str:
    return str(deployment["metadata"]["labels"][VARIANT_LABEL])
