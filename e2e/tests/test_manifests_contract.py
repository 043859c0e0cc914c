"""What is rendered, judged by a real API server: schema, defaults, Pod Security, and whether it stays as applied."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from e2e.testbed.cluster import Cluster
from tests.core.rendering import SETTINGS, SPECS, VARIANTS, spec_of
from tests.support.build import make_service
from tokenservice.api.token_fleet import TokenFleetSpec
from tokenservice.core.drift import differs
from tokenservice.core.manifests import children
from tokenservice.core.names import FIELD_MANAGER

pytestmark = pytest.mark.cluster

FLEET = TokenFleetSpec.model_validate(
    {"acceleratorNodes": {"pool": "inference"}, "neverTouch": {"nodeLabels": {"team": "research"}}}
)


def rendered(case: str, namespace: str, replicas: int = 2) -> list[dict[str, Any]]:
    service = replace(make_service(namespace=namespace), spec=spec_of(case))
    deployments = [(variant, replicas) for variant in VARIANTS.values()]
    return list(children(service, deployments, SETTINGS, needed=1, fleet=FLEET))


def applied(cluster: Cluster, objects: list[dict[str, Any]], *options: str) -> list[dict[str, Any]]:
    """Server-side apply as the operator does it; the objects as the server then has them."""
    manager = f"--field-manager={FIELD_MANAGER}"
    arguments = ("apply", "--server-side", manager, *options, "-o", "json", "-f", "-")
    text = cluster.kubectl(*arguments, stdin="\n---\n".join(json.dumps(item) for item in objects))
    answer = json.loads(text)
    return list(answer["items"]) if answer["kind"] == "List" else [answer]


def named(objects: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(item["kind"], item["metadata"]["name"]): item for item in objects}


def test_the_server_takes_every_child_and_what_it_adds_is_no_drift(cluster: Cluster, namespace: str) -> None:
    for case in SPECS:
        desired = rendered(case, namespace)
        live = named(applied(cluster, desired, "--dry-run=server"))
        assert len(live) == len(desired), case
        assert [key for key, manifest in named(desired).items() if differs(manifest, live[key])] == [], case


def test_pods_are_admitted_where_restricted_is_enforced(cluster: Cluster, namespace: str) -> None:
    for case in SPECS:
        manifests = rendered(case, namespace)
        applied(cluster, [_orphaned(item) for item in manifests if item["kind"] == "ServiceAccount"])
        pods = [_pod(item) for item in manifests if item["kind"] == "Deployment"]
        assert len(applied(cluster, pods, "--dry-run=server")) == len(pods), case


def test_the_namespace_would_refuse_a_pod_that_is_not_restricted(cluster: Cluster, namespace: str) -> None:
    manifests = rendered("the least one can say", namespace)
    applied(cluster, [_orphaned(item) for item in manifests if item["kind"] == "ServiceAccount"])
    pod = _pod(next(item for item in manifests if item["kind"] == "Deployment"))
    del pod["spec"]["containers"][0]["securityContext"]["capabilities"]
    with pytest.raises(Exception, match="violates PodSecurity"):
        applied(cluster, [pod], "--dry-run=server")


def test_applying_again_changes_nothing(cluster: Cluster, namespace: str) -> None:
    for case in ("the least one can say", "every knob of the engine", "an image by digest"):
        desired = [_orphaned(item) for item in rendered(case, namespace, replicas=0)]
        first, second = (named(applied(cluster, desired)) for _ in range(2))
        for key, manifest in named(desired).items():
            assert _version(second[key]) == _version(first[key]), (case, key)
            assert not differs(manifest, second[key]), (case, key)


def _version(body: dict[str, Any]) -> Any:
    """What moves when a spec does; controllers write statuses in between."""
    metadata = body["metadata"]
    return metadata.get("generation") or metadata["resourceVersion"]


def _orphaned(manifest: dict[str, Any]) -> dict[str, Any]:
    """Without its owner, which does not exist here: the garbage collector would take the child for left behind."""
    metadata = {name: value for name, value in manifest["metadata"].items() if name != "ownerReferences"}
    return manifest | {"metadata": metadata}


def _pod(deployment: dict[str, Any]) -> dict[str, Any]:
    """A pod of the template, without the PriorityClass, which the chart brings."""
    template = json.loads(json.dumps(deployment["spec"]["template"]))
    metadata = template["metadata"] | {name: deployment["metadata"][name] for name in ("name", "namespace")}
    del template["spec"]["priorityClassName"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
