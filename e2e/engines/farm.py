"""Play the engine of every engine pod in a cluster: `python -m e2e.engines.farm --kubeconfig F --port P`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import time
from pathlib import Path

import yaml
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from e2e.engines.cluster import Api, PodReports, follow
from e2e.engines.contract import SERVICE_LABEL, Json, PodKey, is_engine_pod, read_pod, read_profile
from e2e.engines.fleet import Fleet, FleetOptions
from e2e.engines.server import serve

log = logging.getLogger(__name__)

PODS = "/api/v1/pods"
NODES = "/api/v1/nodes"
PROFILES = "/apis/taas.dev/v1alpha1/capacityprofiles"


class PodSink:
    """Pods of the API server to the fleet."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def seen(self, item: Json) -> None:
        if not is_engine_pod(item):  # a label was taken off
            self.gone(item)
            return
        try:
            self._fleet.pod_seen(read_pod(item))
        except ValueError as error:
            metadata = item["metadata"]
            log.warning("pod %s/%s cannot be played: %s", metadata["namespace"], metadata["name"], error)

    def gone(self, item: Json) -> None:
        self._fleet.pod_gone(_key(item))

    def listed(self, items: list[Json]) -> None:
        self._fleet.only_pods({_key(item) for item in items})
        for item in items:
            self.seen(item)


class NodeSink:
    """Nodes to the fleet: a deleted one, or one whose kubelet went silent, takes its engines with it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._known: set[str] = set()

    def seen(self, item: Json) -> None:
        name = item["metadata"]["name"]
        self._known.add(name)
        if _is_silent(item):
            self._fleet.node_lost(name)
        else:
            self._fleet.node_present(name)

    def gone(self, item: Json) -> None:
        name = item["metadata"]["name"]
        self._known.discard(name)
        self._fleet.node_lost(name)

    def listed(self, items: list[Json]) -> None:
        present = {item["metadata"]["name"] for item in items}
        for name in self._known - present:
            self._fleet.node_lost(name)
        self._known = present
        for item in items:
            self.seen(item)


class ProfileSink:
    """CapacityProfiles to the fleet. A deleted one stays known: engines of it are still running."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def seen(self, item: Json) -> None:
        name = item["metadata"]["name"]
        try:
            self._fleet.profile_seen(name, read_profile(item))
        except (KeyError, TypeError, ValueError) as error:
            log.warning("profile %s cannot be read: %r", name, error)

    def gone(self, item: Json) -> None:
        """Nothing to do."""

    def listed(self, items: list[Json]) -> None:
        for item in items:
            self.seen(item)


def _key(item: Json) -> PodKey:
    return PodKey(item["metadata"]["namespace"], item["metadata"]["name"])


def _is_silent(node: Json) -> bool:
    """Ready is Unknown once the node controller has heard nothing for its grace period."""
    conditions = (node.get("status") or {}).get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "Unknown" for c in conditions)


async def run_farm(
    client: ApiClient, port: int, options: FleetOptions, profiles: list[Json], stop: asyncio.Event
) -> None:
    """Serve until `stop` is set. `profiles` are CapacityProfile objects known beforehand."""
    api = Api(client)
    fleet = Fleet(asyncio.get_running_loop(), PodReports(api), options=options, wall_clock=time.time)
    profile_sink = ProfileSink(fleet)
    profile_sink.listed(profiles)
    runner, bound = await serve(fleet, port)
    log.info("engines listen on 127.0.0.1:%d, time scale %g", bound, options.time_scale)
    tasks = [
        asyncio.create_task(follow(api, NODES, NodeSink(fleet))),
        asyncio.create_task(follow(api, PROFILES, profile_sink)),
        asyncio.create_task(follow(api, PODS, PodSink(fleet), labelSelector=SERVICE_LABEL)),
    ]
    stopped = asyncio.create_task(stop.wait())
    try:
        done, _ = await asyncio.wait([*tasks, stopped], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # a follower never returns: let its defect be seen
    finally:
        for task in [*tasks, stopped]:
            task.cancel()
        await asyncio.gather(*tasks, stopped, return_exceptions=True)
        await runner.shutdown()
        await runner.cleanup()


async def connect(kubeconfig: str, context: str | None) -> ApiClient:
    """A client with the kubeconfig's credentials and room for the watches beside writes."""
    settings = Configuration()
    await config.load_kube_config(  # type: ignore[no-untyped-call]
        config_file=kubeconfig, context=context, client_configuration=settings
    )
    settings.connection_pool_maxsize = 32
    return ApiClient(configuration=settings)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m e2e.engines.farm", description=__doc__)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--context")
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    parser.add_argument("--time-scale", type=float, default=1.0, help="divides cold starts (default: %(default)s)")
    parser.add_argument("--cold-start-spread", type=float, default=0.0, help="0.2 is ±20 %% (default: %(default)s)")
    parser.add_argument("--profiles", type=Path, help="YAML file of CapacityProfiles, beside those in the cluster")
    parser.add_argument("--log-level", default="INFO")
    return parser.parse_args()


async def main() -> None:
    arguments = _arguments()
    logging.basicConfig(level=arguments.log_level, format="%(asctime)s %(name)s %(message)s")
    profiles = list(yaml.safe_load_all(arguments.profiles.read_text())) if arguments.profiles else []
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    client = await connect(arguments.kubeconfig, arguments.context)
    try:
        options = FleetOptions(arguments.time_scale, arguments.cold_start_spread)
        await run_farm(client, arguments.port, options, [p for p in profiles if p], stop)
    finally:
        await client.close()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    asyncio.run(main())
