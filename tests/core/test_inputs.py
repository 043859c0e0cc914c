"""Inputs that have broken other operators, each by its name: what is said, and that nobody else notices."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from tests.api.bad_input import FLEET as FLEET_OBJECT
from tests.api.bad_input import PROFILE, SERVICE, changed
from tests.core.rendering import IMAGES, MI300X, SETTINGS, make_variant
from tests.support.build import FLEET, GPU, H100, H100_8B, MODEL, make_metrics, make_node, make_service
from tests.support.world import World
from tokenservice.api.validation import violations
from tokenservice.core.decide import decide
from tokenservice.core.manifests import children
from tokenservice.core.memo import Memo
from tokenservice.core.model import Apply, Settings
from tokenservice.core.names import REGION_LABEL

LLAMA = {"parameters": 8_030_000_000, "layers": 32, "heads": 32, "kvHeads": 8, "headDim": 128}
A100 = replace(
    H100,
    name="a100",
    spec=H100.spec.model_copy(update={"dense_teraflops": H100.spec.dense_teraflops.model_copy(update={"fp8": None})}),
)


def settled(spec: dict[str, Any], **extra: Any) -> World:
    """A sound service that serves, and one with this spec beside it."""
    sound = make_service("sound")
    made = World(
        services=[sound, make_service("asked", created_at=1.0, **spec)],
        nodes=[make_node("n1"), make_node("n2")],
        extra={"settings": Settings(images=IMAGES)} | extra,
    )
    made.metrics = {service.key: make_metrics(0.5, engines_reporting=1000) for service in made.services}
    made.run(8)
    return made


def told(made: World, kind: str, name: str = "asked") -> dict[str, Any]:
    (status,) = [service.status for service in made.services if service.key.name == name]
    return next(c for c in status["conditions"] if c["type"] == kind)


SIZED = {"uri": "hf://acme/own", "architecture": LLAMA}
STALLED: dict[str, tuple[dict[str, Any], dict[str, Any], str, str]] = {
    "TP that does not divide the heads": (
        {"model": SIZED, "engine": {"tensorParallelSize": 3}},
        {},
        "InvalidSpec",
        "spec.engine.tensorParallelSize: 3 does not divide the model's 32 attention heads: use one of 1, 2, 4, 8",
    ),
    "FP8 on an accelerator that lacks it": (
        {"model": SIZED, "engine": {"quantization": "FP8"}, "placement": {"accelerators": ["a100"]}},
        {"accelerators": (A100, H100), "profiles": (H100_8B,)},
        "InvalidSpec",
        "spec.engine.quantization: none of a100 has FP8",
    ),
    "an FP8 cache on an accelerator that lacks it": (
        {"model": SIZED, "engine": {"kvCacheDtype": "FP8"}, "placement": {"accelerators": ["a100"]}},
        {"accelerators": (A100, H100), "profiles": (H100_8B,)},
        "InvalidSpec",
        "spec.engine.kvCacheDtype: none of a100 has FP8",
    ),
    "no image for the vendor": (
        {"model": SIZED, "engine": {"name": "vLLM"}, "placement": {"accelerators": ["mi300x"]}},
        {
            "accelerators": (H100, MI300X),
            "settings": Settings(images=replace(IMAGES, defaults={("vLLM", "NVIDIA"): "example.org/cuda:1"})),
        },
        "NoEngineImage",
        "spec.engine.image: no image is configured for vLLM on AMD",
    ),
    "a class that does not exist": (
        {"placement": {"accelerators": ["h900"]}},
        {},
        "UnknownAccelerator",
        "spec.placement.accelerators[0]",
    ),
    "maxModelLen beyond the KV cache": (
        {"model": SIZED, "engine": {"maxModelLen": 50_000_000}},
        {},
        "ModelTooLarge",
        "spec.engine.maxModelLen: the KV cache does not hold one sequence of 50000000 tokens",
    ),
    "a cost that nothing reaches": (
        {"objectives": {"maxCostPerMillionTokens": 0.0001}},
        {},
        "ObjectivesUnreachable",
        "spec.objectives.maxCostPerMillionTokens: $0.0001 per million output tokens is out of reach",
    ),
    "a latency that nothing reaches": (
        {"objectives": {"timePerOutputToken": {"target": "1ms"}}},
        {},
        "ObjectivesUnreachable",
        "spec.objectives.timePerOutputToken.target",
    ),
    "an adapter named like the served model": (
        {"model": {"uri": f"hf://{MODEL}", "adapters": [{"name": "asked", "uri": "pvc://a/b"}]}},
        {},
        "ServedNameTaken",
        "spec.model.adapters[asked].name: the model itself answers to 'asked'",
    ),
    "an adapter named like a neighbour's model": (
        {"model": {"uri": f"hf://{MODEL}", "adapters": [{"name": "sound", "uri": "pvc://a/b"}]}},
        {},
        "ServedNameTaken",
        "spec.model.adapters[sound].name: the model name 'sound' belongs to TokenService sound",
    ),
    "a draft that cannot be loaded": (
        {"engine": {"name": "vLLM", "speculative": {"method": "DraftModel", "draftModel": "s3://bucket/draft"}}},
        {},
        "InvalidSpec",
        "spec.engine.speculative.draftModel: s3:// is for the model itself",
    ),
}


@pytest.mark.parametrize(("spec", "extra", "reason", "said"), STALLED.values(), ids=STALLED)
def test_it_stalls_with_its_field_and_the_other_serves(
    spec: dict[str, Any], extra: dict[str, Any], reason: str, said: str
) -> None:
    made = settled(spec, **extra)
    stalled = told(made, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", reason)
    assert stalled["message"].startswith(said)
    assert made.serving(made.services[0].key) == 1
    assert not [key for key in made.children if key.name.startswith("asked")]


def test_a_class_that_is_deleted_while_in_use_leaves_its_engines_serving() -> None:
    made = settled({"placement": {"accelerators": ["h100"]}})
    made.extra["accelerators"] = ()
    made.run(8)
    assert told(made, "Stalled")["reason"] == "UnknownAccelerator"
    assert made.serving(made.services[1].key) == 1


def test_a_class_that_no_node_has_waits_for_one_and_says_so() -> None:
    made = settled({"model": SIZED, "placement": {"accelerators": ["mi300x"]}}, accelerators=(H100, MI300X))
    assert told(made, "Stalled")["status"] == "False", "a node autoscaler may bring one"
    assert told(made, "CapacityAvailable")["reason"] == "InsufficientCapacity"
    assert made.serving(made.services[0].key) == 1


def test_a_node_that_two_classes_claim_is_used_once() -> None:
    twin = replace(H100, name="twin")
    made = settled({"scaling": {"minReplicas": 15}}, accelerators=(H100, twin))
    held = [pod for pod in made.pods.values() if pod.node is not None]
    assert len(held) == 16


def test_a_label_without_a_single_accelerator_is_no_room() -> None:
    made = settled({}, settings=SETTINGS)
    made.nodes = [replace(node, allocatable={GPU: 0}) for node in made.nodes]
    made.services.append(make_service("late", created_at=2.0))
    made.run(4)
    assert told(made, "CapacityAvailable", "late")["reason"] in ("InsufficientCapacity", "Available")
    assert made.serving(made.services[2].key) == 0


def test_where_a_device_plugin_is_down_the_spec_is_not_blamed() -> None:
    """Nodes of the class elsewhere would make it look as if the regions were wrong."""
    here, there = make_node("dark", accelerators=0, **{REGION_LABEL: "eu"}), make_node("there", cordoned=True)
    bound = make_service("bound", placement={"accelerators": ["h100"], "regions": ["eu"]})
    made = World(services=[bound], nodes=[here, there])
    made.run(8)
    assert told(made, "Stalled", "bound")["reason"] == "Accepted"
    assert told(made, "CapacityAvailable", "bound")["reason"] == "InsufficientCapacity"
    made.nodes = [replace(here, allocatable={GPU: 8}), there]
    made.run(8)
    assert made.serving(bound.key) == 1


def test_a_class_whose_device_plugins_are_down_is_not_chosen_until_they_are_up() -> None:
    board = {"example.org/board": "cheap"}
    cheap = replace(A100, spec=A100.spec.model_copy(update={"price_per_hour": 0.01, "node_labels": board}))
    dark = replace(make_node("dark", accelerators=0), labels=board)
    first, second = (make_service(name, model=SIZED) for name in ("first", "second"))
    made = World(services=[first], nodes=[dark, make_node("there")], extra={"accelerators": (H100, cheap)})
    memo = Memo()

    def chosen(name: str) -> str:
        """Of a process that goes on, which remembers what it has seen."""
        plan = decide(made.snapshot(), made.now, memo)
        return next(it.manifest["metadata"]["name"] for it in plan.actions if isinstance(it, Apply) and name in it.id)

    assert chosen("Deployment/default/first").startswith("first-h100-")
    made.services.append(second)
    made.nodes = [*made.nodes, replace(dark, name="lit", allocatable={GPU: 8})]
    assert chosen("Deployment/default/second").startswith("second-a100-")
    made.nodes = made.nodes[:-1]
    assert chosen("Deployment/default/second").startswith("second-h100-")


def test_of_guaranteed_volumes_that_exceed_the_fleet_the_oldest_has_its_own() -> None:
    def owed(name: str, age: float) -> Any:
        volume = {"volume": {"guaranteedTokensPerSecond": 40_000}}
        return make_service(name, created_at=age, tier="Guaranteed", objectives=volume)

    made = World(services=[owed("young", 2.0), owed("old", 1.0)], nodes=[make_node("n1")])
    made.run(10)
    old, young = (made.serving(make_service(name).key) for name in ("old", "young"))
    assert old > young
    assert old + young == 8
    assert told(made, "CapacityAvailable", "young")["reason"] == "InsufficientCapacity"


def test_a_guarantee_beyond_max_replicas_is_kept_and_the_contradiction_is_told_once() -> None:
    volume = {"volume": {"guaranteedTokensPerSecond": 40_000}}
    spec = {"tier": "Guaranteed", "objectives": volume, "scaling": {"maxReplicas": 1}}
    made = World(services=[make_service("asked", **spec)], nodes=[make_node("n1"), make_node("n2")])
    plans = made.run(10)
    found = told(made, "Stalled")
    assert (found["status"], found["reason"]) == ("False", "MaximumOutranked"), "it is carried out"
    served = made.serving(made.services[0].key)
    assert found["message"].startswith(f"spec.scaling.maxReplicas: the guaranteed volume takes {served} replicas")
    assert told(made, "Ready")["status"] == "True"
    warned = [event.type for plan in plans for event in plan.events if event.reason == "MaximumOutranked"]
    assert warned == ["Warning"]


def test_a_thousand_wrong_services_are_each_told_and_the_sound_one_serves() -> None:
    wrong = [
        make_service(f"wrong-{n}", created_at=float(n), placement={"accelerators": [f"gone-{n}"]}) for n in range(1000)
    ]
    made = World(services=[*wrong, make_service("sound", created_at=2000.0)], nodes=[make_node("n1")])
    made.run(6)
    reasons = [told(made, "Stalled", service.key.name)["reason"] for service in made.services[:1000]]
    assert reasons == ["UnknownAccelerator"] * 1000
    assert made.serving(made.services[-1].key) == 1


# --- names, sizes, profiles

LONGEST = ("c" * 40, "a" + "-" * 38 + "b", "c")


@pytest.mark.parametrize("name", LONGEST)
def test_names_of_children_are_names(name: str) -> None:
    assert not violations(changed(SERVICE, {"metadata": {"name": name}}))
    variant = make_variant(name="v" * 63)
    for child in children(make_service(name), [(variant, 1)], SETTINGS, needed=1, fleet=FLEET):
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", child["metadata"]["name"])
        assert len(child["metadata"]["name"]) <= 63


@pytest.mark.parametrize("name", ["c" * 41, "a.b", "Chat", "-chat", "chat-", "ch at", "", "чат", "0chat"])
def test_a_name_that_would_break_a_child_is_refused(name: str) -> None:
    assert any("metadata.name" in str(it) for it in violations(changed(SERVICE, {"metadata": {"name": name}})))


def test_the_largest_spec_fits_where_it_is_stored() -> None:
    """etcd takes 1.5 MiB an object."""
    uri = "pvc://" + "c" * 506
    adapters = [{"name": f"{number:03}" + "a" * 125, "uri": uri} for number in range(64)]
    spec = {"model": {"uri": f"hf://{MODEL}", "adapters": adapters}, "engine": {"name": "vLLM"}}
    resource = changed(SERVICE, {"spec": spec})
    assert not violations(resource)
    made = children(make_service(**resource["spec"]), [(make_variant(), 1)], SETTINGS, needed=1, fleet=FLEET)
    assert len(json.dumps(resource)) + max(len(json.dumps(child)) for child in made) < 1_000_000


BAD_PROFILES: dict[str, tuple[dict[str, Any], str]] = {
    "not a number": ({"step": {"alphaMs": float("nan")}}, "spec.step.alphaMs"),
    "infinite": ({"step": {"betaMs": float("inf")}}, "spec.step.betaMs"),
    "no KV cache": ({"kvCapacityTokens": 0}, "spec.kvCapacityTokens"),
    "below zero": ({"step": {"kappaMs": -1}}, "spec.step.kappaMs"),
    "no size": ({"tensorParallelSize": 0}, "spec.tensorParallelSize"),
}


@pytest.mark.parametrize(("spec", "field"), BAD_PROFILES.values(), ids=BAD_PROFILES)
def test_a_profile_with_nonsense_is_refused_at_its_field(spec: dict[str, Any], field: str) -> None:
    assert field in [found.field for found in violations(changed(PROFILE, {"spec": spec}))]


def test_a_volume_above_its_maximum_is_refused() -> None:
    volume = {"guaranteedTokensPerSecond": 200, "maxTokensPerSecond": 100}
    found = violations(changed(SERVICE, {"spec": {"objectives": {"volume": volume}}}))
    assert any("guaranteedTokensPerSecond is above maxTokensPerSecond" in str(it) for it in found)


def test_limits_of_one_namespace_twice_are_refused() -> None:
    twice = [{"name": "team", "maxAccelerators": 1}, {"name": "team", "maxAccelerators": 9}]
    assert any("twice" in str(it) for it in violations(changed(FLEET_OBJECT, {"spec": {"namespaces": twice}})))
