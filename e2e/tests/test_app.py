"""The operator's process on a real API server: how it starts, leads, ends, and comes back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.testbed.cluster import Cluster
from e2e.testbed.processes import free_port

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Process:
    """One operator that looks after one namespace, with its Lease in it."""

    cluster: Cluster
    namespace: str
    folder: Path
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    running: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / "operator.log"

    def start(self, **settings: Any) -> None:
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(self._settings() | settings))
        command = [sys.executable, "-m", "tokenservice.app", f"--config={config}"]
        with self.log.open("a") as log:
            self.running = subprocess.Popen([*command, f"--kubeconfig={self.cluster.kubeconfig}"], stderr=log, cwd=ROOT)

    def exports(self) -> str:
        """Its own metrics; empty while it does not answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as response:
                text: str = response.read().decode()
                return text
        except OSError:
            return ""

    def health(self) -> dict[str, Any]:
        """What its liveness probe sees; at most ten seconds old."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=5) as response:
            state: dict[str, Any] = json.load(response)["state"]
            return state

    def signal(self, number: signal.Signals) -> None:
        assert self.running is not None
        self.running.send_signal(number)

    def ended(self) -> tuple[int, str]:
        """Exit code and what it said."""
        assert self.running is not None
        code = self.running.wait(timeout=30)
        self.running = None
        return code, self.log.read_text()

    def stop(self) -> tuple[int, str]:
        self.signal(signal.SIGTERM)
        return self.ended()

    def lease(self) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.get("lease", "tokenservice", "-n", self.namespace)["spec"]
        return found

    def _settings(self) -> dict[str, Any]:
        return {
            "planIntervalSeconds": 1,
            "watchNamespaces": [self.namespace],
            "lease": {"namespace": self.namespace, "name": "tokenservice"},
            "listenAddress": "127.0.0.1",
            "health": {"port": self.port},
            "metrics": {"port": self.metrics_port},
            "webhook": {"enabled": False},
            "engineImages": {"vLLM": {"NVIDIA": "example.org/vllm:v0.32.0"}},
        }


@pytest.fixture
def process(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[Process]:
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    started = Process(cluster, namespace, tmp_path)
    yield started
    if started.running is not None:
        started.running.kill()
        started.running.wait()
    print(started.log.read_text())  # shown when the test failed


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


def service(namespace: str) -> dict[str, Any]:
    return {
        "apiVersion": "taas.dev/v1alpha1",
        "kind": "TokenService",
        "metadata": {"namespace": namespace, "name": "chat"},
        "spec": {"model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"}},
    }


def deployments(process: Process) -> list[Any]:
    items: list[Any] = process.cluster.get("deployments", "-n", process.namespace)["items"]
    return items


def leading(process: Process) -> bool:
    return "tokenservice_planning_healthy 1.0" in process.exports()


def test_it_leads_plans_and_hands_over_when_told_to_stop(process: Process, cluster: Cluster) -> None:
    process.start()
    until(lambda: leading(process))
    cluster.apply(service(process.namespace))
    until(lambda: deployments(process))
    assert cluster.get("acceleratorclass", "h100")["spec"]["vendor"] == "NVIDIA"
    conditions = until(lambda: _reconciled(process))
    assert {"Ready", "Stalled", "MetricsAvailable"} <= conditions
    assert "tokenservice_lease_held 1.0" in process.exports()
    until(lambda: 'tokenservice_service_desired_replicas{namespace="' in process.exports())
    assert process.health().keys() == {"leading", "planning", "unlisted"}
    began = time.monotonic()
    code, said = process.stop()
    assert code == 0, said
    assert "Traceback" not in said
    assert time.monotonic() - began < 10
    assert process.lease()["holderIdentity"] == ""


def _reconciled(process: Process) -> set[str]:
    """Condition types, once the operator has written them."""
    live = process.cluster.get("tokenservice", "chat", "-n", process.namespace)
    status = live.get("status", {})
    return {condition["type"] for condition in status["conditions"]} if "observedGeneration" in status else set()


def test_coming_back_after_a_crash_changes_nothing(process: Process, cluster: Cluster) -> None:
    cluster.apply(service(process.namespace))
    process.start()
    (before,) = until(lambda: deployments(process))
    process.signal(signal.SIGKILL)
    process.ended()
    process.start()
    until(lambda: leading(process))
    time.sleep(3)
    (after,) = deployments(process)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["metadata"]["generation"] == before["metadata"]["generation"]


def test_who_loses_the_lease_exits(process: Process, cluster: Cluster) -> None:
    process.start()
    until(lambda: leading(process))
    stolen = '{"spec":{"holderIdentity":"thief","leaseDurationSeconds":3600}}'
    cluster.kubectl("patch", "lease", "tokenservice", "-n", process.namespace, "--type=merge", "-p", stolen)
    code, said = process.ended()
    assert code == 1
    assert "thief does" in said
    assert process.lease()["holderIdentity"] == "thief"


def test_a_second_process_waits_and_says_so(process: Process, cluster: Cluster, tmp_path: Path) -> None:
    process.start()
    until(lambda: leading(process))
    (tmp_path / "second").mkdir()
    second = Process(cluster, process.namespace, tmp_path / "second")
    second.start()
    until(lambda: "tokenservice_lease_held 0.0" in second.exports())
    process.stop()
    until(lambda: leading(second))
    code, said = second.stop()
    assert code == 0, said


def test_settings_that_cannot_be_used_end_it_with_a_sentence(process: Process) -> None:
    process.start(planInterval=3)
    code, said = process.ended()
    assert code == 1
    assert "planInterval" in said
    assert "Traceback" not in said
