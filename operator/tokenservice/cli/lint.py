"""`tokenservice lint`: finds in files what an API server or the operator would find later, or nobody at all.

Three passes, each over what the one before it found sound: the file itself (YAML, duplicate keys), the schema with its
rules, and the operator's own checks against the catalogue and whatever classes and profiles the files bring along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from tokenservice.api import API_VERSION, GROUP
from tokenservice.api.accelerator_class import AcceleratorClassSpec
from tokenservice.api.capacity_profile import CapacityProfileSpec
from tokenservice.api.resources import KINDS
from tokenservice.api.token_service import TokenServiceSpec
from tokenservice.api.validation import Path as FieldPath
from tokenservice.api.validation import kind_of, stored, violations
from tokenservice.catalogue import accelerator_classes, architectures, capacity_profiles
from tokenservice.core.checks import Input, check_names, older, static_problems
from tokenservice.core.model import Accelerator, EngineImages, Problem, Profile, Service, ServiceKey
from tokenservice.yaml_lines import composed, constructed, mark_of, twice

Json = dict[str, Any]
_KINDS = {kind.kind: kind for kind in KINDS}


@dataclass(frozen=True, slots=True)
class Finding:
    """One error, where it stands and what to do about it."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


@dataclass(frozen=True, slots=True)
class Document:
    """An object of a file, and the nodes it was read from, which know their lines."""

    file: str
    node: yaml.Node
    body: Json

    def finding(self, path: FieldPath, message: str) -> Finding:
        return Finding(self.file, mark_of(self.node, path).line + 1, message)


def lint(
    files: Annotated[list[Path], typer.Argument(help="Files with resources; - reads standard input.", allow_dash=True)],
) -> None:
    """Find errors in files without a cluster: typos, wrong values, promises that cannot be kept."""
    texts = [(str(file), typer.get_text_stream("stdin").read() if str(file) == "-" else _read(file)) for file in files]
    found, judged = findings(texts)
    for finding in found:
        typer.echo(str(finding))
    typer.echo(f"{judged} resources, {len(found)} errors" if found else f"{judged} resources, no errors", err=True)
    if found:
        raise typer.Exit(1)


def findings(texts: Sequence[tuple[str, str]]) -> tuple[tuple[Finding, ...], int]:
    """Everything wrong in the named texts, in order, and how many resources of ours they hold."""
    found: list[Finding] = []
    sound: list[Document] = []
    judged = 0
    for name, text in texts:
        for item in _documents(name, text):
            if isinstance(item, Finding):
                found.append(item)
                continue
            wrong = [*_unknown_kind(item), *_schema_errors(item)]
            found += wrong
            judged += kind_of(item.body) is not None
            if not wrong:
                sound.append(item)
    found += _semantic_errors(sound)
    return tuple(dict.fromkeys(found)), judged


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file}: {error}") from error


# --- The file -------------------------------------------------------------------------------------------------------


