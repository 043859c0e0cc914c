"""The testbed itself: simulated pods behave as a kubelet would make them behave, nodes come and go."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from e2e.testbed.cluster import Cluster
from e2e.testbed.nodes import H100, Autoscaler, Pool

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.environ.get("CLUSTER") == "existing", reason="asks the control plane that is started here"),
]


@pytest.fixture
def node(cluster: Cluster) -> Iterator[str]:
    scaler = Autoscaler(cluster, ())
    name = scaler.add(H100)
    eventually(lambda: condition(cluster.get("node", name), "Ready") == "True")
    yield name
    cluster.kubectl("delete", "node", name, "--wait=false", check=False)


def eventually(check: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.2)


def condition(thing: dict[str, Any], kind: str) -> str | None:
    return next((c["status"] for c in thing.get("status", {}).get("conditions", []) if c["type"] == kind), None)


def engine_pod(name: str, namespace: str, *, gate: bool = False, gpus: int = 1, engine: bool = True) -> dict[str, Any]:
    limits = {"nvidia.com/gpu": str(gpus)}
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    spec: dict[str, Any] = {
        "containers": [
            {"name": "engine", "image": "example.org/x", "resources": {"limits": limits}, "securityContext": security}
        ],
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "terminationGracePeriodSeconds": 30,
    }
    if gate:
        spec["readinessGates"] = [{"conditionType": "taas.dev/serving"}]
    labels = {"taas.dev/service": "chat"} if engine else {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": spec,
    }


def annotate(cluster: Cluster, namespace: str, pod: str, key: str, value: str) -> None:
    cluster.kubectl("annotate", "pod", pod, "-n", namespace, f"testbed.taas.dev/{key}={value}", "--overwrite")


def serve(cluster: Cluster, namespace: str, pod: str, status: str) -> None:
    patch = f'{{"status":{{"conditions":[{{"type":"taas.dev/serving","status":"{status}"}}]}}}}'
    cluster.kubectl("patch", "pod", pod, "-n", namespace, "--subresource=status", "--type=strategic", "-p", patch)


def test_an_engine_pod_is_ready_when_its_engine_says_so(cluster: Cluster, namespace: str, node: str) -> None:
    cluster.apply(engine_pod("a", namespace))
    eventually(lambda: bool(cluster.get("pod", "a", "-n", namespace)["status"].get("podIP")))
    assert condition(cluster.get("pod", "a", "-n", namespace), "Ready") == "False"
    annotate(cluster, namespace, "a", "ready", "true")
    eventually(lambda: condition(cluster.get("pod", "a", "-n", namespace), "Ready") == "True")
    annotate(cluster, namespace, "a", "ready", "false")
    eventually(lambda: condition(cluster.get("pod", "a", "-n", namespace), "Ready") == "False")


def test_a_readiness_gate_holds_a_pod_back_and_takes_it_out(cluster: Cluster, namespace: str, node: str) -> None:
    cluster.apply(engine_pod("a", namespace, gate=True))
    annotate(cluster, namespace, "a", "ready", "true")
    eventually(lambda: condition(cluster.get("pod", "a", "-n", namespace), "ContainersReady") == "True")
    time.sleep(1)
    assert condition(cluster.get("pod", "a", "-n", namespace), "Ready") == "False"
    serve(cluster, namespace, "a", "True")
    eventually(lambda: condition(cluster.get("pod", "a", "-n", namespace), "Ready") == "True")
    serve(cluster, namespace, "a", "False")
    eventually(lambda: condition(cluster.get("pod", "a", "-n", namespace), "Ready") == "False")
    serve(cluster, namespace, "a", "True")
    eventually(lambda: condition(cluster.get("pod", "a", "-n", namespace), "Ready") == "True")


def test_a_deleted_engine_pod_stays_until_it_has_drained(cluster: Cluster, namespace: str, node: str) -> None:
    cluster.apply(engine_pod("a", namespace))
    annotate(cluster, namespace, "a", "ready", "true")
    eventually(lambda: condition(cluster.get("pod", "a", "-n", namespace), "Ready") == "True")
    cluster.kubectl("delete", "pod", "a", "-n", namespace, "--wait=false")
    time.sleep(2)
    assert cluster.get("pod", "a", "-n", namespace)["metadata"]["deletionTimestamp"]
    annotate(cluster, namespace, "a", "drained", "true")
    eventually(lambda: not cluster.get("pods", "-n", namespace)["items"])


def test_other_pods_are_ready_at_once_and_go_at_once(cluster: Cluster, namespace: str, node: str) -> None:
    cluster.apply(engine_pod("other", namespace, engine=False))
    eventually(lambda: condition(cluster.get("pod", "other", "-n", namespace), "Ready") == "True")
    cluster.kubectl("delete", "pod", "other", "-n", namespace, "--wait=false")
    eventually(lambda: not cluster.get("pods", "-n", namespace)["items"])


def test_a_node_comes_for_a_pod_that_fits_nowhere_and_goes_when_empty(cluster: Cluster, namespace: str) -> None:
    # Pods that other tests left behind may want nodes as well: this autoscaler looks at its own only.
    mine = lambda: cluster.get("pods", "-n", namespace)["items"]  # noqa: E731
    scaler = Autoscaler(cluster, (Pool(template=H100, maximum=2, start_seconds=1.0, idle_seconds=2.0),), mine)
    cluster.apply(engine_pod("a", namespace, gpus=8, engine=False), engine_pod("b", namespace, gpus=4, engine=False))
    running = lambda: [pod["spec"].get("nodeName") for pod in mine()]  # noqa: E731

    def look_until(check: Callable[[], bool]) -> None:
        def looked() -> bool:
            scaler.look(time.time())
            return check()

        eventually(looked, 30)

    look_until(lambda: all(running()))
    assert len(scaler.spans) == 2
    cluster.kubectl("delete", "pod", "a", "b", "-n", namespace)
    look_until(lambda: all(span.released_at for span in scaler.spans))
    assert all(span.ready_at and span.ready_at - span.requested_at >= 1.0 for span in scaler.spans)
