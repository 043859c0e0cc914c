"""Adapters that running engines load: what a change of them rolls, and what is told of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tests.core.rendering import DIGEST, SETTINGS, make_variant
from tests.core.test_mutations import BASE, become, world
from tests.core.test_rollback import Story, conditions
from tests.support.build import make_pod, make_service, make_spec
from tests.support.pod_security import violations
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.adapters import AdapterReport, reports
from tokenservice.core.engines import engine_problems
from tokenservice.core.manifests import children
from tokenservice.core.model import Apply, Delete, Json, LoadedAdapter, Plan

CLAIM = "pvc://weights/qwen/32b"
ROOM: Json = {"maxActive": 4, "maxRank": 32}
IN_CLAIM = {"name": "tone", "uri": "pvc://weights/tone"}
DOWNLOADED = {"name": "legal", "uri": "hf://acme/legal-lora@v2"}
ENGINES = pytest.mark.parametrize("engine", ["vLLM", "SGLang"])


def rendered(*adapters: Json, engine: str = "vLLM", uri: str = CLAIM, room: Json | None = ROOM) -> dict[str, Json]:
    model = {"uri": uri, "adapters": list(adapters)} | ({"runtimeAdapters": room} if room is not None else {})
    service = replace(make_service(), spec=make_spec(model=model))
    settings = replace(SETTINGS, pod_monitors=True)
    found = children(service, [(make_variant(engine), 1)], settings, needed=1, fleet=TokenFleetSpec())
    return {manifest["kind"]: manifest for manifest in found}


def template(*adapters: Json, **how: Any) -> Json:
    found: Json = rendered(*adapters, **how)["Deployment"]["spec"]["template"]
    return found


def listed(*adapters: Json, **how: Any) -> list[Json]:
    found: list[Json] = json.loads(rendered(*adapters, **how)["ConfigMap"]["data"]["adapters.json"])["adapters"]
    return found


def loader(pod_template: Json) -> Json:
    (found,) = [one for one in pod_template["spec"]["initContainers"] if one["name"] == "load-adapters"]
    return dict(found)


@ENGINES
def test_an_adapter_more_or_less_changes_the_list_and_no_template(engine: str) -> None:
    base = template(engine=engine)
    assert template(IN_CLAIM, engine=engine) == base
    assert template(IN_CLAIM, DOWNLOADED, engine=engine) == base
    assert template(DOWNLOADED | {"uri": "hf://acme/other"}, engine=engine) == base
    assert listed() == []
    assert [one["name"] for one in listed(IN_CLAIM, DOWNLOADED)] == ["tone", "legal"]


@ENGINES
def test_without_room_adapters_are_arguments_as_ever(engine: str) -> None:
    found = rendered(IN_CLAIM, engine=engine, room=None)
    assert "ConfigMap" not in found
    assert "initContainers" not in found["Deployment"]["spec"]["template"]["spec"]
    assert "tone=/adapters/0/tone" in found["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]


@pytest.mark.parametrize(
    "new", [{"name": "a", "uri": "pvc://other/a"}, {"name": "a", "uri": f"oci://example.org/a@{DIGEST}"}]
)
def test_a_claim_or_an_image_that_no_pod_has_needs_other_pods(new: Json) -> None:
    assert template(new) != template()


def test_adapters_of_one_claim_share_its_volume_in_any_order() -> None:
    one, two = {"name": "a", "uri": "pvc://other/a"}, {"name": "b", "uri": "pvc://other/deep/b"}
    assert template(one) == template(one, two) == template(two, one)
    image = {"name": "c", "uri": f"oci://example.org/a@{DIGEST}"}
    assert template(one, image) == template(image, two)


def test_engine_and_list_agree_where_an_adapter_lies() -> None:
    for adapter in (IN_CLAIM, {"name": "a", "uri": "pvc://other/a"}, {"name": "b", "uri": f"oci://x/y@{DIGEST}"}):
        pod = template(adapter)["spec"]
        mounts = {one["mountPath"]: one["name"] for one in pod["containers"][0]["volumeMounts"]}
        (entry,) = listed(adapter)
        (mount,) = [path for path in mounts if entry["path"].startswith(path)]
        assert mounts[mount] in {one["name"] for one in pod["volumes"]}


def test_what_is_downloaded_lies_where_the_loader_writes_and_the_engine_only_reads() -> None:
    (entry,) = listed(DOWNLOADED)
    assert (entry["repository"], entry["revision"]) == ("acme/legal-lora", "v2")
    pod = template(DOWNLOADED)
    (writes,) = [one for one in loader(pod)["volumeMounts"] if entry["path"].startswith(one["mountPath"])]
    (reads,) = [one for one in pod["spec"]["containers"][0]["volumeMounts"] if one["name"] == writes["name"]]
    assert (writes.get("readOnly"), reads["readOnly"]) == (None, True)


def test_another_version_lies_elsewhere() -> None:
    """An engine takes one path for one and the same weights, its prefix cache too."""
    paths = {listed(DOWNLOADED | {"uri": f"hf://acme/legal-lora{at}"})[0]["path"] for at in ("", "@v1", "@v2")}
    assert len(paths) == 3


def test_the_way_out_is_opened_for_an_adapter_that_is_added_later() -> None:
    before, after = rendered(IN_CLAIM)["NetworkPolicy"]["spec"], rendered(DOWNLOADED)["NetworkPolicy"]["spec"]
    assert "egress" not in before
    assert {"port": 443, "protocol": "TCP"} in after["egress"][1]["ports"]


def test_only_prometheus_reaches_the_loader() -> None:
    rules = rendered()["NetworkPolicy"]["spec"]["ingress"]
    assert [rule["from"] for rule in rules if rule["ports"][0]["port"] == 8001] == [list(SETTINGS.metrics_peers)]
    assert [one["port"] for one in rendered()["PodMonitor"]["spec"]["podMetricsEndpoints"]] == ["http", "adapters"]


def test_vllm_lets_nobody_but_the_loader_load() -> None:
    engine = template()["spec"]["containers"][0]
    assert engine["args"][engine["args"].index("--middleware") + 1] == "adapter_guard.Guard"
    variables = {one["name"]: one.get("value") for one in engine["env"]}
    guard = variables["PYTHONPATH"]
    (mount,) = [one for one in engine["volumeMounts"] if one["mountPath"] == guard]
    assert mount["readOnly"]
    assert guard in loader(template())["args"]
    assert "startupProbe" in loader(template())  # the guard is there before the engine starts


@ENGINES
def test_the_loader_passes_pod_security_and_stays_beside_the_verifier(engine: str) -> None:
    model = {"uri": CLAIM, "runtimeAdapters": {}, "verification": {"publicKey": {"name": "signers"}}}
    service = replace(make_service(), spec=make_spec(model=model))
    patched = replace(SETTINGS, pod_patch={"spec": {"initContainers": [{"name": "theirs", "image": "x"}]}})
    made = children(service, [(make_variant(engine), 1)], patched, needed=1, fleet=TokenFleetSpec())
    pod = made[-1]["spec"]["template"]["spec"]
    assert [one["name"] for one in pod["initContainers"]] == ["verify-model", "theirs", "load-adapters"]
    assert violations(template(engine=engine)["spec"]) == ()


@ENGINES
def test_a_flag_of_the_room_is_refused_in_extra_args(engine: str) -> None:
    words = {"name": engine, "extraArgs": ["--max-lora-rank", "64"]}
    assert engine_problems(make_spec(engine=words)) == ()
    (problem,) = engine_problems(make_spec(engine=words, model={"uri": CLAIM, "runtimeAdapters": {}}))
    assert "spec.model.runtimeAdapters" in problem.message


def test_without_an_image_of_the_loader_the_service_is_stalled_and_told_which_value_to_set() -> None:
    found = conditions(Story().plan({"model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct", "runtimeAdapters": {}}}))
    assert (found["Stalled"]["status"], found["Stalled"]["reason"]) == ("True", "NoLoaderImage")
    assert "adapterLoader.image" in found["Stalled"]["message"]


# --- what is told

SPEC = make_spec(model={"uri": CLAIM, "adapters": [IN_CLAIM], "runtimeAdapters": ROOM})
HAS = LoadedAdapter("pvc://weights/tone", loaded=True)
LACKS = LoadedAdapter("pvc://weights/tone", loaded=False)
FAILED = LoadedAdapter("pvc://weights/tone", loaded=False, error="no adapter_config.json")
BEFORE = LoadedAdapter("pvc://weights/older", loaded=True)


@pytest.mark.parametrize(
    ("said", "want"),
    [
        ({"a": HAS, "b": HAS}, ("Ready", 2)),
        ({"a": HAS}, ("Loading", 1)),
        ({"a": HAS, "b": LACKS}, ("Loading", 1)),
        ({"a": HAS, "b": FAILED}, ("Failed", 1)),
        ({"a": BEFORE, "b": BEFORE}, ("Loading", 0)),
        ({}, ("Unknown", 0)),
        ({"starting": HAS}, ("Unknown", 0)),
    ],
    ids=["all", "one is silent", "one lacks it", "one cannot", "another version", "none reports", "who does not serve"],
)
def test_an_adapter_is_ready_when_every_replica_that_serves_has_it(
    said: dict[str, LoadedAdapter], want: tuple[str, int]
) -> None:
    pods = [make_pod(name, ready=name != "starting") for name in ("a", "b", "starting")]
    seen = {("default", pod): {"tone": what} for pod, what in said.items()}
    (report,) = reports(SPEC, pods, seen)
    assert (report.state, report.ready) == want
    assert (report.message == "") == (report.state == "Ready")


def test_a_failure_is_told_in_the_engines_words() -> None:
    (report,) = reports(SPEC, [make_pod("a", ready=True)], {("default", "a"): {"tone": FAILED}})
    assert report == AdapterReport("tone", "Failed", 0, "no adapter_config.json")


def test_nothing_is_told_where_nothing_serves_or_adapters_are_arguments() -> None:
    assert reports(make_spec(model={"uri": CLAIM, "adapters": [IN_CLAIM]}), [make_pod("a", ready=True)], {}) == ()
    assert [one.state for one in reports(SPEC, [], {})] == ["Unknown"]


# --- the way back


def test_the_list_goes_only_when_no_pod_template_reads_it_any_more() -> None:
    """A pod that started anew in between would wait for it for ever."""
    made = world({**BASE, "model": {**BASE["model"], "runtimeAdapters": {}}})
    made.run(10, seconds=60.0)
    assert [key.name for key in made.children if key.kind == "ConfigMap"] == ["chat-adapters"]
    become(made, {**BASE, "model": {k: v for k, v in BASE["model"].items() if k != "runtimeAdapters"}})
    plans = made.run(10, seconds=60.0)
    (gone,) = [index for index, plan in enumerate(plans) if any(isinstance(it, Delete) for it in plan.actions)]
    (rolled,) = [index for index, plan in enumerate(plans) if _applies_deployment(plan)]
    assert rolled < gone
    assert not [key for key in made.children if key.kind == "ConfigMap"]


def _applies_deployment(plan: Plan) -> bool:
    return any(isinstance(it, Apply) and it.manifest["kind"] == "Deployment" for it in plan.actions)
