"""Which nodes have the images that replicas need, and what comes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.build import make_metrics, make_node, make_pod, make_service
from tests.support.world import World
from tokenservice.core import locality
from tokenservice.core.decide import decide
from tokenservice.core.memo import Memo
from tokenservice.core.model import EngineImages, Place

MODEL = f"sha256:{'a' * 64}"
ADAPTER = f"sha256:{'b' * 64}"
ENGINE = "docker.io/vllm/vllm-openai:v1"
IMAGES = EngineImages(defaults={("vLLM", "NVIDIA"): "vllm/vllm-openai:v1"})


def test_images_of_models_adapters_and_engines_are_of_interest() -> None:
    adapters = [{"name": "a", "uri": f"oci://r/a@{ADAPTER}"}, {"name": "b", "uri": "hf://team/b"}]
    mounted = make_service("mounted", model={"uri": f"oci://r/m@{MODEL}", "adapters": adapters})
    downloaded = make_service("downloaded", engine={"name": "vLLM", "image": f"own@{'sha256:' + 'c' * 64}"})
    unreadable = replace(make_service("unreadable"), spec=None)
    found = locality.in_use([mounted, downloaded, unreadable], IMAGES, Memo())
    assert found == {MODEL, ADAPTER, ENGINE, "sha256:" + "c" * 64}


def test_holders_are_the_nodes_that_report_an_image_now() -> None:
    memo, wanted = Memo(), frozenset({MODEL, ENGINE})
    one, two = replace(make_node("n1"), images=(MODEL, "other")), replace(make_node("n2"), images=(ENGINE, MODEL))
    assert locality.holders([one, two], wanted, memo) == {MODEL: {"n1", "n2"}, ENGINE: {"n2"}}
    collected = replace(two, images=(ENGINE,))
    assert locality.holders([one, collected], wanted, memo) == {MODEL: {"n1"}, ENGINE: {"n2"}}
    assert locality.holders([collected], wanted, memo) == {ENGINE: {"n2"}}
    assert locality.holders([collected], frozenset({MODEL}), memo) == {}


@pytest.mark.parametrize(
    ("on", "aside"),
    [(["n2"], ", which has its images"), (["n1"], ", which has 1 of its 2 images"), (["n3"], "")],
)
def test_a_placement_says_how_much_of_what_a_pod_needs_is_there(on: list[str], aside: str) -> None:
    held = {MODEL: frozenset({"n2"}), ENGINE: frozenset({"n1", "n2"})}
    assert locality.told(make_pod("new", images=(MODEL, ENGINE)), on[0], held) == aside


def test_a_new_replica_goes_where_the_weights_are() -> None:
    service = make_service("chat")
    made = World(services=[service], nodes=[make_node("n1"), make_node("n2")])
    made.metrics = {service.key: make_metrics(0.1)}
    made.round(0.0)
    made.pods = {name: replace(pod, images=(MODEL, ENGINE)) for name, pod in made.pods.items()}
    seen = replace(made.snapshot(), holders={MODEL: frozenset({"n2"}), ENGINE: frozenset({"n1", "n2"})})
    (placed,) = [action for action in decide(seen, made.now).actions if isinstance(action, Place)]
    assert (placed.node, placed.message.partition(", ")[2]) == (
        "n2",
        "the fullest node that fits, which has its images",
    )
