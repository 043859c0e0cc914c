"""Images that are held ready on nodes: by pods that are no replicas, where the next replicas would go."""

from __future__ import annotations

import pytest

from e2e.tests.support.api import Json
from e2e.tests.support.site import Site

pytestmark = pytest.mark.cluster

LABEL = "taas.dev/warm-up=chat"


def holding(site: Site) -> list[str]:
    """Nodes of the pods that hold images ready."""
    found = site.api.list("pods", site.namespace, LABEL)
    return sorted(pod["spec"].get("nodeName", "") for pod in found if pod["status"]["phase"] == "Running")


def leftovers(site: Site) -> list[Json]:
    kinds = ("daemonsets", "networkpolicies")
    named = [one for kind in kinds for one in site.api.list(kind, site.namespace)]
    return [one for one in named if "warm-up" in one["metadata"]["name"]]


def test_images_are_held_on_the_nodes_where_the_next_replicas_would_go_and_by_no_replica(site: Site) -> None:
    first, second = sorted([site.node(), site.node()])
    site.serving(scaling={"minReplicas": 1, "warmNodes": 2})
    site.eventually(lambda: holding(site) == [first, second], "both nodes hold the images")
    assert site.nodes_of() == [first]
    assert len(site.endpoints()) == 1
    assert (site.status()["replicas"], site.status()["desiredReplicas"]) == (1, 1)
    site.eventually(lambda: _guarded(site) == 1, "the budget counts the replica alone")
    assert "warmNodes" not in site.status(), "no kubelet has reported the images"

    pod = site.pods()[0]
    reported = {"images": [{"names": [pod["spec"]["containers"][0]["image"]], "sizeBytes": 10**10}]}
    site.api.patch("nodes", second, {"status": reported}, subresource="status")
    site.eventually(lambda: site.status().get("warmNodes") == [second], "the status says who has them")

    patch = '{"spec": {"scaling": {"warmNodes": 1}}}'
    site.kubectl("patch", "tsvc/chat", "--type=merge", f"--patch={patch}")
    site.eventually(lambda: holding(site) == [first], "one node is enough: the one in use, which is filled first")
    site.kubectl("patch", "tsvc/chat", "--type=merge", f"--patch={patch.replace('1', '0')}")
    site.eventually(lambda: not holding(site) and not leftovers(site), "nothing is left of it")
    assert site.nodes_of() == [first]
    assert site.pods()[0]["metadata"]["uid"] == pod["metadata"]["uid"]


def test_it_goes_with_its_service(site: Site) -> None:
    node = site.node()
    site.serving(scaling={"minReplicas": 1, "warmNodes": 1})
    site.eventually(lambda: holding(site) == [node], "the node holds the images")
    site.kubectl("delete", "tsvc/chat")
    site.eventually(lambda: not holding(site) and not leftovers(site), "it is gone")


def _guarded(site: Site) -> int:
    budget = site.api.get("poddisruptionbudgets", "chat", site.namespace)
    return int(budget["status"].get("expectedPods", -1)) if budget else -1
