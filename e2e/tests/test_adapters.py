"""Adapters come to running engines and leave them, and no replica is replaced for it.

The loader in each pod is the product's own program; engines, kubelet and hub are played (`e2e/engines/loaders.py`).
"""

from __future__ import annotations

from typing import Any

import pytest
import requests

from e2e.tests.support.api import Json, throughout
from e2e.tests.support.site import MODEL, SERVICE_LABEL, Site

pytestmark = pytest.mark.cluster

TONE: Json = {"name": "tone", "uri": "hf://testbed/tone"}
LOUD: Json = {"name": "loud", "uri": "hf://testbed/loud-r64"}
LOST: Json = {"name": "lost", "uri": "hf://testbed/lost"}


def spec(*adapters: Json, engine: str = "vLLM", replicas: int = 2, **model: Any) -> Json:
    served = {"uri": f"hf://{MODEL}", "adapters": list(adapters), "runtimeAdapters": {}} | model
    return {
        "model": {name: value for name, value in served.items() if value is not None},
        "engine": {"name": engine},
        "replicas": replicas,
        "scaling": {"minReplicas": 1},
    }


def shown(site: Site) -> dict[str, tuple[str, int]]:
    return {it["name"]: (it["state"], it["readyReplicas"]) for it in site.status().get("adapters", [])}


def said(site: Site, name: str) -> str:
    return next((str(it.get("message", "")) for it in site.status().get("adapters", []) if it["name"] == name), "")


def roots(site: Site) -> list[dict[str, str]]:
    """Adapters of each replica that serves, and where each is from."""
    urls = [f"{site.bed.farm_url}/pods/{site.namespace}/{pod}/v1/models" for pod in site.endpoints()]
    cards = [requests.get(url, timeout=10).json()["data"] for url in urls]
    return [{card["id"]: card["root"] for card in found if card["parent"]} for found in cards]


def rolled(site: Site) -> tuple[int, set[str]]:
    """What a rollout would change."""
    (found,) = site.deployments()
    return found["metadata"]["generation"], {pod["metadata"]["name"] for pod in site.pods()}


@pytest.mark.parametrize("engine", ["vLLM", "SGLang"])
def test_adapters_come_and_go_while_the_same_replicas_serve(site: Site, engine: str) -> None:
    site.node()
    site.serving(**spec(engine=engine))
    site.wait_ready_pods(2)
    before = rolled(site)
    with site.traffic(rate=1.0) as traffic:
        site.apply(**spec(TONE, engine=engine))
        site.eventually(lambda: shown(site) == {"tone": ("Ready", 2)}, "both replicas have it")
        first = roots(site)
        assert [list(one) for one in first] == [["tone"], ["tone"]]

        site.apply(**spec(TONE | {"uri": "hf://testbed/tone@v2"}, engine=engine))
        site.eventually(lambda: all(a["tone"] != b["tone"] for a, b in zip(roots(site), first, strict=True)), "changed")
        site.eventually(lambda: shown(site) == {"tone": ("Ready", 2)}, "both replicas have the other version")

        site.apply(**spec(engine=engine))
        site.eventually(lambda: (shown(site), roots(site)) == ({}, [{}, {}]), "nobody has it any more")
        traffic.goes_on(2)
    assert rolled(site) == before
    assert traffic.lost == {}


def test_what_cannot_be_loaded_is_told_in_the_engines_words_and_the_rest_serves(site: Site) -> None:
    site.node()
    site.serving(**spec(TONE, LOUD, LOST))
    site.eventually(lambda: shown(site).get("loud", ("", 0))[0] == "Failed", "a failure")
    assert said(site, "loud") == "LoRA rank 64 is greater than max_lora_rank 16."
    site.eventually(lambda: "could not be downloaded" in said(site, "lost"), "the hub's words")
    site.eventually(lambda: shown(site)["tone"] == ("Ready", 2), "the other is loaded")
    site.wait_true("Ready")


def test_a_replica_that_comes_later_has_them_too(site: Site) -> None:
    site.node()
    site.serving(**spec(TONE, replicas=1))
    site.eventually(lambda: shown(site) == {"tone": ("Ready", 1)}, "the first has it")
    site.apply(**spec(TONE, replicas=2))
    site.wait_ready_pods(2)
    site.eventually(lambda: shown(site) == {"tone": ("Ready", 2)}, "the second, too")


def test_with_the_operator_away_an_engine_that_restarts_gets_them_back(site: Site) -> None:
    site.node()
    site.serving(**spec(TONE, replicas=1))
    site.eventually(lambda: roots(site) and "tone" in roots(site)[0], "it is loaded")
    site.bed.operator.stop()
    (pod,) = site.endpoints()
    requests.post(f"{site.bed.farm_url}/admin/pods/{site.namespace}/{pod}/crash", timeout=10).raise_for_status()
    site.eventually(lambda: site.endpoints() == [], "the engine is away")
    site.eventually(lambda: site.endpoints() == [pod] and "tone" in roots(site)[0], "and back, with its adapter")


def test_without_the_field_they_are_arguments_again_and_the_list_goes_last(site: Site) -> None:
    site.node()
    site.serving(**spec(TONE, replicas=1))
    site.eventually(lambda: lists(site) == 1, "a list")
    generation, before = rolled(site)
    site.apply(**spec(TONE, replicas=1, runtimeAdapters=None))
    site.eventually(lambda: before.isdisjoint(site.endpoints()) and site.endpoints(), "the replica is replaced")
    site.eventually(lambda: lists(site) == 0, "no list")
    assert rolled(site)[0] > generation
    assert "--lora-modules" in site.pods()[0]["spec"]["containers"][0]["args"]
    throughout(lambda: lists(site) == 0, "it does not come back", seconds=2)


def lists(site: Site) -> int:
    return len(site.api.list("configmaps", site.namespace, SERVICE_LABEL))
