"""`tokenservice explain NAMESPACE/NAME`: why a TokenService is as it is, from its status alone.

The operator writes the last decision, its inputs and what it rejected into the status; nothing is decided anew here.
So whoever may read the TokenService may ask, and the answer is the one that was acted on.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokenservice.api import GROUP
from tokenservice.api.quantity import duration_seconds
from tokenservice.core.model import ObjectKey, ServiceKey
from tokenservice.errors import ApiError, Forbidden, NotFound, TokenServiceError

Json = dict[str, Any]
Load = Callable[[ServiceKey], Json]
"""Reads the object. Raises TokenServiceError."""

_DEFAULT_KUBECONFIG = "~/.kube/config"
_READING_SECONDS = 30.0
_STATE_WIDTH = len("CapacityAvailable=Unknown")


class CannotExplain(TokenServiceError):  # noqa: N818 - says what happened, as its siblings do
    """There is nothing to explain; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One promise: what was measured, what was asked for; `met` is None where that cannot be told."""

    name: str
    measured: str
    target: str
    met: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything that is shown, in the order in which it is shown."""

    service: str
    model: str
    tier: str
    mode: str
    paused: bool
    current: bool
    reason: str | None
    message: str | None
    inputs: dict[str, str]
    rejected: tuple[str, ...]
    measures: tuple[Measure, ...]
    forecast: str | None
    variants: tuple[Json, ...]
    loading: Json | None
    conditions: tuple[Json, ...]
    endpoint: str | None


