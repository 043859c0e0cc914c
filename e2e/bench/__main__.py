"""`python -m e2e.bench` (`make bench`): what a thousand services take of a real control plane, and what at rest.

A bed of its own for every round: nodes first, then services by so many clients at once. In the last round the fleet
settles, rests, and the operator is started anew. With several sizes it also says how each figure grows with the
services: 1 is linear. Writes e2e/out/bench.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from math import ceil, log
from pathlib import Path
from statistics import median
from typing import Any

from e2e.bench import bare, measure
from e2e.bench.measure import PLAN_INTERVAL_SECONDS, STATUS_INTERVAL_SECONDS, Say, Size
from e2e.demo.__main__ import OUT
from e2e.testbed import bed as testbed
from e2e.testbed.bed import Bed
from e2e.testbed.cluster import USUAL
from e2e.tests.support.api import eventually
from e2e.tests.support.bed import leads
from e2e.tests.support.site import profile

_GROWING = ("apply_to_deployment_seconds", "rss_bytes", "restart_to_plan_seconds", "idle_api_requests_per_minute")
_NEW_KINDS_SECONDS = 40.0
"""The garbage collector looks for new kinds each half minute, and asks for the owner of each child until then:
TokenServices are no news where an operator runs."""

_ENGINES_TIME_SCALE = 40.0
"""Engines start within a second or two: nothing here is about how long they load."""


def main(arguments: list[str] | None = None) -> int:
    """Prints and writes the figures."""
    options = _options(arguments)
    sizes = [_size(services, options) for services in options.services]
    began = time.monotonic()
    found = [measured(size, options, _say(began)) for size in sizes]
    figures = found[-1] | {"growth": growth(found)}
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps(figures | {"sizes": found}, indent=1) + "\n")
    for line in lines(found, figures["growth"]):
        print(line, flush=True)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m e2e.bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--services", type=int, nargs="+", default=[1000], help="one size or several, ascending")
    parser.add_argument("--replicas", type=int, default=1, help="replicas of each service, an accelerator each")
    parser.add_argument("--nodes", type=int, help="nodes of eight accelerators; 4 %% more than needed if left out")
    parser.add_argument("--clients", type=int, default=16, help="clients that create services at once")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each size, of which the median counts")
    parser.add_argument("--idle-seconds", type=float, default=600.0, help="how long to watch the fleet at rest")
    parser.add_argument("--scrape-seconds", type=int, default=15, help="Prometheus' interval")
    parser.add_argument(
        "--status-seconds",
        type=float,
        default=STATUS_INTERVAL_SECONDS,
        help="how long figures in statuses wait to be written; the fleet is at rest after one and a half times as long",
    )
    parser.add_argument("--json", type=Path, default=OUT / "bench.json", help="where the figures go")
    return parser.parse_args(arguments)


def _size(services: int, options: argparse.Namespace) -> Size:
    nodes = options.nodes or ceil(services * options.replicas / 8 * 1.04)
    return Size(services=services, replicas=options.replicas, nodes=nodes)


def _say(began: float) -> Say:
    return lambda text: print(f"· {time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)


def measured(size: Size, options: argparse.Namespace, say: Say) -> dict[str, Any]:
    """The figures of one size."""
    times: list[float] = []
    for number in range(1, options.rounds + 1):
        say(f"round {number} of {options.rounds}: {size.services} services on {size.nodes} nodes")
        bed = _bed(size, options, say)
        try:
            times.append(measure.seconds_to_deployments(bed, size, options.clients, say))
            say(f"{times[-1]:.1f} s from the first create to the last Deployment")
            if number == options.rounds:
                rest = _at_rest(bed, size, options, say)
        finally:
            bed.stop()
    alone = _without_operator(size, options, say)
    return {
        "services": size.services,
        "replicas": size.replicas,
        "nodes": size.nodes,
        "clients": options.clients,
        "apply_to_deployment_seconds": round(median(times), 1),
        "apply_to_deployment_rounds": [round(seconds, 1) for seconds in times],
        "without_operator_seconds": round(alone, 1),
        **rest,
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "cores": os.cpu_count(),
    }


def _bed(size: Size, options: argparse.Namespace, say: Say) -> Bed:
    bed = testbed.start(
        time_scale=_ENGINES_TIME_SCALE,
        scrape_seconds=options.scrape_seconds,
        wiring=USUAL,
        values={
            "operator": {
                "planIntervalSeconds": PLAN_INTERVAL_SECONDS,
                "statusIntervalSeconds": options.status_seconds,
                "logLevel": "warning",
            }
        },
        say=lambda _: None,
    )
    try:
        bed.cluster.apply(profile("vLLM"), measure.fleet(options.scrape_seconds))
        measure.furnish(bed, size)
        eventually(lambda: leads(bed), "the operator leads")
        say(f"everything runs; its kinds are news for {_NEW_KINDS_SECONDS:.0f} s")
        time.sleep(_NEW_KINDS_SECONDS)
    except BaseException:
        bed.stop()
        raise
    say("control plane, nodes and operator are there")
    return bed


def _without_operator(size: Size, options: argparse.Namespace, say: Say) -> float:
    say("the same objects, without an operator")
    bed = _bed(size, options, say)
    try:
        return bare.seconds_to_deployments(bed, size, options.clients, say)
    finally:
        bed.stop()


def _at_rest(bed: Bed, size: Size, options: argparse.Namespace, say: Say) -> dict[str, Any]:
    measure.settle(bed, size, options.status_seconds, say)
    rest = measure.as_json(measure.idle(bed, options.idle_seconds, say))
    return rest | {"restart_to_plan_seconds": round(measure.seconds_to_plan(bed, size, say), 1)}


def growth(found: list[dict[str, Any]]) -> dict[str, float]:
    """The exponent of each figure between the least and the largest size; nothing for a single size."""
    first, last = found[0], found[-1]
    if last["services"] == first["services"]:
        return {}
    times = log(last["services"] / first["services"])
    return {name: round(log(last[name] / first[name]) / times, 2) for name in _GROWING if first[name] and last[name]}


def lines(found: list[dict[str, Any]], exponents: dict[str, float]) -> list[str]:
    """What is printed: one column a size."""
    rows = [
        ("services, nodes", lambda one: f"{one['services']}, {one['nodes']}", ""),
        ("first create to last Deployment", lambda one: f"{one['apply_to_deployment_seconds']:.1f} s", _GROWING[0]),
        ("  without an operator", lambda one: f"{one['without_operator_seconds']:.1f} s", ""),
        ("the operator's memory at most", lambda one: f"{one['rss_bytes'] / 1e6:.0f} MB", _GROWING[1]),
        ("API requests a minute at rest", lambda one: f"{one['idle_api_requests_per_minute']:.1f}", _GROWING[3]),
        ("writes at rest but the Lease", lambda one: f"{one['idle_writes_other_than_lease']}", ""),
        ("Prometheus queries a round", lambda one: f"{one['prometheus_queries_per_round']:.1f}", ""),
        ("start to first plan", lambda one: f"{one['restart_to_plan_seconds']:.1f} s", _GROWING[2]),
        ("load of the machine", lambda one: f"{one['load_average'][0]} on {one['cores']} cores", ""),
    ]
    return [
        f"{title:<33}{''.join(f'{show(one):>20}' for one in found)}"
        + (f"   exponent {exponents[name]}" if name in exponents else "")
        for title, show, name in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
