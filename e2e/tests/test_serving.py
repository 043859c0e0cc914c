"""A service from its first apply to its end, on the whole bed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from e2e.tests.support.api import Json, condition, eventually, is_true, throughout
from e2e.tests.support.site import Site
from tests.support.kstatus import CURRENT, kstatus

pytestmark = pytest.mark.cluster

ENGINES = {"vllm": "vLLM", "sglang": "SGLang"}
CHILDREN = ("deployments", "services", "poddisruptionbudgets", "serviceaccounts", "networkpolicies")


def children(site: Site, name: str = "chat") -> dict[str, list[str]]:
    """Names of what a service owns, by kind."""
    return {
        kind: [found["metadata"]["name"] for found in site.api.list(kind, site.namespace, f"taas.dev/service={name}")]
        for kind in CHILDREN
    }


def test_an_applied_service_gets_its_children_becomes_ready_and_answers(site: Site) -> None:
    site.node()
    site.serving(scaling={"minReplicas": 2})
    assert children(site) == {
        "deployments": ["chat-h100-vllm-tp1-bf16"],
        "services": ["chat"],
        "poddisruptionbudgets": ["chat"],
        "serviceaccounts": ["chat-engine"],
        "networkpolicies": ["chat"],
    }
    status = site.status()
    assert status["endpoint"] == f"http://chat.{site.namespace}.svc.cluster.local/v1"
    assert (status["replicas"], status["readyReplicas"], status["replicaSummary"]) == (2, 2, "2/2")
    assert site.eventually(lambda: len(site.endpoints()) == 2, "both replicas are endpoints")
    answer = site.complete(tokens=8)
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["message"]["role"] == "assistant"
    row = site.kubectl("get", "tsvc", "chat").splitlines()[1].split()
    assert row[:3] == ["chat", "2/2", "h100-vllm-tp1-bf16"]


def test_no_tool_takes_a_service_for_done_before_it_serves(site: Site) -> None:
    """Ready, and kstatus, of every state that a watch has shown, against the pods of that moment."""
    site.node()
    with site.watched("tokenservices") as record, site.watched("pods") as pods:
        site.serving(scaling={"minReplicas": 2})
        eventually(lambda: record.events and kstatus(record.bodies()[-1]) == CURRENT, "it is current")
    first_ready = next(body for body in record.bodies() if is_true(body, "Ready"))
    first_current = next(body for body in record.bodies() if kstatus(body) == CURRENT)
    for taken_for_done in (first_ready, first_current):
        version = int(taken_for_done["metadata"]["resourceVersion"])
        serving = {
            body["metadata"]["name"]
            for body in pods.bodies()
            if is_true(body, "Ready") and int(body["metadata"]["resourceVersion"]) < version
        }
        assert len(serving) == 2
    assert len(record.bodies()) >= 3
    assert [kstatus(body) for body in record.bodies()][-1] == CURRENT
    seen = [condition(body, "Ready").get("status") for body in record.bodies()]
    assert seen[0] == "Unknown"
    assert seen.index("True") == len(seen) - seen.count("True"), f"Ready went back and forth: {seen}"


def test_a_deleted_service_finishes_its_answers_and_leaves_nothing(site: Site) -> None:
    """vLLM for as long as it is told to, SGLang without limit."""
    site.node()
    names = ("vllm", "sglang")
    site.bed.cluster.apply(*(site.manifest(name, engine={"name": ENGINES[name]}) for name in names))
    with ExitStack() as stack:
        for name in names:
            site.wait_true("Ready", name)
        long = {"output_tokens": 450, "max_wait_seconds": 1.0}  # nine seconds an answer: beyond the preStop hook
        traffics = [stack.enter_context(site.traffic(name, rate=2.0, **long)) for name in names]
        eventually(lambda: all(traffic.account.in_flight >= 5 for traffic in traffics), "answers are under way")
        for traffic in traffics:
            traffic.rate = 0.5
        site.kubectl("delete", "tsvc", *names)
        eventually(lambda: not site.pods(None), "all pods are on their way out")
        under_way = [traffic.account.in_flight for traffic in traffics]
        for traffic in traffics:
            traffic.stop_sending()
    assert min(under_way) >= 3
    for traffic in traffics:
        assert traffic.lost.keys() <= {"missed"}, "only who came too late got no answer"
    eventually(lambda: not any(any(children(site, name).values()) for name in names), "the children are gone")
    eventually(lambda: not site.pods(None, deleting=True), "the pods are gone")


# --- What only the operator can tell ---------------------------------------------------------------------------------

BIG = {"parameters": 10**12, "layers": 100, "heads": 128, "kvHeads": 8, "headDim": 128}

STALLED: dict[str, tuple[Json, str, str, str]] = {
    "unknown-accelerator": (
        {"placement": {"accelerators": ["h1000"]}},
        "UnknownAccelerator",
        "spec.placement.accelerators[0]",
        "there is no AcceleratorClass 'h1000': use one of",
    ),
    "too-large": (
        {"model": {"uri": "hf://testbed/huge", "architecture": BIG}},
        "ModelTooLarge",
        "spec.model",
        "GiB on h100 x 8",
    ),
    "no-such-size": (
        {"engine": {"name": "vLLM", "tensorParallelSize": 16}},
        "TensorParallelTooLarge",
        "spec.engine.tensorParallelSize",
        "the largest tensorParallelSize is h100 8",
    ),
    "nowhere": (
        {"placement": {"accelerators": ["h100"], "residency": {"regions": ["moon-1"]}}},
        "ResidencyExcludesAll",
        "spec.placement.residency.regions",
        "allow one of these in spec.placement.residency.regions, or add nodes there",
    ),
    "same-name": (
        {"model": {"uri": "hf://testbed/steady-7b", "servedName": "chat"}},
        "ServedNameTaken",
        "spec.model.servedName",
        "belongs to TokenService chat, which is older: choose another",
    ),
    "conflicting": (
        {"engine": {"name": "vLLM", "extraArgs": ["--max-model-len=4096"]}},
        "ConflictingArguments",
        "spec.engine.extraArgs[0]",
        "is set by spec.engine.maxModelLen: remove it from spec.engine.extraArgs",
    ),
    "unknown-model": (
        {"model": {"uri": "hf://testbed/never-heard-of"}},
        "UnknownModel",
        "spec.model.architecture",
        "give parameters, layers, heads, kvHeads and headDim",
    ),
}


@pytest.fixture(scope="module")
def stalled(module_site: Site) -> Site:
    """A good service, and beside it one of each kind that no schema can tell."""
    module_site.node()
    module_site.serving()
    manifests = [module_site.manifest(name, **spec) for name, (spec, *_) in STALLED.items()]
    for manifest in manifests:
        if "placement" in STALLED[manifest["metadata"]["name"]][0]:
            continue
        manifest["spec"]["placement"] = {"accelerators": ["h100"]}
    module_site.bed.cluster.apply(*manifests)
    return module_site


@pytest.mark.parametrize("name", STALLED)
def test_what_the_schema_cannot_tell_is_stalled_with_field_and_fix(stalled: Site, name: str) -> None:
    _, reason, field, fix = STALLED[name]
    found = stalled.wait_true("Stalled", name)
    assert found["reason"] == reason
    assert f"{field}: " in found["message"]
    assert fix in found["message"]
    assert kstatus(stalled.service(name)) == "Failed"
    event = eventually(lambda: [e for e in stalled.events(name) if e["reason"] == reason], f"an event {reason}")[0]
    assert event["type"] == "Warning"
    assert field in event["note"]
    assert not stalled.deployments(name)


def test_stalled_services_harm_no_other(stalled: Site) -> None:
    for name in STALLED:
        stalled.wait_true("Stalled", name)
    assert is_true(stalled.service("chat"), "Ready")
    assert stalled.complete("chat")["usage"]["completion_tokens"] == 8
    stalled.kubectl("scale", "tsvc/chat", "--replicas=2")
    stalled.wait_ready_pods(2)


# --- Who may only look -----------------------------------------------------------------------------------------------

LOOKING: dict[str, dict[str, Any]] = {
    "observe": {"mode": "Observe"},
    "recommend": {"mode": "Recommend"},
    "paused": {"paused": True},
}


def test_who_may_only_look_touches_nothing(site: Site) -> None:
    site.node()
    for name, change in LOOKING.items():
        site.apply(name, **change)
    for name in LOOKING:
        eventually(
            lambda name=name: site.status(name).get("decision", {}).get("message"), f"{name} says what it would do"
        )
    throughout(
        lambda: not any(any(children(site, name).values()) for name in LOOKING), "no children of any of them", seconds=4
    )
    site.kubectl("patch", "tsvc", "paused", "--type=merge", "-p", '{"spec":{"paused":false}}')
    site.wait_true("Ready", "paused")
    before = children(site, "paused"), site.deployments("paused")[0]["metadata"]["resourceVersion"]
    site.kubectl("patch", "tsvc", "paused", "--type=merge", "-p", '{"spec":{"paused":true,"replicas":3}}')
    eventually(
        lambda: site.status("paused").get("observedGeneration") == site.service("paused")["metadata"]["generation"],
        "the change is seen",
    )
    throughout(
        lambda: (children(site, "paused"), site.deployments("paused")[0]["metadata"]["resourceVersion"]) == before,
        "a paused service stays as it is",
        seconds=4,
    )
    assert site.complete("paused")["usage"]["completion_tokens"] == 8
