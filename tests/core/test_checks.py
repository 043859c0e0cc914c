from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.core.rendering import DIGEST, IMAGES, MI300X, make_variant
from tests.support.build import H100, H100_8B, MODEL, make_node, make_service, make_snapshot, make_spec
from tokenservice.api.token_service import Architecture
from tokenservice.core.checks import older, problems, static_problems, with_image
from tokenservice.core.facts import Facts
from tokenservice.core.model import EngineImages, Node, Problem, Reason, Service, Settings, Variant

SETTINGS = Settings(images=IMAGES)
REGION, ZONE = "topology.kubernetes.io/region", "topology.kubernetes.io/zone"


def judged(
    service: Service | None = None,
    *,
    others: tuple[Service, ...] = (),
    nodes: tuple[Node, ...] = (),
    variants: tuple[Variant, ...] | None = None,
    found: tuple[Problem, ...] = (),
    settings: Settings = SETTINGS,
    **spec: Any,
) -> tuple[Problem, ...]:
    mine = service or make_service(created_at=100.0, **spec)
    facts = Facts(make_snapshot(mine, *others, nodes=nodes, settings=settings))
    return problems(facts, mine, (make_variant(),) if variants is None else variants, found)


def only(found: tuple[Problem, ...]) -> Problem:
    (problem,) = found
    return problem


def node_in(region: str | None, zone: str | None = None, name: str = "n1") -> Node:
    labels = {REGION: region, ZONE: zone}
    return make_node(name, **{key: value for key, value in labels.items() if value is not None})


def test_a_sound_service_has_no_problems() -> None:
    assert judged(nodes=(node_in(None),)) == ()


def test_a_spec_that_cannot_be_read_is_told_in_the_parsers_words() -> None:
    broken = replace(make_service(), spec=None, error="spec.engine.name: vLLM, SGLang or Auto")
    problem = only(judged(broken))
    assert (problem.reason, problem.message) == (Reason.INVALID_SPEC, "spec.engine.name: vLLM, SGLang or Auto")


def test_what_the_choice_of_variants_found_is_told_too_and_once() -> None:
    found = Problem(Reason.UNKNOWN_ACCELERATOR, "spec.placement.accelerators[0]", "there is no AcceleratorClass 'h900'")
    assert judged(found=(found, found)) == (found,)


def test_every_fault_is_told_at_once() -> None:
    found = judged(
        model={"uri": "oci://example.org/m"},
        engine={"name": "vLLM", "image": f"evil.org/x@{DIGEST}", "extraArgs": ["--host=x"]},
    )
    assert [problem.field for problem in found] == [
        "spec.model.uri",
        "spec.engine.extraArgs[0]",
        "spec.engine.image",
    ]


# --- names


def claimer(name: str, created_at: float, namespace: str = "default", **model: Any) -> Service:
    return make_service(name, namespace=namespace, created_at=created_at, model={"uri": f"hf://{MODEL}"} | model)


ADAPTERS = [{"name": "legal", "uri": "hf://acme/legal"}]


@pytest.mark.parametrize(
    ("mine", "theirs", "field"),
    [
        ({"servedName": "llama"}, {"servedName": "llama"}, "spec.model.servedName"),
        ({"servedName": "first"}, {}, "spec.model.servedName"),
        ({}, {"servedName": "second"}, "spec.model.servedName"),
        ({"servedName": "legal"}, {"adapters": ADAPTERS}, "spec.model.servedName"),
        ({"adapters": ADAPTERS}, {"servedName": "legal"}, "spec.model.adapters[legal].name"),
        ({"adapters": ADAPTERS}, {"adapters": ADAPTERS}, "spec.model.adapters[legal].name"),
    ],
    ids=["both say so", "a name", "a default", "an adapter's", "by an adapter", "adapters"],
)
def test_a_model_name_belongs_to_the_older_service(mine: dict[str, Any], theirs: dict[str, Any], field: str) -> None:
    old, young = claimer("first", 1.0, **theirs), claimer("second", 2.0, **mine)
    problem = only(judged(young, others=(old,)))
    assert (problem.reason, problem.field) == (Reason.SERVED_NAME_TAKEN, field)
    assert "first" in problem.message
    assert judged(old, others=(young,)) == ()


