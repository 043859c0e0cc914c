"""The numbers of the page: what was run of a study, who did best, and what was reached of what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import mean

from tokenservice.simulate.compare import STATIC, STATICS, Row
from tokenservice.simulate.oracle import Foresight
from tokenservice.simulate.policies import POLICIES
from tokenservice.simulate.result import PARTS, Result
from tokenservice.simulate.results.runner import Known, Plan, merit
from tokenservice.simulate.results.study import Figure, From, Study, Target
from tokenservice.simulate.run import OPERATOR, label, looks_ahead

Measure = Callable[[Result], float]


def hours(one: Result) -> float:
    """Accelerator-hours."""
    return one.accelerator_hours


def utilization(one: Result) -> float:
    """U."""
    return one.utilization


def attainment(one: Result) -> float:
    """Worst joint attainment of a Guaranteed service."""
    return one.attainment


def ratio(ours: Row, other: Row, measure: Measure) -> float:
    """Of the means over the seeds that both were run on: the requests of another seed are others."""
    both = {one.seed for one in ours.results} & {one.seed for one in other.results}
    mine, theirs = (mean(measure(one) for one in row.results if one.seed in both) for row in (ours, other))
    return mine / theirs


def at_first(row: Row, measure: Measure) -> float:
    """On seed 0 alone, as the oracle is searched."""
    return measure(row.results[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One study at one cold start, as far as it was run: rows by policy, and the oracle's services."""

    study: Study
    cold: float | None
    rows: Mapping[str, Row]
    oracle: Mapping[str, Foresight]

    @property
    def static(self) -> Row | None:
        """Static at p99."""
        return self.rows.get(STATIC)

    @property
    def operator(self) -> Row | None:
        """Ours."""
        return self.rows.get(OPERATOR)

    @property
    def peers(self) -> list[Row]:
        """Those that were run."""
        return [row for name, row in self.rows.items() if name in POLICIES]

    @property
    def best_peer(self) -> Row | None:
        """The cheapest peer that keeps 99 %."""
        return _cheapest(self.peers)

    @property
    def blind(self) -> list[Row]:
        """Peers that are told nothing of the future, as we are."""
        return [row for row in self.peers if not row.foresight]

    @property
    def best_blind(self) -> Row | None:
        """The cheapest of those that keeps 99 %."""
        return _cheapest(self.blind)

    @property
    def ranked(self) -> list[Row]:
        """Ours, static ones, then peers: those that keep 99 % by cost, then the others by attainment."""
        first = [self.rows[name] for name in (OPERATOR, *STATICS) if name in self.rows]
        return first + sorted(self.peers, key=lambda row: (not row.kept, merit(row.results[0])[1]))

    @property
    def oracle_hours(self) -> float:
        """Of all services."""
        return sum(one.accelerator_hours for one in self.oracle.values())

    def oracle_of(self, row: Row | None) -> float | None:
        """The oracle's hours over those of another on its seed; None where one of the two was not run."""
        return self.oracle_hours / at_first(row, hours) if self.oracle and row is not None else None

    @property
    def oracle_utilization(self) -> float:
        """As the policies'."""
        return sum(one.work for one in self.oracle.values()) / 3600 / self.oracle_hours


def _cheapest(rows: Iterable[Row]) -> Row | None:
    kept = [row for row in rows if row.kept]
    return min(kept, key=lambda row: row.mean(lambda one: one.dollars), default=None)


def outcome(plan: Plan, study: Study, cold: float | None, known: Known) -> Outcome:
    """What is known of a study at one cold start; seeds that were not run are left out of a row."""
    rows = {}
    for policy in (*plan.statics(study), OPERATOR, *plan.peers(study, cold, known)):
        chosen = plan.chosen(study, cold, policy, known)
        if chosen is not None:
            found = [known.results(study, cold, policy, seed) for seed in range(study.seeds)]
            same = tuple(it for each in found for task, it in each.items() if task.choice == chosen.choice)
            ahead = looks_ahead(policy, chosen.choice)
            rows[policy] = Row(policy=label(policy, chosen.choice), results=same, foresight=ahead)
    oracle = known.foresight(study)
    whole = not [unit for unit in plan.searches(study, known) if unit.service not in oracle]
    return Outcome(study=study, cold=cold, rows=rows, oracle=oracle if oracle and whole else {})