def explain(
    service: Annotated[str, typer.Argument(help="Which TokenService.", metavar="NAMESPACE/NAME")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    kubeconfig: Annotated[
        str | None, typer.Option(help="Default: $KUBECONFIG, else ~/.kube/config, else the pod's ServiceAccount.")
    ] = None,
    context: Annotated[str | None, typer.Option(help="Context of the kubeconfig; default: its current one.")] = None,
) -> None:
    """Say why a TokenService is as it is: the last decision, its inputs, and what was decided against."""
    raise typer.Exit(answer(service, lambda key: read(key, kubeconfig, context), as_json=as_json))


def answer(service: str, load: Load, *, as_json: bool = False, console: Console | None = None) -> int:
    """Reads, prints, and returns the exit code; `load` is told which object to read."""
    out = console or Console()
    try:
        key = parsed(service)
        found = explanation(loaded(key, load))
    except TokenServiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if as_json:
        out.print_json(data=asdict(found))
    else:
        show(found, out)
    return 0


# --- Reading -------------------------------------------------------------------------------------------------------


def parsed(service: str) -> ServiceKey:
    """`NAMESPACE/NAME`."""
    namespace, slash, name = service.partition("/")
    if not (namespace and slash and name) or "/" in name:
        raise CannotExplain(f"{service!r} is not NAMESPACE/NAME: write for example default/chat")
    return ServiceKey(namespace, name)


def loaded(key: ServiceKey, load: Load) -> Json:
    """The object. Raises CannotExplain with the way out where the API server's words have none."""
    try:
        return load(key)
    except NotFound as error:
        raise CannotExplain(_not_found(key, error)) from error
    except Forbidden as error:
        fix = f"you need the right to get tokenservices.{GROUP} in {key.namespace}"
        raise CannotExplain(f"{key} may not be read: {error.message}; {fix}") from error
    except ApiError as error:
        raise CannotExplain(f"the API server gave no answer on {key}: {error.message}") from error


def _not_found(key: ServiceKey, error: NotFound) -> str:
    """The API server says 404 also for a kind that it does not know, and then names no object."""
    if error.details.get("kind") or error.details.get("name"):
        return f"there is no TokenService {key}: kubectl get tokenservices -A shows those that there are"
    return f"the cluster has no kind TokenService: install the chart, or check the context ({error.message})"


def read(key: ServiceKey, kubeconfig: str | None, context: str | None) -> Json:
    """The object, from the cluster of a kubeconfig."""
    return asyncio.run(_read(key, kubeconfig or default_kubeconfig(), context))


def default_kubeconfig() -> str | None:
    """As kubectl finds it; None when there is none, which leaves the ServiceAccount of a pod."""
    named = os.environ.get("KUBECONFIG")
    if named:
        return named
    home = Path(_DEFAULT_KUBECONFIG).expanduser()
    return str(home) if home.exists() else None


async def _read(key: ServiceKey, kubeconfig: str | None, context: str | None) -> Json:
    """The client is imported here because no other command needs it, and it takes its time."""
    from tokenservice.edge.kube import Kube, connect

    kube = Kube(await connect(kubeconfig, context))
    try:
        async with asyncio.timeout(_READING_SECONDS):
            return await kube.get(ObjectKey("TokenService", key.namespace, key.name))
    except TimeoutError as error:
        raise CannotExplain(f"{kube.server} did not answer within {_READING_SECONDS:.0f} s") from error
    finally:
        await kube.close()


# --- Understanding -------------------------------------------------------------------------------------------------


def explanation(resource: Json) -> Explanation:
    """What the object says of itself. Raises CannotExplain when the operator has not looked at it yet."""
    metadata, spec, status = resource["metadata"], resource.get("spec") or {}, resource.get("status") or {}
    name = f"{metadata['namespace']}/{metadata['name']}"
    if status.get("observedGeneration") is None:
        raise CannotExplain(
            f"{name} has no status yet: the operator has not looked at it. Check that the operator runs, that it"
            " leads (kubectl get leases in its namespace), and that it watches this namespace (watchNamespaces)"
        )
    decision = status.get("decision") or {}
    return Explanation(
        service=name,
        model=(spec.get("model") or {}).get("uri", ""),
        tier=spec.get("tier", "Elastic"),
        mode=spec.get("mode", "Act"),
        paused=bool(spec.get("paused")),
        current=status["observedGeneration"] == metadata.get("generation"),
        reason=decision.get("reason"),
        message=decision.get("message"),
        inputs=decision.get("inputs") or {},
        rejected=tuple(decision.get("rejected") or ()),
        measures=tuple(_measures(spec, status)),
        forecast=status.get("forecast"),
        variants=tuple(status.get("variants") or ()),
        loading=status.get("loading"),
        conditions=tuple(status.get("conditions") or ()),
        endpoint=status.get("endpoint"),
    )


def _measures(spec: Json, status: Json) -> Iterator[Measure]:
    """Promises and what came of them; what is neither promised nor measured is left out."""
    goals, measured = spec.get("objectives") or {}, status.get("objectives") or {}
    yield from _latency("time to first token", goals.get("timeToFirstToken"), measured.get("timeToFirstTokenSeconds"))
    yield from _latency(
        "time per output token", goals.get("timePerOutputToken"), measured.get("timePerOutputTokenSeconds")
    )
    yield _volume(goals.get("volume") or {}, status.get("tokensPerSecond"))
    cost, bound = status.get("costPerMillionTokens"), goals.get("maxCostPerMillionTokens")
    yield Measure("$ per million tokens", _shown(cost), _shown(bound), _within(cost, bound))
    target = (spec.get("scaling") or {}).get("targetUtilization")
    yield Measure("utilization", _shown(status.get("utilization")), _shown(target, "the fleet's"), None)
    if status.get("joulesPerToken") is not None:
        yield Measure("joules per token", f"{status['joulesPerToken']:g} (estimate)", "-", None)


def _latency(name: str, goal: Json | None, seconds: float | None) -> Iterator[Measure]:
    if goal is None:  # only in objects that no API server has filled with defaults
        return
    target = str(goal["target"])
    within = _within(seconds, duration_seconds(target))
    yield Measure(f"{name}, {goal.get('percentile', 'p99')}", _seconds(seconds), target, within)


def _volume(volume: Json, delivered: float | None) -> Measure:
    """Whether a volume is kept cannot be told from output: less is delivered when less is asked for."""
    bounds = {
        "guaranteed": volume.get("guaranteedTokensPerSecond"),
        "at most": volume.get("maxTokensPerSecond"),
    }
    target = ", ".join(f"{_shown(bound)} {name}" for name, bound in bounds.items() if bound is not None)
    return Measure("output tokens per second", _shown(delivered), target or "-", None)


def _within(measured: float | None, bound: float | None) -> bool | None:
    return None if measured is None or bound is None else measured <= bound


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.3g}ms" if seconds < 1 else f"{seconds:.3g}s"