def _documents(name: str, text: str) -> Iterator[Document | Finding]:
    """Documents, and the errors of those that could not be read."""
    try:
        nodes = composed(text, name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        yield Finding(name, mark.line + 1 if mark else 1, f"not YAML: {getattr(error, 'problem', None) or error}")
        return
    for node in nodes:
        duplicates = [
            Finding(name, line, f"{key} is there twice, only the last would count") for key, line in twice(node)
        ]
        yield from duplicates
        if not duplicates:
            yield from _resources(name, node)


def _resources(name: str, node: yaml.Node) -> Iterator[Document | Finding]:
    """The object, or those of a List."""
    line = node.start_mark.line + 1
    try:
        body = constructed(node)
    except yaml.YAMLError as error:
        yield Finding(name, line, f"not YAML that kubectl reads: {getattr(error, 'problem', None) or error}")
        return
    if body is None:
        return
    if not isinstance(body, dict):
        yield Finding(name, line, "not a resource: give apiVersion, kind, metadata and spec")
    elif body.get("kind") == "List" and isinstance(body.get("items"), list):
        items = next(value for key, value in node.value if key.value == "items")
        for item in items.value:
            yield from _resources(name, item)
    elif body:
        yield Document(name, node, body)


# --- The schema -----------------------------------------------------------------------------------------------------


def _unknown_kind(document: Document) -> Iterator[Finding]:
    """Kinds of others are none of our business; what is nearly one of ours is."""
    version, kind = str(document.body.get("apiVersion")), str(document.body.get("kind"))
    if kind in _KINDS and version != API_VERSION:
        yield document.finding(("apiVersion",), f"apiVersion: {kind} is of {API_VERSION}, not {version}")
    elif version.partition("/")[0] == GROUP and kind not in _KINDS:
        close = get_close_matches(kind, _KINDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known are {', '.join(_KINDS)}"
        yield document.finding(("kind",), f"kind: {GROUP} has no {kind}{hint}")


def _schema_errors(document: Document) -> Iterator[Finding]:
    if kind_of(document.body) is not None:
        for violation in violations(document.body):
            yield document.finding(violation.path, str(violation))


# --- The operator's checks ------------------------------------------------------------------------------------------


def _semantic_errors(documents: Sequence[Document]) -> Iterator[Finding]:
    """What the operator would call Stalled, as far as it can be told without nodes, and what it would never use."""
    accelerators, profiles = _accelerators(documents), _profiles(documents)
    yield from _unknown_classes(documents, [accelerator.name for accelerator in accelerators])
    services = {
        _key(document): (document, _service(document, order))
        for order, document in enumerate(_of_kind(documents, "TokenService"))
    }
    for document, service in services.values():
        if service.spec is None:
            continue
        problems = static_problems(service.spec, accelerators, profiles, architectures())
        others = older(service, [other for _, other in services.values()])
        for problem in (*problems, *_name_problems(service, service.spec, others)):
            path = tuple(part.split("[")[0] for part in problem.field.split("."))
            yield document.finding(path, f"{problem.field}: {problem.message}")


def _unknown_classes(documents: Sequence[Document], known: Sequence[str]) -> Iterator[Finding]:
    """A profile of a class that nobody has is never used, and nothing in a cluster says so."""
    for document in _of_kind(documents, "CapacityProfile"):
        name = document.body["spec"]["accelerator"]
        if name not in known:
            yield document.finding(("spec", "accelerator"), f"spec.accelerator: {_no_class(name, known)}")


def _no_class(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1)
    hint = f"use {close[0]}" if close else f"known are {', '.join(known)}"
    return f"there is no AcceleratorClass {name!r}; {hint}. If the cluster has it, lint its class along with this"


def _name_problems(service: Service, spec: TokenServiceSpec, others: tuple[Service, ...]) -> tuple[Problem, ...]:
    given = Input(key=service.key, spec=spec, variants=(), older=others, nodes=(), images=EngineImages(defaults={}))
    return tuple(check_names(given))


def _key(document: Document) -> ServiceKey:
    metadata = document.body["metadata"]
    return ServiceKey(metadata.get("namespace", "default"), metadata.get("name", metadata.get("generateName", "")))


def _service(document: Document, order: int) -> Service:
    """As the operator would see it, created in the order of the files."""
    return Service(
        key=_key(document),
        uid="",
        generation=1,
        resource_version="",
        created_at=float(order),
        spec=TokenServiceSpec.model_validate(stored(document.body)["spec"]),
    )


def _accelerators(documents: Sequence[Document]) -> tuple[Accelerator, ...]:
    """The catalogue's classes, and over them those of the files."""
    own = {name: AcceleratorClassSpec.model_validate(spec) for name, spec in _specs(documents, "AcceleratorClass")}
    known = {**accelerator_classes(), **own}
    return tuple(Accelerator(name=name, spec=spec) for name, spec in sorted(known.items()))


def _profiles(documents: Sequence[Document]) -> tuple[Profile, ...]:
    own = {name: CapacityProfileSpec.model_validate(spec) for name, spec in _specs(documents, "CapacityProfile")}
    known = {**capacity_profiles(), **own}
    return tuple(Profile(name=name, spec=spec) for name, spec in sorted(known.items()))


def _specs(documents: Sequence[Document], kind: str) -> Iterator[tuple[str, Json]]:
    for document in _of_kind(documents, kind):
        yield document.body["metadata"]["name"], stored(document.body)["spec"]


def _of_kind(documents: Sequence[Document], kind: str) -> Iterator[Document]:
    return (document for document in documents if kind_of(document.body) and document.body["kind"] == kind)
