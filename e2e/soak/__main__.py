"""`python -m e2e.soak` (`make soak`): an hour of traffic, churn, rollouts and a fault every minute.

At its end the operator's memory, open files and tasks are what they were after ten minutes, within 5 %; no request of a
Guaranteed service was lost; every event has a reason that docs/reasons.md explains. Writes e2e/out/soak.json.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from e2e.bench.measure import exposed, memory_bytes
from e2e.demo.__main__ import OUT
from e2e.soak.faults import FAULTS, GUARANTEED, SPOT, Stage, said
from e2e.testbed import bed as testbed
from e2e.testbed.bed import Bed
from e2e.tests.conftest import make_site
from e2e.tests.support.api import Api, eventually
from e2e.tests.support.bed import TIME_SCALE, leads, prepare
from e2e.tests.support.site import Site
from e2e.tests.support.traffic import Traffic

MINUTE = 60.0
WARM_UP_MINUTES = 10
GROWTH = 0.05
_SAMPLE_SECONDS = 5.0
_REASONS = Path(__file__).resolve().parents[2] / "docs/reasons.md"


@dataclass(frozen=True, slots=True)
class Sample:
    """The operator's process, some seconds after the beginning."""

    at: float
    rss_bytes: int
    open_files: int
    tasks: int


@dataclass
class Soak:
    """What was seen."""

    samples: list[Sample] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    requests: dict[str, dict[str, int]] = field(default_factory=dict)
    events: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)

    def growth(self, figure: str) -> float | None:
        """Of the last ten minutes' median over that of the ten after the warm-up; None before there are both."""
        span = WARM_UP_MINUTES * MINUTE
        early = [getattr(s, figure) for s in self.samples if span <= s.at < 2 * span]
        late = [getattr(s, figure) for s in self.samples if s.at >= max(self.samples[-1].at - span, 2 * span)]
        return median(late) / median(early) - 1 if early and late else None

    @property
    def lost(self) -> dict[str, dict[str, int]]:
        """Requests of Guaranteed services without a whole answer."""
        found = {name: {o: n for o, n in mine.items() if o != "ok" and n} for name, mine in self.requests.items()}
        return {name: mine for name, mine in found.items() if mine}

    @property
    def is_clean(self) -> bool:
        grown = [self.growth(figure) for figure in FIGURES]
        return not self.lost and not self.unexplained and all(growth is None or growth <= GROWTH for growth in grown)

    def document(self) -> dict[str, Any]:
        return {
            "minutes": round(self.samples[-1].at / MINUTE, 1),
            "requests": self.requests,
            "lost": self.lost,
            "faults": dict(self.faults),
            "events": dict(sorted(self.events.items())),
            "unexplained": self.unexplained,
            "growth": {figure: self.growth(figure) for figure in FIGURES},
            "samples": [asdict(sample) for sample in self.samples],
        }


FIGURES = ("rss_bytes", "open_files", "tasks")


def main(arguments: list[str] | None = None) -> int:
    """0 when nothing was lost, left unexplained, or grew."""
    parser = argparse.ArgumentParser(prog="python -m e2e.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=int, default=60, help="growth is told from 30 on")
    parser.add_argument("--json", type=Path, default=OUT / "soak.json", help="where the figures go")
    options = parser.parse_args(arguments)
    with _stage() as stage:
        soak = run(stage, options.minutes)
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps(soak.document(), indent=1) + "\n")
    for line in lines(soak):
        print(line)
    return 0 if soak.is_clean else 1


def run(stage: Stage, minutes: int) -> Soak:
    """All of it, with a line a minute."""
    soak, began = Soak(), time.monotonic()
    with ExitStack() as stack:
        traffics = {name: stack.enter_context(stage.site.traffic(name, rate=3.0)) for name in GUARANTEED}
        for minute in range(minutes):
            fault = FAULTS[minute % len(FAULTS)]
            _say(began, f"{said(fault)}  ({', '.join(f'{t.answered} answered' for t in traffics.values())})")
            fault(stage)
            soak.faults[fault.__name__] += 1
            _watch(stage.site.bed, traffics, soak, began, until=began + (minute + 1) * MINUTE)
    soak.requests = {name: {str(o): n for o, n in t.account.outcomes.items()} for name, t in traffics.items()}
    _judge_events(stage.site, soak)
    return soak


def lines(soak: Soak) -> Iterator[str]:
    """What is printed at the end."""
    yield f"{soak.samples[-1].at / MINUTE:.0f} minutes, {soak.faults.total()} faults and changes"
    for name, mine in soak.requests.items():
        yield f"{name}: {sum(mine.values())} requests, lost: {soak.lost.get(name) or 'none'}"
    for figure in FIGURES:
        growth = soak.growth(figure)
        told = "not told in so short a time" if growth is None else f"{growth:+.1%} from minute 10 to the end"
        yield f"{figure}: {getattr(soak.samples[-1], figure):,}, {told}"
    yield f"events: {', '.join(f'{reason} {count}' for reason, count in soak.events.most_common())}"
    yield f"unexplained: {soak.unexplained or 'none'}"


@contextmanager
def _stage() -> Iterator[Stage]:
    bed = testbed.start(time_scale=TIME_SCALE, scrape_seconds=1)
    try:
        prepare(bed)
        eventually(lambda: leads(bed), "the operator leads")
        api = Api(bed.cluster)
        for site in make_site(bed, api, "soak"):
            for _ in range(2):
                site.node()
            spot_node = site.node(region=f"{site.region}-spot")
            place = {"accelerators": ["h100"], "regions": [f"{site.region}-spot"]}
            site.apply(SPOT, tier="Spot", placement=place)
            for name in GUARANTEED:
                site.serving(name, scaling={"minReplicas": 1, "maxRequestSeconds": 60})
            yield Stage(site, spot_node)
        api.close()
    finally:
        bed.stop()


def _watch(bed: Bed, traffics: dict[str, Traffic], soak: Soak, began: float, until: float) -> None:
    """Samples, with traffic that rises and falls within a quarter of an hour, each service at another time."""
    while time.monotonic() < until:
        now = time.monotonic() - began
        for number, traffic in enumerate(traffics.values()):
            traffic.rate = 3.0 + 2.0 * math.sin(2 * math.pi * (now / (15 * MINUTE) + number / len(traffics)))
        soak.samples.append(_sample(bed, now))
        time.sleep(_SAMPLE_SECONDS)


def _sample(bed: Bed, at: float) -> Sample:
    page = dict(exposed(f"http://127.0.0.1:{bed.operator.metrics_port}/metrics"))
    files = len(list(Path(f"/proc/{bed.processes.pids['operator']}/fd").iterdir()))
    return Sample(at, memory_bytes(bed, "VmRSS"), files, int(page["tokenservice_tasks"]))


def _judge_events(site: Site, soak: Soak) -> None:
    """Every event about a TokenService says why, in words that are explained."""
    explained = set(re.findall(r"^### (\w+)$", _REASONS.read_text(), re.MULTILINE))
    for event in site.api.list("events", site.namespace):
        if event["regarding"]["kind"] != "TokenService":
            continue
        count = (event.get("series") or {}).get("count", 1)
        soak.events[event["reason"]] += count
        if event["reason"] not in explained or not event.get("note"):
            soak.unexplained.append(f"{event['reason']} {event['regarding']['name']}: {event.get('note')}")


def _say(began: float, text: str) -> None:
    print(f"{(time.monotonic() - began) / MINUTE:5.0f} min  {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
