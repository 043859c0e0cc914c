"""Everything together: control plane, Prometheus, fake engines, node autoscaler, the installed operator.

load ──> ready endpoints ──> fake engines <── one per Running engine pod
                                 │ /metrics, found by HTTP service discovery
                             Prometheus <── operator ──> API server <── scheduler, controllers, KWOK
"""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import yaml

from e2e.testbed import cluster as control_plane
from e2e.testbed import prometheus
from e2e.testbed.cluster import LOOPBACK, Cluster, TestbedError, Wiring
from e2e.testbed.nodes import Autoscaler, Pool
from e2e.testbed.operator import Operator
from e2e.testbed.processes import Processes, free_port
from e2e.testbed.prometheus import Prometheus
from tokenservice.api import API_VERSION


@dataclass
class Bed:
    """The parts; `start` makes one."""

    cluster: Cluster
    processes: Processes
    prometheus: Prometheus
    operator: Operator
    farm_port: int
    autoscaler: Autoscaler
    time_scale: float
    own_cluster: bool = field(default=True)
    default_profile: str = ""
    """How fast engines are whose variant was never measured; without it they wait for a profile for ever."""

    @property
    def farm_url(self) -> str:
        return f"http://127.0.0.1:{self.farm_port}"

    def start_farm(self) -> None:
        """Starts the process that plays the engines; CapacityProfiles must be a known kind by then."""
        command = [
            sys.executable,
            "-m",
            "e2e.engines.farm",
            f"--kubeconfig={self.cluster.kubeconfig}",
            f"--port={self.farm_port}",
            f"--time-scale={self.time_scale}",
            f"--default-profile={self.default_profile}",
            "--log-level=WARNING",
        ]
        self.processes.start("farm", command)
        self.processes.wait_until(self._farm_answers, what="fake engines listening", timeout_seconds=30)

    def await_owners(self) -> None:
        """Returns when children of TokenServices are admitted: the API server looks for new kinds twice a minute.

        The operator tries again until then; nothing here is about that wait.
        """
        self.processes.wait_until(self._admits_children, what="children admitted", timeout_seconds=90, pause_seconds=1)

    def _admits_children(self) -> bool:
        owner = {"apiVersion": API_VERSION, "kind": "TokenService", "name": "any", "uid": "any"}
        child = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "any", "ownerReferences": [owner | {"blockOwnerDeletion": True}]},
        }
        with suppress(TestbedError):
            return bool(self.cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(child)))
        return False

    def stop(self) -> None:
        """Stops what was started here, and nothing else; a cluster that was there loses the chart again."""
        self.processes.stop()
        self.prometheus.stop()
        if not self.cluster.owned:
            self.operator.uninstall()
        if self.own_cluster:
            self.cluster.stop()

    def _farm_answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.farm_url}/sd", timeout=1) as response:
            return bool(response.status == 200)
        return False


def start(
    *,
    pools: tuple[Pool, ...] = (),
    time_scale: float = 1.0,
    scrape_seconds: int = 5,
    values: dict[str, Any] | None = None,
    cluster: Cluster | None = None,
    wiring: Wiring = LOOPBACK,
    say: Callable[[str], None] = print,
) -> Bed:
    """All of it, ready. A given cluster is used and left running at the end."""
    say("control plane: etcd, API server, scheduler, controllers, KWOK")
    plane = cluster or control_plane.start(wiring=wiring)
    processes = Processes(plane.folder / "logs")
    farm_port = free_port()
    try:
        say("Prometheus")
        watcher = prometheus.create(
            plane.folder / "prometheus", f"http://127.0.0.1:{farm_port}/sd", scrape_seconds=scrape_seconds
        )
        operator = Operator(plane, processes, watcher.address, values or {})
        bed = Bed(
            cluster=plane,
            processes=processes,
            prometheus=watcher,
            operator=operator,
            farm_port=farm_port,
            autoscaler=Autoscaler(plane, pools),
            time_scale=time_scale,
            own_cluster=cluster is None,
        )
        watcher.start()
        say("Helm: the operator's chart")
        operator.install()
        say("fake engines")
        bed.start_farm()
        say("the operator, with its ServiceAccount's token")
        operator.start()
        bed.await_owners()
    except BaseException:
        processes.stop()
        if cluster is None:
            plane.stop()
        raise
    return bed