def test_of_two_services_of_one_age_exactly_one_is_stopped() -> None:
    pair = [claimer(name, 5.0, servedName="llama") for name in ("a", "b")]
    stopped = [bool(judged(one, others=tuple(o for o in pair if o is not one))) for one in pair]
    assert stopped == [False, True]


@pytest.mark.parametrize(
    "other",
    [
        claimer("first", 1.0, namespace="elsewhere", servedName="llama"),
        replace(claimer("first", 1.0, servedName="llama"), deleting=True),
        replace(claimer("first", 1.0, servedName="llama"), spec=None),
    ],
    ids=["in another namespace", "going", "unreadable"],
)
def test_a_name_is_free_when_the_other_is(other: Service) -> None:
    assert judged(claimer("second", 2.0, servedName="llama"), others=(other,)) == ()


def test_older_is_before_or_first_by_name() -> None:
    a, b, c = claimer("a", 5.0), claimer("b", 5.0), claimer("c", 4.0)
    assert older(b, (a, b, c)) == (a, c)
    assert older(c, (a, b, c)) == ()


# --- images


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        (f"example.org/own@{DIGEST}", True),
        (f"example.org/own@sha256:{'f' * 64}", False),
        (f"example.org/tagless@sha256:{'f' * 64}", True),
        (f"example.org/tagless:v1@sha256:{'f' * 64}", True),
        (f"example.org/tagless-not@sha256:{'f' * 64}", False),
        (f"example.org/engines/any@{DIGEST}", True),
        (f"example.org/enginesx@{DIGEST}", False),
        (f"evil.org/example.org/engines/any@{DIGEST}", False),
    ],
)
def test_users_may_name_images_of_the_allow_list(image: str, allowed: bool) -> None:
    found = judged(engine={"name": "vLLM", "image": image})
    assert [problem.reason for problem in found] == ([] if allowed else [Reason.IMAGE_NOT_ALLOWED])


def test_a_repository_at_a_port_is_told_from_its_tag() -> None:
    images = replace(IMAGES, allowed=("registry:5000/vllm",))
    spec = {"name": "vLLM", "image": f"registry:5000/vllm:1@{DIGEST}"}
    assert judged(engine=spec, settings=Settings(images=images)) == ()


def test_without_an_allow_list_no_image_may_be_named() -> None:
    images = EngineImages(defaults=IMAGES.defaults)
    found = judged(engine={"name": "vLLM", "image": f"a/b@{DIGEST}"}, settings=Settings(images=images))
    assert only(found).reason is Reason.IMAGE_NOT_ALLOWED


def test_an_image_says_which_engine_it_holds() -> None:
    problem = only(judged(engine={"image": f"example.org/own@{DIGEST}"}))
    assert (problem.reason, problem.field) == (Reason.INVALID_SPEC, "spec.engine.name")


def test_without_any_image_for_the_vendor_there_is_nothing_to_run() -> None:
    nvidia_only = EngineImages(defaults={("vLLM", "NVIDIA"): "example.org/vllm:1"})
    amd = make_variant(accelerator=MI300X)
    problem = only(judged(variants=(amd,), settings=Settings(images=nvidia_only)))
    assert problem.reason is Reason.NO_ENGINE_IMAGE
    assert "vLLM on AMD" in problem.message
    assert judged(variants=(amd, make_variant()), settings=Settings(images=nvidia_only)) == ()
    assert with_image(make_spec(), (amd, make_variant()), nvidia_only) == (make_variant(),)


# --- places


