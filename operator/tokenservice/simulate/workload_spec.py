"""What a scenario says of one service's requests. `docs/scenarios/README.md` shows each field in use."""

from __future__ import annotations

import itertools
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tokenservice.api.base import REQUIRED, ApiModel, field
from tokenservice.simulate.traffic import LONGEST_SECONDS, MOST_TOKENS


class ScenarioModel(ApiModel):
    """Base of scenarios: as the API's, but a field that is not known is an error, for no server will drop it."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=False)


def wrong(field_name: str, message: str) -> PydanticCustomError:
    """An error at a field below the one that is validated; an empty name means the field itself."""
    return PydanticCustomError("scenario", "{message}", {"message": message, "field": field_name})


def one_of(model: ScenarioModel, *names: str) -> str:
    """The one of these fields that is set. Raises unless exactly one is."""
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        shown = [type(model).model_fields[name].alias or name for name in names]
        raise wrong("", f"give exactly one of {', '.join(shown)}")
    return given[0]


Point = tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]]
Points = tuple[Point, ...]


def _rising(points: Points, what: str) -> None:
    """Raises where a first number falls, or when there are fewer than two points."""
    if len(points) < 2 or any(later[0] < earlier[0] for earlier, later in itertools.pairwise(points)):
        raise wrong(what, "needs two points or more, in order")


class Window(ScenarioModel):
    """A part of the time that the source covers."""

    start_seconds: float = field(0.0, "Where in the source the simulation begins", unit="seconds", ge=0)
    end_seconds: float | None = field(
        None, "Where in the source it ends", unit="seconds", default_text="the source's end", gt=0
    )

    @model_validator(mode="after")
    def _in_order(self) -> Window:
        if self.end_seconds is not None and self.end_seconds <= self.start_seconds:
            raise wrong("endSeconds", f"must be after startSeconds ({self.start_seconds:g})")
        return self


class RequestFile(ScenarioModel):
    """Requests one by one, replayed."""

    file: Path = field(
        REQUIRED,
        "CSV with timestamp_s, input_tokens and output_tokens, or Azure's or Mooncake's own format; recognised by its"
        " first line. Relative to the scenario; ${TAAS_DATA} stands for the folder with public data",
    )
    prefix_cache_tokens: float = field(
        0.0,
        "Size of a prefix cache that every prompt sees, forgetting the least recently used blocks first; for traces"
        " that name their blocks (Mooncake's, 512 tokens each). 0 finds nothing",
        unit="tokens",
        ge=0,
    )


class OnOff(ScenarioModel):
    """A rate that is there now and then, for exponential times; the same in every run."""

    requests_per_minute: float = field(REQUIRED, "Rate when on", unit="requests per minute", gt=0)
    idle_requests_per_minute: float = field(0.0, "Rate when off", unit="requests per minute", ge=0)
    mean_on_seconds: float = field(REQUIRED, "Mean time on", unit="seconds", gt=0)
    mean_off_seconds: float = field(REQUIRED, "Mean time off", unit="seconds", gt=0)
    seed: int = field(0, "Seed of the times; independent of the scenario's, so that demand is the same for all", ge=0)


class Rate(ScenarioModel):
    """Demand as a curve over time, linear between its points."""

    file: Path | None = field(
        None, "CSV with t_s and requests_per_minute (or rpm) or tokens_per_minute", default_text="points or onOff"
    )
    requests_per_minute: Points | None = field(
        None, "[seconds, requests per minute] points", default_text="file or onOff"
    )
    tokens_per_minute: Points | None = field(
        None, "[seconds, tokens per minute] points; prompts and answers together", default_text="file or onOff"
    )
    on_off: OnOff | None = field(None, "A rate that comes and goes; needs lengthSeconds", default_text="file or points")
    length_seconds: float | None = field(
        None,
        "Length of the curve; beyond its last point the last rate holds",
        unit="seconds",
        default_text="the last point's time",
        gt=0,
        le=LONGEST_SECONDS,
    )

    @model_validator(mode="after")
    def _one_source(self) -> Rate:
        one_of(self, "file", "requests_per_minute", "tokens_per_minute", "on_off")
        if self.on_off is not None and self.length_seconds is None:
            raise wrong("lengthSeconds", "is required with onOff")
        for name, points in (
            ("requestsPerMinute", self.requests_per_minute),
            ("tokensPerMinute", self.tokens_per_minute),
        ):
            if points is not None:
                _rising(points, name)
                if points[0][0] != 0:
                    raise wrong(name, "the first point must be at 0 seconds")
                if points[-1][0] > LONGEST_SECONDS:
                    raise wrong(name, f"the last point must be at {LONGEST_SECONDS:g} seconds or before")
        return self


class Distribution(ScenarioModel):
    """Tokens by quantile, linear in between."""

    file: Path | None = field(None, "CSV with cdf_pct (0 to 100) and tokens", default_text="quantiles")
    quantiles: Points | None = field(None, "[percent, tokens] points from 0 to 100 percent", default_text="file")

    @model_validator(mode="after")
    def _one_source(self) -> Distribution:
        one_of(self, "file", "quantiles")
        if self.quantiles is not None:
            _rising(self.quantiles, "quantiles")
            if (self.quantiles[0][0], self.quantiles[-1][0]) != (0, 100):
                raise wrong("quantiles", "must run from 0 to 100 percent")
            if any(later[1] < earlier[1] for earlier, later in zip(self.quantiles, self.quantiles[1:], strict=False)):
                raise wrong("quantiles", "tokens must not fall")
            if self.quantiles[-1][1] > MOST_TOKENS:
                raise wrong("quantiles", f"tokens must be at most {MOST_TOKENS:g}")
        return self


class LengthSpec(ScenarioModel):
    """Prompts and answers, drawn independently of each other."""

    input: Distribution = field(REQUIRED, "Length of prompts")
    output: Distribution = field(REQUIRED, "Length of answers")


class Shift(StrEnum):
    JITTER = "Jitter"
    CIRCULAR = "Circular"


class Copies(ScenarioModel):
    """A request file several times over, so that a small trace loads a fleet."""

    count: int = field(1, "How many copies", ge=1, le=10000)
    shift: Shift = field(
        Shift.JITTER,
        "Jitter moves each request by itself, up to jitterSeconds either way: bursts stay. Circular moves each copy as"
        " a whole around the window, by any time: bursts average out",
    )
    jitter_seconds: float = field(60.0, "Largest move of a request under Jitter", unit="seconds", ge=0)


class DeferrableMode(StrEnum):
    ADDED = "Added"
    DRAWN = "Drawn"


class Deferrable(ScenarioModel):
    """Work that may wait. Shares of requests are shares of work too, for both kinds have the same lengths."""

    share_of_all_work: float = field(REQUIRED, "Deferrable share of all work offered", unit="ratio", ge=0, lt=1)
    deadline_seconds: float = field(REQUIRED, "Time from arrival in which it must be finished", unit="seconds", gt=0)
    mode: DeferrableMode = field(
        DeferrableMode.DRAWN,
        "Drawn marks that share of the requests; Added brings that much on top, evenly over the time, with lengths of"
        " the service's own",
    )


def _absent_when_none(value: Any) -> Any:
    return {} if value is None else value


class WorkloadSpec(ScenarioModel):
    """One service's requests: one by one from a file, or drawn from a rate and lengths."""

    requests: RequestFile | None = field(None, "Requests from a file", default_text="rate and lengths")
    rate: Rate | None = field(None, "Demand over time", default_text="requests")
    lengths: LengthSpec | None = field(None, "Lengths; required with rate", default_text="those of the file")
    scale: float = field(
        1.0,
        "Factor on the rate. For a request file at most 1: that share of requests is kept; more come from copies",
        unit="ratio",
        gt=0,
        le=1e6,
    )
    burst_cv: float = field(
        1.0,
        "Coefficient of variation of the gamma distributed gaps between arrivals, in time that runs at the rate's"
        " speed: 1 is Poisson, more comes in bursts",
        unit="ratio",
        gt=0,
        le=100,
    )
    copies: Annotated[Copies, BeforeValidator(_absent_when_none)] = field(Copies(), "A request file several times over")
    offset_seconds: float = field(
        0.0,
        "Moves the source later, around: what leaves at its end comes in at its start; before the window is cut",
        unit="seconds",
    )
    window: Annotated[Window, BeforeValidator(_absent_when_none)] = field(Window(), "The part that is simulated")
    deferrable: Deferrable | None = field(None, "Work that may wait", default_text="none")

    @model_validator(mode="after")
    def _consistent(self) -> WorkloadSpec:
        if one_of(self, "requests", "rate") == "rate":
            if self.lengths is None:
                raise wrong("lengths", "is required with rate")
            if self.copies.count > 1:
                raise wrong("copies.count", "copies are of a request file; give a rate its scale instead")
            return self
        for name, given in (("lengths", self.lengths is not None), ("burstCv", self.burst_cv != 1)):
            if given:
                raise wrong(name, "goes with rate; a request file has its own")
        if self.scale > 1:
            raise wrong("scale", "must be at most 1 for a request file; use copies for more requests")
        return self

    def files(self) -> tuple[tuple[tuple[str, ...], Path], ...]:
        """Data files and the fields that name them."""
        lengths = self.lengths
        named: tuple[tuple[tuple[str, ...], Path | None], ...] = (
            (("requests", "file"), self.requests.file if self.requests else None),
            (("rate", "file"), self.rate.file if self.rate else None),
            (("lengths", "input", "file"), lengths.input.file if lengths else None),
            (("lengths", "output", "file"), lengths.output.file if lengths else None),
        )
        return tuple((path, file) for path, file in named if file is not None)
