"""The words around the numbers: `docs/results.md`, written from what was run and from nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokenservice.api.capacity_profile import Provenance
from tokenservice.simulate.compare import Row
from tokenservice.simulate.result import Result
from tokenservice.simulate.results.figures import (
    Judged,
    Measure,
    Outcome,
    at_first,
    attainment,
    hours,
    judged,
    lost,
    outcome,
    ratio,
    share,
    utilization,
    worst,
)
from tokenservice.simulate.results.runner import Known, Plan
from tokenservice.simulate.results.study import Figure, Study
from tokenservice.simulate.results.unit import Unit
from tokenservice.simulate.scenario import Scenario, load

PARTS = {
    "slo_misses": "missed",
    "headroom": "headroom",
    "cold_start": "loading",
    "draining": "draining",
    "fragmentation": "free on used nodes",
    "idle_nodes": "empty nodes",
}
"""The waterfall beside U, as the tables call it."""

_FIGURES = {
    Figure.UTILIZATION: "U",
    Figure.ATTAINMENT: "attained",
    Figure.OF_STATIC: "hours of static's",
    Figure.OF_BEST_PEER: "hours of the best peer's",
    Figure.OF_ORACLE: "U of the oracle's",
}
_BLIND = "without foresight"
_COMMAND = "make bench-policies"
_PERCENT = "{:.2%}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the page is written from. `pictures` is the folder of the figures, as links name it."""

    plan: Plan
    known: Known
    missing: Sequence[Unit]
    pictures: str
    command: str = _COMMAND

    def text(self) -> str:
        """Markdown."""
        parts = [
            "# Results",
            f"<!-- Written by `{self.command}` from results.yaml. Do not edit: a change here is lost. -->",
            _INTRODUCTION,
            *self._not_run(),
            *self._glance(),
            *self._targets(),
            *self._cold_starts(),
            *(part for study in self._studies for part in self._study(study)),
            *self._how(),
        ]
        return "\n\n".join(parts) + "\n"

    @property
    def _studies(self) -> tuple[Study, ...]:
        return self.plan.studies.studies

    def at(self, study: Study, cold: float | None) -> Outcome:
        """What is known of a study at one cold start."""
        return outcome(self.plan, study, cold, self.known)

    # --- parts

    def _not_run(self) -> Iterator[str]:
        if self.missing:
            counts = Counter(unit.scenario.stem for unit in self.missing)
            each = _listed(f"{count} of `{name}`" for name, count in counts.items())
            yield "## Not run"
            yield (
                f"{len(self.missing)} runs were not made with the code that this page stands beside, nor those that "
                f"depend on them: {each}. What rests on them is left out below. `{self.command}` makes them and writes "
                "this page anew."
            )

    def _glance(self) -> Iterator[str]:
        yield "## The operator at a glance"
        found = [self.at(study, study.colds[0]) for study in self._studies]
        yield table(_GLANCE, [_glance(at) for at in found if at.operator is not None], left=(0, 5))

    def _targets(self) -> Iterator[str]:
        found = [self._judged(study, number) for study in self._studies for number in range(len(study.targets))]
        if not found:
            return
        yield "## What was asked for"
        yield _told_of(found)
        head = ("scenario", "cold start", "figure", "asked", "reached", "", "the oracle's", "where it goes")
        yield table(head, [row for one in found for row in (_target(one), *_beside(one))], left=(0, 2, 5, 7))
        yield (
            "The oracle's: the same figure of the oracle, which knows the future and has no start-up time, on seed 0; "
            "what is asked beyond it no decision was found to reach. "
            "Where it goes: the largest parts of the operator's own waterfall, as shares of accelerator time; for "
            "attainment the service that attains least, and its shares within each objective; for what stands below a "
            f"figure of the best peer's, the peer: the best {_BLIND}, and the operator's hours over its own."
        )

    def _judged(self, study: Study, number: int) -> Judged:
        target = study.targets[number]
        cold = study.colds[0] if target.cold_start_seconds is None else target.cold_start_seconds
        return judged(target, self.at(study, cold), self._operator_of)

    def _operator_of(self, name: str) -> Row | None:
        study = self.plan.studies.of(name)
        return self.at(study, study.colds[0]).operator

    def _cold_starts(self) -> Iterator[str]:
        several = [study for study in self._studies if len(study.colds) > 1]
        if not several:
            return
        yield "## How much a slow start costs"
        rows = [_sensitivity(self.at(study, cold)) for study in several for cold in sorted(study.cold_starts)]
        head = (
            "scenario",
            "cold start",
            "U",
            "attained",
            "hours",
            "of static",
            "best peer that keeps 99 %",
            "its hours",
        )
        yield table(head, rows, left=(0, 6))

    def _study(self, study: Study) -> Iterator[str]:
        scenario, at = load(study.scenario, needs_data=False), self.at(study, study.colds[0])
        yield f"## {study.title}{_mark(scenario)}"
        yield " ".join(filter(None, (scenario.description, study.note, _seeds(study, at), _cold(at, scenario))))
        if at.rows:
            yield table(_HEAD, [*(_line(row, at) for row in at.ranked), *_oracle_line(at)])
            yield " ".join(_compared(at))
            yield from _services(at)
            shows = "accelerators and demand over time, waterfalls, cost against attainment"
            yield f"![{study.title}: {shows}]({self.pictures}/{study.name}.png)"
        yield from _estimates(scenario)

    def _how(self) -> Iterator[str]:
        yield "## How it was computed"
        yield (
            f"`{self.command}` runs what [results.yaml](results.yaml) lists and writes this page with its figures: "
            f"{len(self.known.kept)} runs. One that was kept is not made again unless its scenario, its data "
            "or the code that it rests on changed, so an interrupted run goes on where it stopped. The same code, data "
            "and seeds give the same figures on any machine. One scenario by hand:"
        )
        first = max(self._studies, key=lambda study: study.seeds)
        yield (
            "```sh\ntokenservice compare docs/scenarios/"
            f"{first.scenario.name} --policies all --seeds {max(first.seeds, 2)} --oracle --picture out.png\n```"
        )
        yield _METHOD