@pytest.mark.parametrize(
    ("placement", "nodes", "field"),
    [
        ({"residency": {"regions": ["eu"]}}, [("us", "us-a")], "spec.placement.residency.regions"),
        ({"residency": {"regions": ["eu"]}}, [(None, None)], "spec.placement.residency.regions"),
        ({"regions": ["eu"]}, [("us", "us-a")], "spec.placement.regions"),
        ({"zones": ["eu-b"]}, [("eu", "eu-a")], "spec.placement.zones"),
        ({"residency": {"regions": ["eu"]}, "regions": ["us"]}, [("us", ""), ("eu", "")], "spec.placement.regions"),
        ({"residency": {"regions": ["eu"]}}, [("us", ""), ("eu", "")], None),
        ({"regions": ["eu"], "zones": ["eu-b"]}, [("eu", "eu-a"), ("eu", "eu-b")], None),
        ({"residency": {"regions": ["eu"]}}, [], None),
    ],
    ids=[
        "residency",
        "nodes without a region",
        "regions",
        "zones",
        "regions within residency",
        "one is left",
        "one zone is left",
        "no nodes yet",
    ],
)
def test_some_node_must_be_where_the_service_may_run(
    placement: dict[str, Any], nodes: list[tuple[str | None, str | None]], field: str | None
) -> None:
    found = judged(placement=placement, nodes=tuple(node_in(*place, name=f"n{i}") for i, place in enumerate(nodes)))
    assert [(p.reason, p.field) for p in found] == ([(Reason.RESIDENCY_EXCLUDES_ALL, field)] if field else [])


@pytest.mark.parametrize("nodes", [(), (node_in("us"), node_in("eu", name="n2"))], ids=["no nodes", "nodes of both"])
def test_regions_that_residency_does_not_allow_are_told_whatever_nodes_there_are(nodes: tuple[Node, ...]) -> None:
    problem = only(judged(placement={"regions": ["us"], "residency": {"regions": ["eu"]}}, nodes=nodes))
    assert (problem.reason, problem.field) == (Reason.RESIDENCY_EXCLUDES_ALL, "spec.placement.regions")
    assert "residency allows eu only, and none of us is among them" in problem.message


def test_only_nodes_that_could_run_the_model_count() -> None:
    amd_node = replace(node_in("eu"), labels={REGION: "eu"} | dict(MI300X.spec.node_labels))
    problem = only(judged(placement={"residency": {"regions": ["eu"]}}, nodes=(amd_node, node_in("us", name="n2"))))
    assert "no node with h100 is in region eu, they are in us" in problem.message


def test_messages_stay_short_in_a_big_cluster() -> None:
    nodes = tuple(node_in(f"region-{i}", name=f"n{i}") for i in range(40))
    problem = only(judged(placement={"regions": ["eu"]}, nodes=nodes))
    assert "and 35 more" in problem.message
    assert len(problem.message) < 300


VENDORS: dict[str, tuple[str, bool]] = {
    "upstream's, for CUDA, of another day": (f"vllm/vllm-openai@{DIGEST}", False),
    "upstream's, for ROCm": (f"vllm/vllm-openai-rocm@{DIGEST}", True),
    "one repository for both, for ROCm by its tag": (f"lmsysorg/sglang:v9-rocm720-mi30x@{DIGEST}", True),
    "one repository for both, for CUDA by its tag": (f"lmsysorg/sglang:v9-cu126@{DIGEST}", False),
    "nobody can tell": (f"example.org/own@{DIGEST}", True),
}


@pytest.mark.parametrize(("image", "runs"), VENDORS.values(), ids=VENDORS)
def test_an_image_for_another_vendors_accelerators_is_not_run(image: str, runs: bool) -> None:
    defaults = {
        ("vLLM", "NVIDIA"): "vllm/vllm-openai:v0.32.0",
        ("vLLM", "AMD"): "vllm/vllm-openai-rocm:v0.32.0",
        ("SGLang", "NVIDIA"): "lmsysorg/sglang:v0.5.18",
        ("SGLang", "AMD"): "lmsysorg/sglang:v0.5.18-rocm720-mi30x",
    }
    images = EngineImages(
        defaults=defaults, allowed=("vllm/vllm-openai", "vllm/vllm-openai-rocm", "lmsysorg/sglang", "example.org/own")
    )
    spec, amd = {"name": "vLLM", "image": image}, make_variant(accelerator=MI300X)
    found = judged(engine=spec, variants=(amd,), settings=Settings(images=images))
    assert [(it.reason, it.field) for it in found] == ([] if runs else [(Reason.NO_ENGINE_IMAGE, "spec.engine.image")])
    assert all("is built for NVIDIA, and the model would run on AMD" in it.message for it in found)
    both = with_image(make_spec(engine=spec), (amd, make_variant()), images)
    assert (amd in both) == runs, "where both vendors are allowed the other one's accelerators are used"