def _shown(figure: float | None, absent: str = "-") -> str:
    return absent if figure is None else f"{figure:g}"


# --- Showing -------------------------------------------------------------------------------------------------------


def show(found: Explanation, out: Console) -> None:
    """For people; what is absent is left out."""
    _say(out, Text.assemble((found.service, "bold"), f"  {found.model}  {_manner(found)}"))
    if found.endpoint:
        _say(out, found.endpoint)
    if not found.current:
        _say(out, Text("The spec was changed since; this speaks of the one before.", style="yellow"))
    out.print()
    if found.reason:
        _say(out, Text.assemble((found.reason, "bold"), f": {found.message}"))
    else:
        _say(out, "No decision was made: see the conditions.")
    if found.forecast:
        _say(out, f"Forecast: {found.forecast}")
    if found.loading:
        _say(out, _loading(found.loading))
    _table(out, "decided from", ("input", "value"), found.inputs.items())
    if found.rejected:
        out.print()
        _say(out, Text("decided against", style="italic"))
        for line in found.rejected:
            _say(out, f"  {line}")
    _table(out, "promised and measured", ("objective", "measured", "target", "met"), map(_measure_row, found.measures))
    _table(
        out, "variants", ("variant", "ready/wanted", "accelerators each", "figures"), map(_variant_row, found.variants)
    )
    if found.conditions:
        out.print()
        _say(out, Text("conditions", style="italic"))
    for condition in found.conditions:
        _say(out, _condition_line(condition))


def _say(out: Console, line: Text | str) -> None:
    """One line however long it is, so that what is piped on can be searched."""
    out.print(line if isinstance(line, Text) else Text(line), soft_wrap=True)


def _manner(found: Explanation) -> str:
    manner = found.tier if found.mode == "Act" else f"{found.tier}, mode {found.mode}"
    return f"{manner}, paused" if found.paused else manner


def _loading(loading: Json) -> str:
    count, oldest, expected = loading["replicas"], loading["oldestSeconds"], loading["expectedSeconds"]
    return f"Starting: {count}, the oldest for {oldest:.0f} s; a start should take {expected:.0f} s"


def _measure_row(measure: Measure) -> Sequence[str]:
    met = {True: "yes", False: "no", None: "-"}[measure.met]
    return (measure.name, measure.measured, measure.target, met)


def _variant_row(variant: Json) -> Sequence[str]:
    ready = f"{variant['readyReplicas']}/{variant['replicas']}"
    figures = "estimate, not measured" if variant.get("provenance") == "Roofline" else variant.get("provenance", "-")
    return (variant["name"], ready, str(variant["tensorParallelSize"]), figures)


def _condition_line(condition: Json) -> str:
    """`Ready=True    Serving, since 2026-07-01 12:00:05 UTC: 2 of 3 replicas serve`."""
    state = f"{condition['type']}={condition['status']}"
    since = _since(condition.get("lastTransitionTime", ""))
    return f"  {state:{_STATE_WIDTH}}  {condition['reason']}{since}: {condition.get('message', '')}"


def _since(stamp: str) -> str:
    """The CRD's own default has no time worth showing."""
    try:
        at = datetime.fromisoformat(stamp).astimezone(UTC)
    except ValueError:
        return ""
    return "" if at.timestamp() == 0 else f", since {at:%Y-%m-%d %H:%M:%S} UTC"


def _table(out: Console, title: str, headings: Sequence[str], rows: Any) -> None:
    """Cells are text and never markup: some of it was written by users."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading, no_wrap=heading != "value")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    if table.row_count:
        out.print()
        out.print(table)