_INTRODUCTION = """\
The operator beside what people use today, on public traffic, in the [simulator](simulator.md).
[policies.md](policies.md) says what each policy is and where it is from, [scenarios](scenarios/README.md) what each
scenario asks.

- **U** is the work of requests within both objectives over the accelerators that existed; the parts after it say where
  the rest went, and add up to 1 with it. **attained** is the worst share of requests within both objectives among
  Guaranteed services. **hours** are accelerator-hours, all that existed, **of static** over those of a fleet that
  stands at each service's p99 for the whole time. Energy is estimated from watts. Headroom below zero: overloaded
  replicas did more than they can within their objectives.
- A peer stands at the setting of its sweep that keeps 99 % at the least cost, or where none does at the one that comes
  nearest; in brackets is what differs from its published defaults. † marks policies that do not keep 99 %, § those
  that are told the true rate of what is to come: the operator is not.
- The **oracle** knows the future and its replicas start at once: the cheapest counts that a search found, on seed 0.
- ± is half the width of the 95 % interval of the mean over seeds (Student's t). Ratios are of means over the seeds that
  both were run on, to the oracle on seed 0."""

_METHOD = """\
Every row is simulated request by request, the weeks too: nothing is thinned and nothing is a fluid, so there is no
error of such a mode to report. Settings are chosen on seed 0 and then run on the other seeds; where a scenario has one
seed there is no interval.

The engines are modelled; [capacity.md](capacity.md) has their errors. ‡ marks figures that rest on estimates instead of
engines that were measured: no step of an MI300X or L40S is public."""

_HEAD = ("policy", "U", "attained", "hours", "of static", "$/Mtok", "J/token", *PARTS.values())

_GLANCE = ("scenario", "U", "attained", "hours of static's", "of the best peer's", "which", "of the oracle's")


# --- Rows ----------------------------------------------------------------------------------------------------------


def _line(row: Row, at: Outcome) -> tuple[str, ...]:
    static = at.static
    return (
        row.marked,
        spread(row, utilization, "{:.3f}"),
        spread(row, attainment, _PERCENT),
        spread(row, hours, "{:,.1f}"),
        "" if static is None else f"{ratio(row, static, hours):.3f}",
        f"{row.mean(lambda one: one.dollars_per_million_tokens):.2f}",
        f"{row.mean(lambda one: one.joules_per_token):.2f}",
        *(f"{row.mean(_part(part)):.3f}" for part in PARTS),
    )


def _glance(at: Outcome) -> tuple[str, ...]:
    ours, static, peer = at.operator, at.static, at.best_peer
    assert ours is not None
    return (
        f"{at.study.name}{_mark(load(at.study.scenario, needs_data=False))}{'' if ours.kept else ' †'}",
        spread(ours, utilization, "{:.3f}"),
        spread(ours, attainment, _PERCENT),
        "" if static is None else f"{ratio(ours, static, hours):.3f}",
        "" if peer is None else f"{ratio(ours, peer, hours):.3f}",
        peer.marked if peer is not None else _no_peer(at),
        f"{at_first(ours, hours) / at.oracle_hours:.3f}" if at.oracle else "",
    )


