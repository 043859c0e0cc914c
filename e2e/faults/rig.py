"""Control plane, Prometheus and engines as the tests of the product have them, with proxies before the operator.

The operator is not started here: each case starts one through a door of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

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

    def start(self, door: Door, **over: Any) -> Instance:
        """An operator that leads, through a door."""
        life = self.begin(door, **over)
        eventually(lambda: life.leads or not life.is_alive, "it leads", pause=0.02)
        assert life.is_alive, f"the operator ended: {life.error!r}"
        return life

    def begin(self, door: Door, **over: Any) -> Instance:
        """An operator, not waited for. Only one of them may have the webhook's port."""
        life = Instance(str(self.kubeconfig(door)), self.settings(**over))
        self.lives.append(life)
        return life

    def clear_lease(self) -> None:
        """As if the time of the one who held it were over."""
        if self.api.get("leases", RELEASE, NAMESPACE):
            self.api.patch("leases", RELEASE, {"spec": {"holderIdentity": ""}}, NAMESPACE)

    def mend(self) -> None:
        """Takes faults of the neighbours away."""
        self.to_metrics.clear()
        if "prometheus" not in self.bed.prometheus.processes.pids:
            self.bed.prometheus.start()

    def end(self) -> None:
        """Ends every operator that still lives, and forgets its Lease."""
        for life in self.lives:
            if life.is_alive:
                life.kill()
        self.lives.clear()
        self.clear_lease()

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
        watcher = prometheus.create(plane.folder / "prometheus", f"http://127.0.0.1:{farm_port}/sd", scrape_seconds=1)
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
        yield Rig(bed=bed, api=api, kube=kube, metrics=metrics, to_metrics=to_metrics)
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
