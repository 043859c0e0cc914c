"""A node: containerd, kubelet and kube-proxy in namespaces of their own.

The first process of a node's PID namespace is all that has to end for the node to be gone: the kernel then ends every
process in it, and with the last one go its mounts, its network and its addresses. What stays are folders and control
groups, which `stop` removes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e.real import network
from e2e.real.network import run
from e2e.testbed.cluster import Cluster
from e2e.testbed.processes import Processes
from e2e.testbed.tools import tool

CGROUPS = Path("/sys/fs/cgroup")
CGROUP_PREFIX = "taas-"
HOME = "/srv"
"""Where a node sees its own folder, so that paths to sockets stay short wherever the cache lies."""

PAUSE_IMAGE = "localhost/tokenservice/pause:1"
_PROXY_GROUP = "system:node-proxier"

_INIT = f"""
mount --bind "$1" {HOME}
mount -t tmpfs tmpfs /run
mount --bind {HOME}/log /var/log
hostname "$2"
touch {HOME}/ready
while :; do sleep 3600 & wait; done
"""
"""Bash, because the first process must take in orphans, and sleep does not."""


@dataclass
class Node:
    """One node; `number` counts from 1, `folder` holds all that it writes."""

    number: int
    folder: Path
    cluster: Cluster
    processes: Processes
    pid: int = 0

    @property
    def name(self) -> str:
        return f"real-{self.number}"

    @property
    def address(self) -> str:
        return network.address(self.number)

    def start(self, others: Iterable[int]) -> None:
        """Namespaces, network, containerd, kubelet and kube-proxy; the images must be in `folder/containerd`."""
        for name in ("log", "containerd", "kubelet", "cni/net.d", "config"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._start_namespaces()
        network.plug_in(self.number, self.pid, others)
        _make_cgroup(self._cgroup)
        self._start_containerd()
        self._start_kubelet()
        self._start_proxy()

    def command(self, *words: str | Path) -> list[str | Path]:
        """A command as it is run on this node."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--pid", "--ipc", "--uts", "--", *words]

    def stop(self) -> None:
        """The node's processes, then what they leave."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, 9)
        for name in ("proxy", "kubelet", "containerd", "node"):
            self.processes.stop_one(f"{self.name}-{name}", grace_seconds=2)
        remove_cgroup(self._cgroup)

    @property
    def _cgroup(self) -> str:
        return f"{CGROUP_PREFIX}{self.name}"

    def _start_namespaces(self) -> None:
        unshare = ("unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--mount-proc")
        init = ("bash", "-ec", _INIT, "node", self.folder, self.name)
        outer = self.processes.start(f"{self.name}-node", [*unshare, *init]).pid
        ready = self.folder / "ready"
        self.processes.wait_until(ready.exists, what=f"namespaces of {self.name}", timeout_seconds=20)
        self.pid = int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])

    def _start_containerd(self) -> None:
        self._write("containerd.toml", _CONTAINERD.replace("PAUSE", PAUSE_IMAGE))
        self._write_to("cni/net.d/10-taas.conflist", json.dumps(_cni(self.number)))
        self.processes.start(
            f"{self.name}-containerd", self.command("containerd", "-c", f"{HOME}/config/containerd.toml")
        )
        self.processes.wait_until(self._containerd_answers, what=f"containerd of {self.name}", timeout_seconds=60)

    def ctr(self, *words: str | Path) -> str:
        """containerd's client, in the namespace that the kubelet uses."""
        return run(*self.command("ctr", "--namespace=k8s.io", *words))

    def import_image(self, archive: Path) -> None:
        """Brings an image that is not in the folder the node began with."""
        own = self.folder / "image.tar"
        shutil.copyfile(archive, own)
        self.ctr("images", "import", f"{HOME}/{own.name}")
        own.unlink()

    def bring_model(self, image: str, script: Path) -> None:
        """Makes the model with the engine's own libraries, in the folder that pods mount."""
        folder = self.folder / "models"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)  # the image's user is not root
        shutil.copyfile(script, folder / "make.py")
        mount = f"type=bind,src={HOME}/models,dst=/models,options=rbind:rw"
        words = ("python", "/models/make.py", "/models/tiny", "/models/adapter", "/models/draft")
        self.ctr("run", "--rm", f"--mount={mount}", image, "make-model", *words)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)

    def check_engine(self, pod: dict[str, Any]) -> list[dict[str, Any]]:
        """The outcomes of `tokenservice engine check`, run beside the pod so that it can stop the engine's process."""
        container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
        tasks = dict(line.split()[:2] for line in self.ctr("tasks", "ls").splitlines()[1:])
        report = self.folder / "contract.json"
        check = (
            Path(sys.executable).with_name("tokenservice"),
            "engine",
            "check",
            f"http://{pod['status']['podIP']}:8000",
        )
        with suppress(network.CommandError):  # broken promises are in the report; without one there is nothing to read
            run(*self.command(*check, f"--pid={tasks[container]}", f"--json={report}"))
        return list(json.loads(report.read_text())["outcomes"])

    def _containerd_answers(self) -> bool:
        with suppress(network.CommandError):
            return bool(self.ctr("version"))
        return False

    def _start_kubelet(self) -> None:
        kubeconfig = self.cluster.user_kubeconfig(f"system:node:{self.name}")
        self._write("kubelet.kubeconfig", kubeconfig.read_text())
        self._write("client-ca.crt", self.cluster.kubelet_client_certificate.read_text())
        self._write("kubelet.yaml", yaml.safe_dump(_kubelet(self._cgroup)))
        self._write("resolv.conf", "")
        command = (
            tool("kubelet"),
            f"--config={HOME}/config/kubelet.yaml",
            f"--kubeconfig={HOME}/config/kubelet.kubeconfig",
            f"--root-dir={HOME}/kubelet",
            f"--cert-dir={HOME}/kubelet/pki",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
        )
        self.processes.start(f"{self.name}-kubelet", self.command(*command))

    def _start_proxy(self) -> None:
        kubeconfig = self.cluster.user_kubeconfig("system:kube-proxy")
        self._write("proxy.kubeconfig", kubeconfig.read_text())
        self._write("proxy.yaml", yaml.safe_dump(_proxy(self.name, network.pods(self.number))))
        self.processes.start(
            f"{self.name}-proxy", self.command(tool("kube-proxy"), f"--config={HOME}/config/proxy.yaml")
        )

    def _write(self, name: str, text: str) -> None:
        self._write_to(f"config/{name}", text)

    def _write_to(self, path: str, text: str) -> None:
        target = self.folder / path
        target.touch(mode=0o600)
        target.write_text(text)


