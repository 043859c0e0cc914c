"""What happens to nodes."""

from __future__ import annotations

from datetime import UTC, datetime

from e2e.tests.support.api import Json, eventually
from e2e.tests.support.site import Site


def silence(site: Site, node: str) -> None:
    """The kubelet of a node dies: its Lease is renewed no more, and some seconds later the node controller notices."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    taken = {"holderIdentity": "nobody", "leaseDurationSeconds": 36000, "renewTime": now}
    eventually(lambda: site.api.get("leases", node, "kube-node-lease"), f"{node} has a Lease")
    site.api.patch("leases", node, {"spec": taken}, "kube-node-lease")


def foreign_pod(site: Site, name: str, node: str, *, gpus: int) -> Json:
    """A pod of somebody else that holds accelerators of a node."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    limits = {"nvidia.com/gpu": str(gpus)}
    container = {
        "name": "job",
        "image": "example.org/job",
        "resources": {"limits": limits},
        "securityContext": security,
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": site.namespace},
        "spec": {
            "containers": [container],
            "nodeSelector": {"kubernetes.io/hostname": node},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        },
    }
