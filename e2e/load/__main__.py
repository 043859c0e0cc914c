"""Send a scenario's traffic: `python -m e2e.load --kubeconfig F --farm http://127.0.0.1:PORT --scenario FILE`.

The form of the scenario is described in `e2e.load.scenario`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from e2e.engines.cluster import Api, connect
from e2e.engines.reflector import follow
from e2e.load.account import Account, Result
from e2e.load.client import LoadGenerator
from e2e.load.endpoints import ENDPOINT_SLICES, SERVICE_NAME_LABEL, SliceEndpoints
from e2e.load.scenario import Scenario, read_scenario, summary
from e2e.load.trace import data_folder, traffic

TABLE_SECONDS = 1.0
RECENT_SECONDS = 10.0


async def run_scenario(scenario: Scenario, api: Api, farm_url: str, out: TextIO | None) -> LoadGenerator:
    """Send it all, with a table on stderr, and every result as a JSON line in `out`."""
    planned = traffic(
        scenario.recipes,
        seconds=scenario.seconds,
        time_scale=scenario.time_scale,
        seed=scenario.seed,
        data=data_folder(),
    )
    print(f"{len(planned.arrivals)} requests in {scenario.seconds:g} s: {planned.origin}", file=sys.stderr)
    endpoints = SliceEndpoints()

    def write(result: Result) -> None:
        if out is not None:
            out.write(json.dumps(asdict(result)) + "\n")

    generator = LoadGenerator(farm_url, scenario.targets, endpoints, on_result=write, seed=scenario.seed)
    helpers = [
        asyncio.create_task(follow(api, ENDPOINT_SLICES, endpoints, labelSelector=SERVICE_NAME_LABEL)),
        asyncio.create_task(_show(generator)),
    ]
    try:
        await generator.run(planned.arrivals)
    finally:
        for helper in helpers:
            helper.cancel()
        for helper in helpers:
            with suppress(asyncio.CancelledError):
                await helper
    return generator


async def _show(generator: LoadGenerator) -> None:
    while True:
        await asyncio.sleep(TABLE_SECONDS)
        now_s = asyncio.get_running_loop().time()
        print("\n".join(_line(name, account, now_s) for name, account in generator.accounts.items()), file=sys.stderr)


def _line(name: str, account: Account, now_s: float) -> str:
    recent = account.recent(now_s, RECENT_SECONDS)
    ttft = "-" if recent.ttft_p95_s is None else f"{recent.ttft_p95_s * 1000:.0f} ms"
    tpot = "-" if recent.tpot_p95_s is None else f"{recent.tpot_p95_s * 1000:.1f} ms"
    return (
        f"{name:24} {recent.requests_per_second:6.1f} req/s {recent.demand_tokens_per_second:8.0f} tok/s asked "
        f"{recent.delivered_tokens_per_second:8.0f} delivered  TTFT p95 {ttft:>9} TPOT p95 {tpot:>9} "
        f"met {account.attainment:6.1%} in flight {account.in_flight}"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m e2e.load", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--context")
    parser.add_argument("--farm", required=True, help="URL of the engines")
    parser.add_argument("--scenario", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="every result as a JSON line")
    arguments = parser.parse_args()
    scenario = read_scenario(arguments.scenario.read_text())
    client = await connect(arguments.kubeconfig, arguments.context)
    out = arguments.out.open("w") if arguments.out else None
    try:
        generator = await run_scenario(scenario, Api(client), arguments.farm, out)
    finally:
        if out is not None:
            out.close()
        await client.close()  # type: ignore[no-untyped-call]
    print(json.dumps(summary(generator.accounts), indent=2))


if __name__ == "__main__":
    asyncio.run(main())
