"""The list of what the results page holds: `docs/results.yaml`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from tokenservice.api.base import REQUIRED, field
from tokenservice.errors import InputError, cause
from tokenservice.simulate.run import names
from tokenservice.simulate.workload_spec import ScenarioModel, one_of, wrong


class Figure(StrEnum):
    """What a target is about; shares are 0 to 1."""

    UTILIZATION = "utilization"
    ATTAINMENT = "attainment"
    OF_STATIC = "hoursOfStatic"
    OF_BEST_PEER = "hoursOfBestPeer"
    OF_ORACLE = "utilizationOfOracle"


class From(ScenarioModel):
    """A bound that is computed from U of the operator in another study: `U / divided - less`."""

    scenario: str = field(REQUIRED, "Name of the study's scenario, at its first cold start")
    divided: float = field(1.0, "By what U is divided", unit="ratio", gt=0)
    less: float = field(0.0, "What is then taken away", unit="ratio")


class Target(ScenarioModel):
    """What was asked for."""

    figure: Figure = field(REQUIRED, "utilization, attainment, hoursOfStatic, hoursOfBestPeer or utilizationOfOracle")
    at_least: float | From | None = field(None, "Lower bound, or from and how", default_text="atMost")
    at_most: float | None = field(None, "Upper bound", default_text="atLeast")
    cold_start_seconds: float | None = field(
        None, "At which of the study's cold starts", unit="seconds", default_text="its first"
    )

    @model_validator(mode="after")
    def _one_bound(self) -> Target:
        one_of(self, "at_least", "at_most")
        return self


class BestOf(ScenarioModel):
    """The peers that did best in another study, at the same cold start if it has that, else at its first."""

    scenario: str = field(REQUIRED, "Name of the study's scenario")
    count: int = field(2, "How many: those that keep 99 % at the least cost, then those that come nearest", ge=1)
    sweep: bool = field(False, "Try all their settings again, instead of the one that was chosen there")


Seconds = Annotated[float, Field(gt=0)]


class Study(ScenarioModel):
    """One scenario, and who is run on it. The operator and static at p99 always are."""

    scenario: Path = field(REQUIRED, "Scenario file, relative to the list")
    title: str = field(REQUIRED, "Heading")
    note: str = field("", "What a reader should know, in a sentence")
    cold_starts: tuple[Seconds, ...] = field(
        (), "Seconds that replicas load; the first is shown in full", default_text="the scenario's", unit="seconds"
    )
    seeds: int = field(1, "Runs of each policy at its chosen setting, with seeds 0, 1, …", ge=1, le=100)
    peers: Literal["all", "none"] | tuple[str, ...] | BestOf = field(
        "all",
        "all, none, names, or bestOf another study; settings are chosen on seed 0 unless another study chose them",
    )
    oracle: bool | str = field(
        False, "Search the oracle; the name of another study's scenario begins the search where that one ended"
    )
    quick: bool = field(False, "Part of the subset for CI")
    seconds_per_run: float = field(
        REQUIRED, "Processor time that a run takes, about: for what is told of the time left", unit="seconds", gt=0
    )
    targets: tuple[Target, ...] = field((), "What was asked for")

    @property
    def name(self) -> str:
        """The scenario's."""
        return self.scenario.stem

    @property
    def colds(self) -> tuple[float | None, ...]:
        """Cold starts; None is the scenario's own."""
        return self.cold_starts or (None,)

    @model_validator(mode="after")
    def _known(self) -> Study:
        unknown = [name for name in self.peers if name not in names()] if isinstance(self.peers, tuple) else []
        if unknown:
            raise wrong("peers", f"there is no policy {', '.join(unknown)}; there are {', '.join(names())}")
        for number, target in enumerate(self.targets):
            if target.cold_start_seconds not in (None, *self.cold_starts):
                raise wrong(f"targets.{number}.coldStartSeconds", "is none of the study's coldStarts")
        return self


class Studies(ScenarioModel):
    """The whole list, in the page's order."""

    studies: tuple[Study, ...] = field(REQUIRED, "What is run", min_length=1)

    @model_validator(mode="after")
    def _refer_back(self) -> Studies:
        """Others are referred to by name, and stand before."""
        before: set[str] = set()
        for number, study in enumerate(self.studies):
            for where, name in _references(study):
                if name not in before:
                    raise wrong(f"studies.{number}.{where}", f"no study before this one has the scenario {name!r}")
            before.add(study.name)
        return self

    def of(self, name: str) -> Study:
        """By its scenario's name."""
        return next(study for study in self.studies if study.name == name)


def _references(study: Study) -> list[tuple[str, str]]:
    found = [("peers.scenario", study.peers.scenario)] if isinstance(study.peers, BestOf) else []
    if isinstance(study.oracle, str):
        found.append(("oracle", study.oracle))
    return found + [
        (f"targets.{number}.atLeast.scenario", target.at_least.scenario)
        for number, target in enumerate(study.targets)
        if isinstance(target.at_least, From)
    ]


def read(path: Path, *, quick: bool = False) -> Studies:
    """The list in a file, or its quick part. Raises InputError with every error, `file: field: message` a line."""
    try:
        found = Studies.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read: {cause(error)}") from None
    except ValidationError as errors:
        raise InputError("\n".join(_told(path, dict(error)) for error in errors.errors())) from None
    studies = tuple(
        study.model_copy(update={"scenario": path.parent / study.scenario})
        for study in found.studies
        if study.quick or not quick
    )
    return found.model_copy(update={"studies": studies})


def _told(path: Path, error: dict[str, object]) -> str:
    parts = error["loc"]
    assert isinstance(parts, tuple)
    context = error.get("ctx")
    below = str(context.get("field", "")) if isinstance(context, dict) else ""
    name = ".".join(map(str, (*parts, *filter(None, [below]))))
    return f"{path}: {name}: {error['msg']}"
