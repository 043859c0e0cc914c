"""LeaderWorkerSets in the testbed: their CRD, and their own controller with its webhooks, as built from its module.

It comes and goes in a running cluster. Its webhooks are what tells a container its place in the group, so they are on;
they listen on loopback, with a certificate made here.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from e2e.testbed.cluster import Cluster
from e2e.testbed.processes import Processes, free_port
from e2e.testbed.tools import source, tool
from tokenservice.edge.certificates import Authority

Json = dict[str, Any]

NAME = "lws"


def crd() -> Path:
    """The file with the CRD."""
    return source("lws") / "config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml"


@dataclass
class LeaderWorkerSets:
    """The API and its controller, for one cluster."""

    cluster: Cluster
    processes: Processes

    def install(self) -> None:
        """Brings the CRD, the controller and its webhooks."""
        self.cluster.kubectl("apply", "--server-side", f"--filename={crd()}")
        wait = ("wait", "--for=condition=Established", "--timeout=30s", f"--filename={crd()}")
        self.processes.wait_until(  # kubectl gives up at once while there are no conditions
            lambda: "condition met" in self.cluster.kubectl(*wait, check=False),
            what="LeaderWorkerSets are a kind",
            timeout_seconds=30,
        )
        folder, port, health = self.cluster.folder / NAME, free_port(), free_port()
        authority = self._certified(folder)
        (folder / "config.yaml").write_text(yaml.safe_dump(_configuration(folder, port, health)))
        command = [tool("lws"), f"--config={folder / 'config.yaml'}", "--leader-elect=false"]
        self.processes.start(NAME, [*command, f"--kubeconfig={self.cluster.kubeconfig}"])
        self.cluster.apply(*_webhooks(port, authority.pem))

    def uninstall(self) -> None:
        """Takes all of it away again, with what was made of it."""
        for kind in ("mutatingwebhookconfiguration", "validatingwebhookconfiguration"):
            self.cluster.kubectl("delete", kind, NAME, "--ignore-not-found")
        self.cluster.kubectl("delete", f"--filename={crd()}", "--ignore-not-found")
        self.processes.stop_one(NAME)

    def _certified(self, folder: Path) -> Authority:
        folder.mkdir(exist_ok=True)
        authority, now = Authority.create(datetime.now(UTC)), datetime.now(UTC)
        certificate, key = authority.issue(["127.0.0.1"], now)
        (folder / "tls.crt").write_bytes(certificate)
        (folder / "tls.key").touch(mode=0o600)
        (folder / "tls.key").write_bytes(key)
        return authority


def _configuration(folder: Path, port: int, health: int) -> Json:
    return {
        "apiVersion": "config.lws.x-k8s.io/v1alpha1",
        "kind": "Configuration",
        "internalCertManagement": {"enable": False},
        "metrics": {"bindAddress": "0"},
        "health": {"healthProbeBindAddress": f"127.0.0.1:{health}"},
        "webhook": {"host": "127.0.0.1", "port": port, "certDir": str(folder)},
    }


def _webhooks(port: int, pem: bytes) -> tuple[Json, ...]:
    """Those of its own manifests, by URL; of pods only the engines here."""
    found: list[Json] = []
    for shipped in yaml.safe_load_all((source("lws") / "config/webhook/manifests.yaml").read_text()):
        hooks = shipped["webhooks"]
        for hook in hooks:
            path = hook["clientConfig"].pop("service")["path"]
            hook["clientConfig"] = {
                "url": f"https://127.0.0.1:{port}{path}",
                "caBundle": base64.b64encode(pem).decode(),
            }
            if path.endswith("v1-pod"):
                hook["objectSelector"] = {
                    "matchExpressions": [{"key": "leaderworkerset.sigs.k8s.io/name", "operator": "Exists"}]
                }
        found.append(shipped | {"metadata": {"name": NAME}})
    return tuple(found)
