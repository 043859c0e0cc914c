"""One control plane for the tests of parts, one whole bed for the tests of the product; one namespace for each test."""

from __future__ import annotations

import gc
import hashlib
import re
from collections.abc import Iterator

import pytest

from e2e.testbed import bed as testbed_bed
from e2e.testbed import cluster as testbed
from e2e.testbed.bed import Bed
from e2e.testbed.cluster import Cluster
from e2e.tests.support.api import Api, eventually
from e2e.tests.support.bed import TIME_SCALE, VALUES, cleared, leads, mended, prepare
from e2e.tests.support.site import Site

LAST = ("test_rights",)
"""Modules that judge what all others have led to: they read the audit log of the whole run."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts them at the end."""
    items.sort(key=lambda item: item.path.stem in LAST)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A control plane that is ready, with nothing in it."""
    running = testbed.start()
    yield running
    running.stop()


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace that is named after the test and admits only restricted pods."""
    name = re.sub(r"[^a-z0-9-]+", "-", request.node.name.lower())[:50].strip("-")
    _create_namespace(cluster, name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def whole_bed() -> Iterator[Bed]:
    """A control plane of its own with the operator installed, Prometheus, and engines that start in a second."""
    running = testbed_bed.start(time_scale=TIME_SCALE, scrape_seconds=1, values=VALUES)
    try:
        prepare(running)
        eventually(lambda: leads(running), "the operator leads")
        yield running
    finally:
        cleared(running)
        running.stop()


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Collects what a test leaves at its end: a finalizer that runs while Python 3.11 parses a module breaks that."""
    yield
    gc.collect()


@pytest.fixture
def bed(whole_bed: Bed) -> Bed:
    """The whole, with everything running, whatever the test before did to it."""
    mended(whole_bed)
    return whole_bed


@pytest.fixture(scope="session")
def api(whole_bed: Bed) -> Iterator[Api]:
    made = Api(whole_bed.cluster)
    yield made
    made.close()


@pytest.fixture
def site(bed: Bed, api: Api, request: pytest.FixtureRequest) -> Iterator[Site]:
    """This test's corner of the cluster."""
    yield from make_site(bed, api, request.node.name)


@pytest.fixture(scope="module")
def module_site(whole_bed: Bed, api: Api, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A corner that the tests of a module share."""
    mended(whole_bed)
    yield from make_site(whole_bed, api, request.module.__name__.rpartition(".")[2])


def make_site(bed: Bed, api: Api, test: str) -> Iterator[Site]:
    """A namespace named after a test, gone with all that is in it afterwards; nodes of earlier ones are removed."""
    words = re.sub(r"[^a-z0-9]+", "-", test.lower().removeprefix("test_")).strip("-")
    name = f"{words[:40].rstrip('-')}-{hashlib.sha256(test.encode()).hexdigest()[:6]}"
    _sweep(bed, api)
    _create_namespace(bed.cluster, name)
    yield Site(bed, api, name)
    bed.cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


def _create_namespace(cluster: Cluster, name: str) -> None:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})


def _sweep(bed: Bed, api: Api) -> None:
    """Removes nodes whose test is over and whose pods are gone."""
    present = {namespace["metadata"]["name"] for namespace in api.list("namespaces")}
    for node in api.list("nodes"):
        if node["metadata"]["labels"].get("topology.kubernetes.io/region") not in present:
            api.delete("nodes", node["metadata"]["name"])
            bed.autoscaler.forget(node["metadata"]["name"])
