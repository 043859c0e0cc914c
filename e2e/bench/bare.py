"""The same objects without an operator: what the control plane alone takes on this machine, as the bench's own measure.

One service is made by the operator, to see what its children are. Then clients that know them already write them for
all the others. Nothing is watched and nothing decided, so no operator that makes these objects takes less.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import requests

from e2e.bench.measure import Say, Size, count, namespace, service, wait
from e2e.testbed.bed import Bed
from e2e.tests.support.api import Json, eventually, path, session
from tokenservice.core.names import PLACEMENT_GATE, SERVICE_LABEL

_CHILDREN = ("serviceaccounts", "networkpolicies", "deployments", "services", "poddisruptionbudgets")
"""In the order in which the operator writes them."""

_KEPT = ("name", "labels", "annotations", "ownerReferences")
_SERVERS_OWN = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")
_APPLY = {"Content-Type": "application/apply-patch+yaml"}

Children = list[tuple[str, Json]]
"""Kinds, as the API's paths have them, and manifests."""


def seconds_to_deployments(bed: Bed, size: Size, clients: int, say: Say) -> float:
    """From the first create to the last Deployment, with so many clients that write one service after the other."""
    with ThreadPoolExecutor(clients) as pool, session(bed.cluster) as client:
        pattern = service(size.services, size.replicas)
        children = _children_of(bed, pattern, client)
        bed.operator.stop()
        bed.cluster.kubectl("delete", "mutatingwebhookconfigurations", "--all")  # else every pod waits for an answer
        others, began = count(bed, "deployments", client), time.monotonic()
        written = [
            pool.submit(
                _write_all, bed, size, pattern["metadata"]["name"], children, range(first, size.services, clients)
            )
            for first in range(clients)
        ]
        wait(lambda: count(bed, "deployments", client) - others, size.services, "Deployments without an operator", say)
        took = time.monotonic() - began
        for one in written:
            one.result()
    return took


def _children_of(bed: Bed, pattern: Json, client: requests.Session) -> Children:
    """What the operator makes for a service, which is gone again afterwards."""
    home, name = pattern["metadata"]["namespace"], pattern["metadata"]["name"]
    url = bed.cluster.server + path("tokenservices", home)
    client.post(url, json=pattern, timeout=60).raise_for_status()

    def found() -> Children:
        return [(kind, one) for kind in _CHILDREN for one in _labelled(bed, kind, home, name, client)]

    eventually(lambda: len(found()) == len(_CHILDREN), "a service has its children", 60)
    children = found()
    client.delete(f"{url}/{name}", timeout=60).raise_for_status()
    eventually(lambda: not found(), "the children are gone", 120)
    return children


def _labelled(bed: Bed, kind: str, home: str, name: str, client: requests.Session) -> list[Json]:
    selected = {"labelSelector": f"{SERVICE_LABEL}={name}"}
    answer = client.get(bed.cluster.server + path(kind, home), params=selected, timeout=60).json()
    return [_as_written(one, answer["apiVersion"], answer["kind"].removesuffix("List")) for one in answer["items"]]


def _as_written(live: Json, version: str, kind: str) -> Json:
    """Without what the server adds; pods wait as they do until the operator has placed them."""
    metadata = {name: live["metadata"][name] for name in _KEPT if name in live["metadata"]}
    rest = {name: value for name, value in live.items() if name not in ("metadata", "status")}
    if "spec" in rest:
        rest["spec"] = {name: value for name, value in rest["spec"].items() if name not in _SERVERS_OWN}
    if kind == "Deployment":
        rest["spec"]["template"]["spec"]["schedulingGates"] = [{"name": PLACEMENT_GATE}]
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **rest}


def _write_all(bed: Bed, size: Size, pattern: str, children: Children, numbers: Iterable[int]) -> None:
    with session(bed.cluster) as client:
        for number in numbers:
            home, made = namespace(number), service(number, size.replicas)
            answer = client.post(bed.cluster.server + path("tokenservices", home), json=made, timeout=60)
            answer.raise_for_status()
            name, uid = made["metadata"]["name"], answer.json()["metadata"]["uid"]
            for kind, manifest in children:
                _apply(bed, kind, home, _of_another(manifest, pattern, name, uid), client)


def _of_another(manifest: Json, pattern: str, name: str, uid: str) -> Json:
    """The same child of another service."""
    own: Json = json.loads(json.dumps(manifest).replace(pattern, name))
    for owner in own["metadata"]["ownerReferences"]:
        owner["uid"] = uid
    return own


def _apply(bed: Bed, kind: str, home: str, manifest: Json, client: requests.Session) -> None:
    url = f"{bed.cluster.server}{path(kind, home)}/{manifest['metadata']['name']}"
    how = {"fieldManager": "bench", "force": "true"}
    answer = client.patch(url, data=json.dumps(manifest), headers=_APPLY, params=how, timeout=60)
    answer.raise_for_status()
