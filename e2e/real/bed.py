"""Control plane, two real nodes, Prometheus, and the operator as a pod of its own image, installed by its chart."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e.real import images, network
from e2e.real.discovery import Discovery
from e2e.real.images import Workshop
from e2e.real.machine import alone
from e2e.real.node import Node
from e2e.testbed import cluster as control_plane
from e2e.testbed import prometheus
from e2e.testbed.cluster import Cluster, Wiring
from e2e.testbed.operator import CHART, NAMESPACE, RELEASE
from e2e.testbed.processes import Processes
from e2e.testbed.prometheus import Prometheus
from e2e.testbed.tools import REAL_NODES, cache_root, obtain

Json = dict[str, Any]
Say = Callable[[str], None]

NODES = 2
ACCELERATORS_PER_NODE = 2
ACCELERATOR = "cpu-stand-in"
RESOURCE = "nvidia.com/gpu"
SCRAPE_SECONDS = 5
MODEL_FOLDER = Path("/srv/models")
"""On each node; a PersistentVolume of this path is the model's source."""


@dataclass
class Bed:
    """The parts; `start` makes one."""

    cluster: Cluster
    nodes: tuple[Node, ...]
    prometheus: Prometheus
    processes: Processes
    engine_image: str
    operator_image_bytes: int


@contextmanager
def start(say: Say) -> Iterator[Bed]:
    """All of it, ready but for the operator; at the end everything is gone, whatever happened. Raises CannotError."""
    with ExitStack() as stack:
        stack.enter_context(alone())
        say("programs: control plane, kubelet, kube-proxy")
        obtain()
        obtain(*REAL_NODES)
        workshop = Workshop.cached(say)
        store = workshop.engine_store()
        operator, verifier, loader = (
            workshop.operator_archive(),
            workshop.verifier_archive(),
            workshop.loader_archive(),
        )
        folder = cache_root() / "real"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        forwarded = network.create()
        stack.callback(network.remove, forwarded=forwarded)
        names = tuple(f"real-{number}" for number in range(1, NODES + 1))
        say("control plane: etcd, API server, scheduler, controllers, KWOK")
        home = Path(tempfile.mkdtemp(prefix="taas-"))
        cluster = control_plane.start(home, Wiring(address=network.GATEWAY, nodes=names))
        stack.callback(cluster.stop)
        processes = stack.enter_context(Processes(folder / "logs"))
        nodes = tuple(Node(number, folder / f"real-{number}", cluster, processes) for number in range(1, NODES + 1))
        for node in nodes:
            stack.callback(node.stop)
            say(f"node {node.name}: containerd, kubelet, kube-proxy")
            images.clone(store, node.folder / "containerd")
            node.start(other.number for other in nodes if other is not node)
        for node in nodes:
            node.import_image(operator)
            node.import_image(verifier)
            node.import_image(loader)
            node.ctr("images", "tag", f"{images.OPERATOR}:{images.CURRENT}", f"{images.OPERATOR}:{images.NEXT}")
        tag = store.name.removeprefix("engine-")
        yield Bed(
            cluster=cluster,
            nodes=nodes,
            prometheus=_furnished(cluster, nodes, processes, stack, say),
            processes=processes,
            engine_image=f"{images.ENGINE}:{tag}",
            operator_image_bytes=images.compressed_bytes(operator),
        )


def _furnished(
    cluster: Cluster,
    nodes: tuple[Node, ...],
    processes: Processes,
    stack: ExitStack,
    say: Say,
) -> Prometheus:
    """Waits for the nodes, gives them accelerators, and starts what watches them."""
    say("waiting for the nodes to be Ready")
    names = [f"node/{node.name}" for node in nodes]
    processes.wait_until(
        lambda: len(cluster.get("nodes")["items"]) == len(nodes), what="nodes registered", timeout_seconds=120
    )
    cluster.kubectl("wait", "--for=condition=Ready", *names, "--timeout=120s")
    for node in nodes:
        give_accelerators(cluster, node.name)
    say("Prometheus")
    discovery = Discovery(cluster.kubeconfig, cluster.folder / "targets")
    discovery.start()
    stack.callback(discovery.stop)
    watcher = prometheus.create_with(
        cluster.folder / "prometheus", discovery.scrape_jobs(), scrape_seconds=SCRAPE_SECONDS, host=network.GATEWAY
    )
    stack.callback(watcher.stop)
    watcher.start()
    return watcher


def give_accelerators(cluster: Cluster, node: str) -> None:
    """What a device plugin and feature discovery would do."""
    cluster.kubectl("label", "node", node, f"{RESOURCE}.product={ACCELERATOR}", "--overwrite")
    amount = str(ACCELERATORS_PER_NODE)
    patch = yaml.safe_dump({"status": {"capacity": {RESOURCE: amount}, "allocatable": {RESOURCE: amount}}})
    cluster.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "--patch", patch)


def install_operator(bed: Bed, tag: str = images.CURRENT) -> None:
    """By Helm, as a user would, into a namespace that admits restricted pods only; once more, it is an upgrade."""
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    bed.cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": enforced}},
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "models", "labels": enforced}},
    )
    values = bed.cluster.folder / "values.yaml"
    values.write_text(yaml.safe_dump(_values(bed, tag)))
    arguments = ("upgrade", "--install", RELEASE, str(CHART), "--namespace", NAMESPACE, f"--values={values}")
    bed.cluster.helm(*arguments, "--wait", "--timeout=180s")


def _values(bed: Bed, tag: str) -> Json:
    return {
        "image": {"repository": images.OPERATOR, "tag": tag, "pullPolicy": "Never"},
        "prometheus": {"address": bed.prometheus.address},
        "engineImages": {"vllm": {"nvidia": bed.engine_image}},
        "modelVerifier": {"image": f"{images.VERIFIER}:{images.CURRENT}"},
        "adapterLoader": {"image": f"{images.LOADER}:{images.CURRENT}"},
    }