_CONTAINERD = f"""
version = 2
root = "{HOME}/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "PAUSE"
# What a container without CAP_SYS_RESOURCE cannot lower is left as it is.
restrict_oom_score_adj = true
disable_tcp_service = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{HOME}/cni/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""


def _cni(number: int) -> dict[str, object]:
    """Every pod is routed: on a bridge, answers of a pod on the same node would pass kube-proxy's translation by."""
    ranges = [[{"subnet": network.pods(number)}]]
    ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": f"{HOME}/cni"}
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": "0.4.0", "name": "taas", "plugins": [{"type": "ptp", "ipam": ipam}, portmap]}


def _kubelet(cgroup: str) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": f"{HOME}/config/client-ca.crt"},
        },
        "authorization": {"mode": "AlwaysAllow"},  # of those with the API server's certificate
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "200Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "imageMaximumGCAge": "0s",
        "nodeStatusUpdateFrequency": "4s",
        "port": 10250,
        "resolvConf": f"{HOME}/config/resolv.conf",
        "serializeImagePulls": True,
        "syncFrequency": "10s",  # how long a changed ConfigMap waits for the next look at its pod; by default a minute
    }


def _proxy(name: str, pods: str) -> dict[str, object]:
    """Limits of connection tracking are the machine's, not a namespace's to set: left alone."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{HOME}/config/proxy.kubeconfig"},
        "clusterCIDR": pods,
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
        "hostnameOverride": name,
        "iptables": {"minSyncPeriod": "0s", "syncPeriod": "30s"},
        "mode": "iptables",
    }


def _hierarchies() -> list[Path]:
    """Every hierarchy of version 1, or the one of version 2."""
    found = [path for path in CGROUPS.iterdir() if (path / "tasks").exists()]
    return found or [CGROUPS]


def _make_cgroup(name: str) -> None:
    for hierarchy in _hierarchies():
        folder = hierarchy / name
        folder.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (folder / setting).exists() and (hierarchy / "tasks").exists():
                (folder / setting).write_text((hierarchy / setting).read_text())


def remove_cgroup(name: str, timeout_seconds: float = 10.0) -> None:
    """In every hierarchy, bottom up; a group whose last process is still going answers busy for a moment."""
    deadline = time.monotonic() + timeout_seconds
    for hierarchy in (CGROUPS, *(path for path in CGROUPS.iterdir() if path.is_dir())):
        folder = hierarchy / name
        while folder.exists() and not _removed(folder) and time.monotonic() < deadline:
            time.sleep(0.1)


def _removed(folder: Path) -> bool:
    with suppress(OSError):
        for below, _, _ in os.walk(folder, topdown=False):
            Path(below).rmdir()
        return True
    return False
