"""Play the engine of every engine pod in a cluster: `python -m e2e.engines.farm --kubeconfig F --port P`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import tempfile
import time
from pathlib import Path

import yaml

from e2e.engines.cluster import Api, connect
from e2e.engines.contract import SERVICE_LABEL, Json
from e2e.engines.fleet import Fleet, FleetOptions
from e2e.engines.loaders import Loaders
from e2e.engines.reflector import PodReports, follow
from e2e.engines.server import serve
from e2e.engines.sinks import NodeSink, PodSink, ProfileSink

log = logging.getLogger(__name__)

PODS = "/api/v1/pods"
NODES = "/api/v1/nodes"
PROFILES = "/apis/taas.dev/v1alpha1/capacityprofiles"


async def run_farm(api: Api, port: int, options: FleetOptions, profiles: list[Json], stop: asyncio.Event) -> None:
    """Serve until `stop` is set. `profiles` are CapacityProfile objects known beforehand."""
    fleet = Fleet(asyncio.get_running_loop(), PodReports(api), options=options, wall_clock=time.time)
    profile_sink = ProfileSink(fleet)
    profile_sink.listed(profiles)
    runner, bound = await serve(fleet, port)
    log.info("engines listen on 127.0.0.1:%d, time scale %g", bound, options.time_scale)
    volumes = tempfile.TemporaryDirectory(prefix="adapters-")
    loaders = Loaders(fleet, api, bound, Path(volumes.name))
    tasks = [
        asyncio.create_task(loaders.run()),
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
        volumes.cleanup()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m e2e.engines.farm", description=__doc__)
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--context")
    parser.add_argument("--port", type=int, required=True, help="on 127.0.0.1")
    parser.add_argument("--time-scale", type=float, default=1.0, help="divides cold starts (default: %(default)s)")
    parser.add_argument("--cold-start-spread", type=float, default=0.0, help="0.2 is ±20 %% (default: %(default)s)")
    parser.add_argument("--profiles", type=Path, help="YAML file of CapacityProfiles, beside those in the cluster")
    parser.add_argument("--default-profile", default="", help="name of the profile of pods that name none")
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
        options = FleetOptions(arguments.time_scale, arguments.cold_start_spread, arguments.default_profile)
        await run_farm(Api(client), arguments.port, options, [p for p in profiles if p], stop)
    finally:
        await client.close()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    asyncio.run(main())