# --- Targets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A target, its bound as a number, and what was reached; None where it was not run."""

    target: Target
    at: Outcome
    bound: float | None
    reached: float | None
    half_width: float = 0.0
    foresight: float | None = None
    """The oracle's figure; None where it was not searched, or the figure says nothing of it."""

    @property
    def met(self) -> bool:
        """Whether the mean reaches the bound."""
        assert self.bound is not None
        assert self.reached is not None
        return self.reached <= self.bound if self.target.at_most is not None else self.reached >= self.bound


def judged(target: Target, at: Outcome, operator_of: Callable[[str], Row | None]) -> Judged:
    """`operator_of` gives the operator's row of another study, for bounds that are computed from it."""
    return Judged(
        target=target,
        at=at,
        bound=_bound(target, operator_of),
        reached=_reached(target.figure, at),
        half_width=_half_width(target.figure, at),
        foresight=_foresight(target.figure, at),
    )


def _bound(target: Target, operator_of: Callable[[str], Row | None]) -> float | None:
    if not isinstance(target.at_least, From):
        return target.at_most if target.at_least is None else target.at_least
    row = operator_of(target.at_least.scenario)
    return None if row is None else row.mean(utilization) / target.at_least.divided - target.at_least.less


def _reached(figure: Figure, at: Outcome) -> float | None:
    if at.operator is None:
        return None
    if figure is Figure.UTILIZATION:
        return at.operator.mean(utilization)
    if figure is Figure.ATTAINMENT:
        return at.operator.mean(attainment)
    if figure is Figure.OF_ORACLE:
        return at_first(at.operator, utilization) / at.oracle_utilization if at.oracle else None
    other = _other(figure, at)
    return None if other is None else ratio(at.operator, other, hours)


def _foresight(figure: Figure, at: Outcome) -> float | None:
    if figure in (Figure.ATTAINMENT, Figure.OF_ORACLE):
        return None
    if figure is Figure.UTILIZATION:
        return at.oracle_utilization if at.oracle else None
    return at.oracle_of(_other(figure, at))


def _other(figure: Figure, at: Outcome) -> Row | None:
    """Whose hours a figure divides by."""
    return at.static if figure is Figure.OF_STATIC else at.best_peer


def _half_width(figure: Figure, at: Outcome) -> float:
    measures: dict[Figure, Measure] = {Figure.UTILIZATION: utilization, Figure.ATTAINMENT: attainment}
    return at.operator.half_width(measures[figure]) if at.operator is not None and figure in measures else 0.0


def lost(row: Row) -> list[tuple[str, float]]:
    """The parts of the waterfall beside U, the largest first."""
    parts = [(part, row.mean(lambda one, part=part: share(one, part))) for part in PARTS if part != "utilization"]  # type: ignore[misc]
    return sorted(parts, key=lambda pair: -pair[1])


def share(one: Result, part: str) -> float:
    """One part of the waterfall."""
    return float(getattr(one.waterfall, part))


def worst(row: Row) -> tuple[str, float, float]:
    """The Guaranteed service (any, where none is) that attains least, and its shares within TTFT and TPOT."""
    services = row.results[0].services
    tiers = [name for name, one in services.items() if one.tier == "Guaranteed"] or list(services)
    name = min(tiers, key=lambda name: row.mean(lambda one: one.services[name].attainment))
    return (
        name,
        row.mean(lambda one: one.services[name].ttft_attainment),
        row.mean(lambda one: one.services[name].tpot_attainment),
    )
