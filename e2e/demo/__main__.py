"""`python -m e2e.demo`: the same traffic served by static sizes, then by the operator; both billed alike."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from e2e.demo import picture, report, scenario, steps
from e2e.demo.account import Bill
from e2e.demo.phase import Phase, Stage, run
from e2e.demo.scenario import TIME_SCALE, Example
from e2e.demo.sizing import Size
from e2e.load.trace import Traffic
from e2e.testbed import bed as testbed
from e2e.testbed.bed import Bed
from tokenservice.simulate.reference import Reference

OUT = Path(__file__).resolve().parents[1] / "out"


def main() -> None:
    """Runs the demo; Ctrl-C ends what it started and nothing else."""
    console, started = prepared()
    services = scenario.examples()
    planned, sizes = before(console, services)
    bed = opened(console)
    try:
        phases = asyncio.run(_phases(console, bed, services, sizes, planned))
        _conclude(console, bed, services, sizes, planned, phases)
        console.print(f"[dim]{time.monotonic() - started:.0f} s in all[/dim]")
        if os.environ.get("KEEP"):
            _keep(console, bed)
    except KeyboardInterrupt:
        console.print("stopped")
    finally:
        bed.stop()


def prepared() -> tuple[Console, float]:
    """Where is written to, and when it began."""
    OUT.mkdir(exist_ok=True)
    return Console(width=None if sys.stdout.isatty() else 150), time.monotonic()


def before(console: Console, services: Mapping[str, Example]) -> tuple[Traffic, dict[str, Size]]:
    """The traffic that will come, and the static sizes that it asks for."""
    planned = steps.planned_traffic(console)
    return planned, steps.static_sizes(console, services, planned.arrivals)


def opened(console: Console) -> Bed:
    """The bed of the scenario; the caller stops it."""
    say = lambda text: console.print(f"· {text}")  # noqa: E731
    return testbed.start(pools=scenario.pools(TIME_SCALE), time_scale=TIME_SCALE, say=say)


async def _phases(
    console: Console, bed: Bed, services: Mapping[str, Example], sizes: Mapping[str, Size], planned: Traffic
) -> dict[str, Phase]:
    async with steps.opened(console, bed, services) as stage:
        return await compared(stage, bed, services, sizes, planned)


async def compared(
    stage: Stage, bed: Bed, services: Mapping[str, Example], sizes: Mapping[str, Size], planned: Traffic
) -> dict[str, Phase]:
    """Static sizes first, then the operator, which sees the traffic for the first time."""
    await steps.apply_static(stage, bed, sizes)
    static = await run(stage, "static", planned.arrivals)
    steps.release(bed, services)
    return {"static": static, "operator": await run(stage, "operator", planned.arrivals)}


def _conclude(
    console: Console,
    bed: Bed,
    services: Mapping[str, Example],
    sizes: Mapping[str, Size],
    planned: Traffic,
    phases: Mapping[str, Phase],
) -> None:
    references = steps.references(console, services, planned.arrivals)
    bills, guaranteed = steps.bills(phases, references), steps.guaranteed(services)
    _events(console, bed)
    report.show_services(console, phases, bills, sizes)
    report.show(console, bills, guaranteed)
    gain = bills["operator"].waterfall.utilization / bills["static"].waterfall.utilization
    console.print(f"utilization: {gain:.2f} times static's")
    _write(bills, phases, references, guaranteed, planned)
    note = f"{planned.origin}; time scale {TIME_SCALE:g}; engines simulated by the step model"
    picture.draw(OUT / "demo.png", phases, bills, references, note)
    console.print(f"picture: {OUT / 'demo.png'}, numbers: {OUT / 'demo.json'}")


def _write(
    bills: Mapping[str, Bill],
    phases: Mapping[str, Phase],
    references: Mapping[str, Reference],
    guaranteed: frozenset[str],
    planned: Traffic,
) -> None:
    numbers = {
        "trace": planned.origin,
        "time_scale": TIME_SCALE,
        "reaction_seconds": _reaction_seconds(),
        **{name: report.summary(bills[name], phases[name], references, guaranteed) for name in bills},
    }
    (OUT / "demo.json").write_text(json.dumps(numbers, indent=2))


def _reaction_seconds() -> list[float] | None:
    """As `python -m e2e.demo.reaction` last measured it; None if it never ran here."""
    file = OUT / "reaction.json"
    return json.loads(file.read_text())["reaction_seconds"] if file.exists() else None


def _events(console: Console, bed: Bed) -> None:
    """What the operator said it did, newest last."""
    items = bed.cluster.get("events.events.k8s.io", "-A")["items"]
    told = [e for e in items if e.get("regarding", {}).get("kind") == "TokenService"]
    told.sort(key=lambda event: event.get("eventTime") or "")
    (OUT / "events.json").write_text(json.dumps(told, indent=1))
    console.print(f"what was done, the last 25 of {len(told)} events (all in {OUT / 'events.json'}):")
    for event in told[-25:]:
        console.print(
            f"  {event['reason']:16} {event['regarding']['name']:18} {event.get('note', '')}", highlight=False
        )


def _keep(console: Console, bed: Bed) -> None:
    kubeconfig = OUT / "kubeconfig"
    shutil.copy(bed.cluster.kubeconfig, kubeconfig)
    console.print(
        f"KEEP: all of it stays up until Ctrl-C. Look around with\n"
        f"  export KUBECONFIG={kubeconfig}\n  kubectl get tokenservices,tokenfleet,nodes\n"
        f"  tokenservice explain default/chat-70b\n  Prometheus: {bed.prometheus.address}"
    )
    while True:
        time.sleep(1)


if __name__ == "__main__":
    argparse.ArgumentParser("python -m e2e.demo", description=__doc__).parse_args()
    main()
