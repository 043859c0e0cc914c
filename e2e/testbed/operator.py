"""The operator as a user would have it: installed by Helm, running with its ServiceAccount's token and nothing more.

The chart brings everything but the Deployment's pod, which has no machine to run on here: its process runs beside the
cluster instead, with the very configuration that the chart wrote for the pod.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from e2e.testbed.cluster import Cluster
from e2e.testbed.processes import Processes, free_port

_ROOT = Path(__file__).resolve().parent.parent.parent
CHART = _ROOT / "charts/tokenservice"
NAMESPACE = "tokenservice-system"
RELEASE = "tokenservice"


@dataclass
class Operator:
    """An installed chart and, when started, its process."""

    cluster: Cluster
    processes: Processes
    prometheus_address: str
    values: dict[str, Any] = field(default_factory=dict)
    webhook_port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    health_port: int = field(default_factory=free_port)

    def install(self, chart: Path = CHART) -> str:
        """Installs the chart, or upgrades it to the values of now."""
        values = self.cluster.folder / "values.yaml"
        values.write_text(yaml.safe_dump(self._values()))
        arguments = ("upgrade", "--install", RELEASE, str(chart), "--namespace", NAMESPACE, "--create-namespace")
        return self.cluster.helm(*arguments, f"--values={values}", "--wait")

    def uninstall(self) -> str:
        return self.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")

    def start(self, name: str = "operator") -> None:
        """Starts the process."""
        self._run(name, self.configured(name))

    def start_standby(self, name: str) -> int:
        """Starts another process beside the first, on ports of its own; returns that of its webhook."""
        webhook, metrics, health = free_port(), free_port(), free_port()
        ports = {"webhook": {"port": webhook}, "metrics": {"port": metrics}, "health": {"port": health}}
        self._run(name, self.configured(name, ports))
        return webhook

    def _run(self, name: str, config: Path) -> None:
        kubeconfig = self.cluster.service_account_kubeconfig(NAMESPACE, RELEASE)
        command = [sys.executable, "-m", "tokenservice.app", f"--kubeconfig={kubeconfig}", f"--config={config}"]
        self.processes.start(name, command, env={"POD_NAMESPACE": NAMESPACE, "POD_NAME": name})

    def stop(self, name: str = "operator") -> None:
        """Asks it to end, as the kubelet would."""
        self.processes.stop_one(name)

    def kill(self, name: str = "operator") -> None:
        """No goodbye."""
        self.processes.signal(name, signal.SIGKILL)
        self.processes.stop_one(name)

    def _values(self) -> dict[str, Any]:
        base: dict[str, Any] = {
            "operator": {"replicas": 0, "logLevel": "info", "planIntervalSeconds": 2},
            "prometheus": {"address": self.prometheus_address},
            "webhook": {"url": f"https://127.0.0.1:{self.webhook_port}/mutate", "port": self.webhook_port},
            "metrics": {"port": self.metrics_port},
            "health": {"port": self.health_port},
            "modelVerifier": {"image": "example.org/model-verifier:e2e"},  # never pulled: stages.yaml plays it
        }
        return _merged(base, self.values)

    def configured(self, name: str, changes: dict[str, Any] | None = None) -> Path:
        """What the chart wrote, listening on loopback, with `changes`."""
        found = self.cluster.get("configmap", RELEASE, "-n", NAMESPACE)["data"]["config.yaml"]
        path = self.cluster.folder / f"{name}-config.yaml"
        over = {"listenAddress": "127.0.0.1", **(changes or {})}
        path.write_text(yaml.safe_dump(_merged(yaml.safe_load(found), over)))
        return path


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(merged.get(key), dict) and isinstance(value, dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
