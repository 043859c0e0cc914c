"""Control plane, Prometheus and engines as the tests of the product have them, with proxies before the operator.

The operator is not started here: each case starts one through a door of its own.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from e2e.faults.faults import scraping
from e2e.faults.instance import PLAN_INTERVAL_SECONDS, Instance
from e2e.faults.proxy import Door, Proxy
from e2e.testbed import cluster as control_plane
from e2e.testbed import prometheus
from e2e.testbed.bed import Bed
from e2e.testbed.cluster import Cluster
from e2e.testbed.nodes import Autoscaler
from e2e.testbed.operator import NAMESPACE, RELEASE, Operator
from e2e.testbed.processes import Processes, free_port
from e2e.tests.support.api import Api, eventually, path, session
from e2e.tests.support.bed import prepare
from tokenservice.app.settings import Settings, load
from tokenservice.catalogue import accelerator_class_objects

TIME_SCALE = 200.0
"""Engines start in a fifth of a second: what is asked here is what happens, not how long it takes."""


@dataclass
class Rig:
    """All of it. `gate` is the door that operators use, unless a case asks for another."""

    bed: Bed
    api: Api
    kube: Proxy
    metrics: Proxy
    to_metrics: Door
    to_engines: Door
    lives: list[Instance] = field(default_factory=list)

    def door(self) -> Door:
        return self.kube.door()

    def kubeconfig(self, door: Door) -> Path:
        """The operator's own ServiceAccount, through a door."""
        config = yaml.safe_load(self._account().read_text())
        config["clusters"][0]["cluster"]["server"] = self.kube.url(door)
        path = self.bed.cluster.folder / f"door-{door.port}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        return path

    def settings(self, **over: Any) -> Settings:
        """What the chart wrote, with short intervals; the catalogue stays out unless asked for."""
        quick = {"planIntervalSeconds": PLAN_INTERVAL_SECONDS, "catalogue": False}
        return load(str(self.bed.operator.configured("faults", quick | over)))

    def prometheus(self) -> dict[str, Any]:
        """The settings of Prometheus with the patience of a second: a dead one is told from a slow one sooner."""
        return {"address": self.metrics.url(self.to_metrics), "timeoutSeconds": 1}

    def start(self, door: Door, *, lasts: float | None = None, **over: Any) -> Instance:
        """An operator that leads, through a door; its Lease `lasts` so many seconds."""
        life = self.begin(door, lasts=lasts, **over)
        eventually(lambda: life.leads or not life.is_alive, "it leads", pause=0.02)
        assert life.is_alive, f"the operator ended: {life.error!r}"
        return life

    def begin(self, door: Door, *, lasts: float | None = None, **over: Any) -> Instance:
        """An operator, not waited for. Only one of them may have the webhook's port."""
        life = Instance(str(self.kubeconfig(door)), self.settings(**self._named(over)), lease_seconds=lasts)
        self.lives.append(life)
        return life

    def process(self, name: str, door: Door, lease: float, namespace: str, *, clock: float = 0.0) -> None:
        """An operator as a process of its own, with kopf and all; it ends with the rig at the latest."""
        ports = {part: {"port": free_port()} for part in ("health", "metrics", "webhook")}
        over = {"planIntervalSeconds": 1, "catalogue": False, "watchNamespaces": [namespace], **ports}
        config = self.bed.operator.configured(name, over)
        command = [sys.executable, "-m", "e2e.faults.process", f"--kubeconfig={self.kubeconfig(door)}"]
        environment = {"POD_NAME": name, "TAAS_LEASE_SECONDS": str(lease), "TAAS_CLOCK_SECONDS": str(clock)}
        self.log_of(name, forget=True)
        self.bed.processes.start(name, [*command, f"--config={config}"], env=environment)

    def log_of(self, name: str, *, forget: bool = False) -> str:
        """What a process has logged."""
        path = self.bed.cluster.folder / f"logs/{name}.log"
        if forget:
            path.unlink(missing_ok=True)
        return path.read_text() if path.exists() else ""

    def clear_lease(self) -> None:
        """As if the time of the one who held it were over."""
        if self.api.get("leases", RELEASE, NAMESPACE):
            self.api.patch("leases", RELEASE, {"spec": {"holderIdentity": ""}}, NAMESPACE)

    def mend(self) -> None:
        """Takes faults of the neighbours away."""
        self.to_metrics.clear()
        self.to_engines.fault = scraping(self.bed.farm_port, self.to_engines.port)
        if "prometheus" not in self.bed.prometheus.processes.pids:
            self.bed.prometheus.start()

    def end(self) -> None:
        """Ends every operator that still lives, and forgets its Lease."""
        for life in self.lives:
            if life.is_alive:
                life.kill()
        for name in ("leader", "standby", "skewed"):
            self.bed.processes.signal(name, signal.SIGKILL)
            self.bed.processes.stop_one(name)
        self.lives.clear()
        self.clear_lease()

    @staticmethod
    def _named(over: dict[str, Any]) -> dict[str, Any]:
        """Ports that nobody is told of, so that two may run beside each other."""
        free = {"health": {"port": 0}, "metrics": {"port": 0}}
        return free | over

    def _account(self) -> Path:
        path = self.bed.cluster.folder / f"{NAMESPACE}-{RELEASE}.kubeconfig"
        return path if path.exists() else self.bed.cluster.service_account_kubeconfig(NAMESPACE, RELEASE)


@contextmanager
def rig() -> Iterator[Rig]:
    """Everything but an operator, ready."""
    plane = control_plane.start()
    processes = Processes(plane.folder / "logs")
    proxies: list[Proxy] = []
    watcher = None
    try:
        farm_port = free_port()
        engines = Proxy(f"http://127.0.0.1:{farm_port}")
        proxies.append(engines)
        to_engines = engines.door()
        watcher = prometheus.create(plane.folder / "prometheus", f"{engines.url(to_engines)}/sd", scrape_seconds=1)
        watcher.start()
        certificates = plane.folder / "certs"
        kube = Proxy(plane.server, certificate=f"{certificates}/apiserver.crt", key=f"{certificates}/apiserver.key")
        metrics = Proxy(watcher.address)
        proxies += [kube, metrics]
        to_metrics = metrics.door()
        bed = Bed(
            cluster=plane,
            processes=processes,
            prometheus=watcher,
            operator=Operator(plane, processes, metrics.url(to_metrics)),
            farm_port=farm_port,
            autoscaler=Autoscaler(plane, ()),
            time_scale=TIME_SCALE,
        )
        bed.operator.install()
        bed.start_farm()
        prepare(bed)
        plane.apply(*accelerator_class_objects())
        api = Api(plane)
        eventually(lambda: _watchable(plane), "watches of the new kinds are served")
        yield Rig(bed=bed, api=api, kube=kube, metrics=metrics, to_metrics=to_metrics, to_engines=to_engines)
        api.close()
    finally:
        for proxy in proxies:
            proxy.stop()
        processes.stop()
        if watcher is not None:
            watcher.stop()
        plane.stop()


def _watchable(plane: Cluster) -> bool:
    """A kind that was made a moment ago can be listed before it can be watched."""
    http = session(plane)
    asked = {"watch": "true", "timeoutSeconds": "1"}
    answer = http.get(plane.server + path("tokenservices", ""), params=asked, timeout=10)
    http.close()
    return answer.status_code == 200