def _no_peer(at: Outcome) -> str:
    return "none keeps 99 %" if at.peers else "not run"


def _part(part: str) -> Measure:
    return lambda one: share(one, part)


def _oracle_line(at: Outcome) -> Iterator[tuple[str, ...]]:
    if at.oracle:
        attained = min(one.attainment for one in at.oracle.values())
        shown = (
            f"{at.oracle_utilization:.3f}",
            said(attained, _PERCENT),
            f"{at.oracle_hours:,.1f}",
            _ratio(at.oracle_of(at.static)),
        )
        yield ("oracle (foresight)", *shown, *[""] * (len(_HEAD) - 5))


def _compared(at: Outcome) -> Iterator[str]:
    """Ours against static, the best peer and the oracle."""
    ours, static, peer = at.operator, at.static, at.best_peer
    if ours is None:
        yield "The operator was not run with the code that this page stands beside."
        return
    yield f"The operator {'keeps 99 %' if ours.kept else 'does not keep 99 %'}."
    against = []
    if static is not None:
        against.append(f"{ratio(ours, static, hours):.3f} of static's")
    if peer is not None:
        against.append(f"{ratio(ours, peer, hours):.3f} of those of the best peer that keeps 99 %, {peer.marked}")
    if peer is not None and peer.foresight and at.best_blind is not None:
        blind = at.best_blind
        against.append(f"{ratio(ours, blind, hours):.3f} of those of the best {_BLIND} that does, {blind.policy}")
    if at.oracle:
        against.append(f"{at_first(ours, hours) / at.oracle_hours:.3f} of the oracle's")
    if against:
        yield f"Its accelerator-hours: {'; '.join(against)}."
    if at.oracle:
        yield f"Its U is {at_first(ours, utilization) / at.oracle_utilization:.3f} of the oracle's."
    if peer is None and at.peers:
        yield "No peer that was run keeps 99 %."


def _services(at: Outcome) -> Iterator[str]:
    """Each service under the operator."""
    if at.operator is None:
        return
    first = at.operator.results[0].services
    waits = [name for name, one in first.items() if at.operator.mean(_deferrable(name)) < 1]
    attained = [f"{name} ({it.tier}) {spread(at.operator, _attained(name), _PERCENT)}" for name, it in first.items()]
    yield f"Requests within both objectives under the operator: {_listed(attained)}."
    if waits:
        late = _listed(f"{name} {spread(at.operator, _deferrable(name), _PERCENT)}" for name in waits)
        others = ", of the other services all" if len(waits) < len(first) else ""
        yield f"Work that may wait, done in time: {late}{others}."


def _attained(name: str) -> Measure:
    return lambda one: one.services[name].attainment


def _deferrable(name: str) -> Measure:
    return lambda one: one.services[name].deferrable


def _sensitivity(at: Outcome) -> tuple[str, ...]:
    ours, static, peer = at.operator, at.static, at.best_peer
    of_static = f"{ratio(ours, static, hours):.3f}" if ours is not None and static is not None else ""
    measures: tuple[tuple[Measure, str], ...] = (
        (utilization, "{:.3f}"),
        (attainment, _PERCENT),
        (hours, "{:,.1f}"),
    )
    return (
        at.study.name,
        f"{at.cold:g} s",
        *("not run" if ours is None else spread(ours, measure, form) for measure, form in measures),
        of_static,
        peer.marked if peer is not None else _no_peer(at),
        "" if peer is None else spread(peer, hours, "{:,.1f}"),
    )


def _target(one: Judged) -> tuple[str, ...]:
    percent = one.target.figure is Figure.ATTAINMENT
    form = _PERCENT if percent else "{:.3f}"
    asked = "not known" if one.bound is None else _asked(one.bound, form, one.target.at_most is not None)
    scenario = load(one.at.study.scenario, needs_data=False)
    head = (f"{one.at.study.name}{_mark(scenario)}", _cold_start(one.at, scenario), _FIGURES[one.target.figure], asked)
    if one.reached is None or one.bound is None:
        return (*head, "no peer keeps 99 %" if _without_peer(one) else "not run", "", "", "")
    reached = said(one.reached, form) + (f" ± {said(one.half_width, form)}" if one.half_width else "")
    foresight = "" if one.foresight is None else said(one.foresight, form)
    if one.met:
        return (*head, reached, "met", foresight, "")
    gap = abs(one.reached - one.bound)
    missed = f"missed by {f'{gap * 100:.2f} points' if percent else f'{gap:.3f}'}"
    return (*head, reached, missed, foresight, _where(one))


