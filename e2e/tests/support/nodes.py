"""What happens to nodes."""

from __future__ import annotations

from datetime import UTC, datetime

from e2e.tests.support.api import Json, condition, eventually
from e2e.tests.support.site import Site


def silence(site: Site, node: str) -> None:
    """The kubelet of a node dies: its Lease is renewed no more, and the node controller takes note."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    taken = {"holderIdentity": "nobody", "leaseDurationSeconds": 36000, "renewTime": now}

    def silent() -> bool:
        lease = site.api.get("leases", node, "kube-node-lease")
        if lease is not None and lease["spec"]["holderIdentity"] != "nobody":
            site.api.patch("leases", node, {"spec": taken}, "kube-node-lease")
        return condition(site.api.get("nodes", node), "Ready").get("status") == "Unknown"

    eventually(silent, f"{node} is not heard of")


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