# --- without a cluster

WITH_ROOM: dict[str, Any] = {"model": {"uri": f"hf://{MODEL}", "runtimeAdapters": {}}}
PROMISED: dict[str, Any] = {"tier": "Guaranteed", "objectives": {"volume": {"guaranteedTokensPerSecond": 90_000}}}
LLAMA = Architecture(parameters=8_030_000_000, layers=32, heads=32, kv_heads=8, head_dim=128)


@pytest.mark.parametrize(
    ("spec", "reasons"),
    [
        ({}, []),
        ({"engine": {"name": "vLLM", "extraArgs": ["--port=1"]}}, [Reason.CONFLICTING_ARGUMENTS]),
        ({"engine": {"name": "vLLM", "extraArgs": ["--api-key=1"]}}, [Reason.ARGUMENT_NOT_ALLOWED]),
        ({"engine": {"image": f"a/b@{DIGEST}"}}, [Reason.INVALID_SPEC]),
        ({"model": {"uri": "oci://a/b"}}, [Reason.INVALID_SPEC, Reason.UNKNOWN_MODEL]),
        ({"placement": {"accelerators": ["h900"]}}, [Reason.UNKNOWN_ACCELERATOR]),
        ({"engine": {"tensorParallelSize": 16}}, [Reason.TENSOR_PARALLEL_TOO_LARGE]),
        ({"engine": {"tensorParallelSize": 8, "pipelineParallelSize": 2}}, []),  # the cluster may span nodes
        (WITH_ROOM, []),
        (WITH_ROOM | {"engine": {"tensorParallelSize": 8, "pipelineParallelSize": 2}}, [Reason.INVALID_SPEC]),
        ({"objectives": {"timePerOutputToken": {"target": "1ms"}}}, [Reason.OBJECTIVES_UNREACHABLE]),
        ({"engine": {"name": "vLLM", "image": f"rocm/vllm@{DIGEST}"}}, [Reason.NO_ENGINE_IMAGE]),
        (PROMISED | {"scaling": {"maxReplicas": 2}}, [Reason.MAXIMUM_OUTRANKED]),
        (PROMISED | {"scaling": {"maxReplicas": 60}}, []),
        (PROMISED | {"scaling": {"maxReplicas": 2}, "replicas": 1}, []),
    ],
)
def test_lint_finds_it_without_a_cluster(spec: dict[str, Any], reasons: list[Reason]) -> None:
    found = static_problems(make_spec(**spec), (H100,), (H100_8B,), {MODEL: LLAMA})
    assert [problem.reason for problem in found] == reasons


def test_every_problem_names_a_field_and_a_way_out() -> None:
    specs: list[dict[str, Any]] = [
        {
            "engine": {
                "name": "vLLM",
                "extraArgs": ["--port=1", "--host=1", "--nope", "stray"],
                "image": f"a/b@{DIGEST}",
            }
        },
        {"model": {"uri": "s3://a/b", "digest": DIGEST, "revision": "x"}},
        {"placement": {"residency": {"regions": ["eu"]}}},
    ]
    for spec in specs:
        found = judged(nodes=(node_in("us"),), **spec)
        assert found
        for problem in found:
            assert problem.field.startswith("spec.")
            assert any(word in problem.message for word in (":", ".")), problem.message
            assert len(problem.message) < 300