def _told_of(found: Sequence[Judged]) -> str:
    known = [one for one in found if one.reached is not None and one.bound is not None]
    met, alone = sum(one.met for one in known), sum(_without_peer(one) for one in found)
    parts = [f"{met} are met", f"{len(known) - met} missed", f"{len(found) - len(known) - alone} not run"]
    parts += [f"{alone} without a peer that keeps 99 %"] if alone else []
    return f"Of {len(found)} targets {', '.join(parts)}."


def _without_peer(one: Judged) -> bool:
    """Whether all was run, and there is none to be compared with."""
    ours, best = one.target.figure is Figure.OF_BEST_PEER and one.at.operator, one.at.best_peer
    return bool(ours and one.at.peers and best is None)


def _beside(one: Judged) -> Iterator[tuple[str, ...]]:
    """Below the best peer's, where that looks ahead: the best of those that do not."""
    ours, peer, blind = one.at.operator, one.at.best_peer, one.at.best_blind
    if one.target.figure is not Figure.OF_BEST_PEER or ours is None or peer is None or not peer.foresight:
        return
    name = f"… {_BLIND}"
    if blind is not None:
        yield "", "", name, "", f"{ratio(ours, blind, hours):.3f}", "", _ratio(one.at.oracle_of(blind)), blind.policy
    else:
        yield "", "", name, "", "none keeps 99 %" if one.at.blind else "none was run", "", "", ""


def _ratio(found: float | None) -> str:
    return "" if found is None else f"{found:.3f}"


def _asked(bound: float, form: str, at_most: bool) -> str:
    return f"{'≤' if at_most else '≥'} {said(bound, form)}"


def _where(one: Judged) -> str:
    row = one.at.operator
    assert row is not None
    if one.target.figure is Figure.ATTAINMENT:
        name, first, rest = worst(row)
        return f"{name}: TTFT {said(first, _PERCENT)}, TPOT {said(rest, _PERCENT)}"
    return ", ".join(f"{PARTS[part]} {size:.3f}" for part, size in lost(row)[:3] if size >= 0.0005)


# --- Words ---------------------------------------------------------------------------------------------------------


def _seeds(study: Study, at: Outcome) -> str:
    count = min((len(row.results) for row in at.rows.values()), default=study.seeds)
    return "One seed." if count == 1 else f"{count} seeds."


def _cold(at: Outcome, scenario: Scenario) -> str:
    return f"Replicas take {_cold_start(at, scenario)} to load."


def _cold_start(at: Outcome, scenario: Scenario) -> str:
    seconds = scenario.cold_start.seconds if at.cold is None else at.cold
    return "their variant's time" if seconds is None else f"{seconds:g} s"


def _estimated(scenario: Scenario) -> dict[str, list[str]]:
    """Services whose engines on an accelerator are all estimates, by accelerator."""
    found: dict[str, list[str]] = {}
    for service in scenario.services:
        variants = scenario.variants(service)
        for name in dict.fromkeys(variant.accelerator.name for variant in variants):
            if all(it.provenance is Provenance.ROOFLINE for it in variants if it.accelerator.name == name):
                found.setdefault(name, []).append(service.key.name)
    return found


def _mark(scenario: Scenario) -> str:
    return " ‡" if _estimated(scenario) else ""


def _estimates(scenario: Scenario) -> Iterator[str]:
    if found := _estimated(scenario):
        each = "; ".join(f"{name} for {_listed(services)}" for name, services in sorted(found.items()))
        yield f"‡ Scaled or carried over, not fitted to measurements of the engine: {each}."


def spread(row: Row, figure: Callable[[Result], float], form: str) -> str:
    """Mean, and half the width of its interval where there is one."""
    half = row.half_width(figure)
    return said(row.mean(figure), form) + (f" ± {said(half, form)}" if half else "")


def said(value: float, form: str) -> str:
    """A number as the page writes it: a space before %."""
    return form.format(value).replace("%", " %")


def _listed(items: Iterable[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: tuple[int, ...] = (0,)) -> str:
    """A Markdown table; columns in `left` are aligned there, others to the right."""
    rule = ["---" if number in left else "---:" for number in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
