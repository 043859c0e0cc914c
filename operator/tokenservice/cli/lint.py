"""`tokenservice lint`: finds in files what an API server or the operator would find later, or nobody at all.

Three passes, each over what the one before it found sound: the file itself (YAML, duplicate keys), the schema with its
rules, and the operator's own checks against the catalogue and whatever classes and profiles the files bring along.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
from tokenservice.api.validation import Violation, kind_of, stored, violations
from tokenservice.catalogue import accelerator_classes, architectures, capacity_profiles
from tokenservice.core.checks import Input, check_names, older, static_problems
from tokenservice.core.model import Accelerator, EngineImages, Problem, Profile, Service, ServiceKey
from tokenservice.errors import cause
from tokenservice.yaml_lines import composed, constructed, mark_of, twice

Json = dict[str, Any]
_KINDS = {kind.kind: kind for kind in KINDS}
_PROFILE = "CapacityProfile"
_GIVE = "give apiVersion, kind, metadata and spec"
_NEARLY = 0.85
"""Likeness from which a kind is taken for a misspelt one of ours: TokenServices has 0.96, TokenReview 0.78."""
_NEARLY_GROUP = 0.75


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


@dataclass(frozen=True, slots=True)
class Linted:
    """What was found, how many resources of ours were judged, and the files that hold only kinds of others."""

    findings: tuple[Finding, ...]
    judged: int
    passed_over: Mapping[str, tuple[str, ...]]


def lint(
    files: Annotated[list[Path], typer.Argument(help="Files with resources; - reads standard input.", allow_dash=True)],
) -> None:
    """Find errors in files without a cluster: typos, wrong values, promises that cannot be kept.

    Kinds of others, such as Namespace or Secret, are passed over; a file with nothing else is noted and is no error.
    One without any resource is an error, and so is an object that is there twice. The exit status is 1 with errors.
    """
    texts = [(str(file), _read(file)) for file in files]
    done = linted(texts)
    for finding in done.findings:
        typer.echo(str(finding))
    for file, kinds in done.passed_over.items():
        typer.echo(f"{file}: nothing of {API_VERSION} to judge, only {', '.join(kinds)}", err=True)
    typer.echo(f"{done.judged} resources, {len(done.findings) or 'no'} errors", err=True)
    if done.findings:
        raise typer.Exit(1)


def linted(texts: Sequence[tuple[str, str]]) -> Linted:
    """Everything wrong in the named texts, in order."""
    found: list[Finding] = []
    documents: list[Document] = []
    sound: list[Document] = []
    for name, text in texts:
        for item in list(_documents(name, text)) or [Finding(name, 1, f"holds no resource: {_GIVE}")]:
            if isinstance(item, Finding):
                found.append(item)
                continue
            wrong = [*_unknown_kind(item), *_schema_errors(item)]
            found += wrong
            documents.append(item)
            if not wrong:
                sound.append(item)
    found += [*_repeated(sound), *_semantic_errors(sound)]
    ours = [document for document in documents if kind_of(document.body)]
    looked_at = {document.file for document in ours} | {finding.file for finding in found}
    kinds = {name: dict.fromkeys(str(it.body["kind"]) for it in sound if it.file == name) for name, _ in texts}
    passed_over = {name: tuple(seen) for name, seen in kinds.items() if name not in looked_at}
    return Linted(tuple(dict.fromkeys(found)), len(ours), passed_over)


def _read(file: Path) -> str:
    standard = str(file) == "-"
    try:
        return typer.get_text_stream("stdin").read() if standard else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        where = "standard input" if standard else file
        raise typer.BadParameter(f"{where}: {cause(error)}") from error


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
        yield Finding(name, line, f"not a resource: {_GIVE}")
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
    elif not all(isinstance(document.body.get(key), str) for key in ("apiVersion", "kind")):
        yield document.finding((), f"not a resource: {_GIVE}")
    elif kind_of(document.body) is None:
        yield from _nearly_ours(document, version, kind)


def _nearly_ours(document: Document, version: str, kind: str) -> Iterator[Finding]:
    lowered = {known.lower(): known for known in _KINDS}
    for match in get_close_matches(kind.lower(), lowered, n=1, cutoff=_NEARLY):
        yield document.finding(("kind",), f"kind: {version} {kind}; did you mean {API_VERSION} {lowered[match]}?")
        return
    group = version.partition("/")[0]
    if group.partition(".")[0] == GROUP.partition(".")[0] or get_close_matches(group, [GROUP], cutoff=_NEARLY_GROUP):
        yield document.finding(("apiVersion",), f"apiVersion: {version}; did you mean {API_VERSION}?")


def _schema_errors(document: Document) -> Iterator[Finding]:
    if kind_of(document.body) is not None:
        for violation in violations(document.body):
            yield document.finding(violation.path, str(violation))


def _repeated(documents: Sequence[Document]) -> Iterator[Finding]:
    """Objects that are there twice: which of them counts is a matter of which is applied last."""
    first = dict[tuple[str, str, str], Document]()
    for document in documents:
        kind, metadata = kind_of(document.body), document.body.get("metadata", {})
        if kind is None or not metadata.get("name"):
            continue
        namespace = str(metadata.get("namespace", "default")) if kind.namespaced else ""
        identity = (kind.kind, namespace, metadata["name"])
        before = first.setdefault(identity, document)
        if before is not document:
            where = f"{before.file}:{mark_of(before.node, ('metadata', 'name')).line + 1}"
            message = f"metadata.name: {kind.kind} {metadata['name']} is there twice, first in {where}: remove one"
            yield document.finding(("metadata", "name"), message)


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
    """A profile of a class that nobody has is never used, a limit to one lets nothing run; no cluster says so."""
    profiles = [(it, ("spec", "accelerator"), it.body["spec"]["accelerator"]) for it in _of_kind(documents, _PROFILE)]
    limits = [
        (fleet, ("spec", "namespaces", index, "accelerators", place), name)
        for fleet in _of_kind(documents, "TokenFleet")
        for index, limit in enumerate(stored(fleet.body)["spec"].get("namespaces", ()))
        for place, name in enumerate(limit.get("accelerators", ()))
    ]
    for document, path, name in (*profiles, *limits):
        if name not in known:
            yield document.finding(path, str(Violation(path, _no_class(name, known))))


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
    own = {name: CapacityProfileSpec.model_validate(spec) for name, spec in _specs(documents, _PROFILE)}
    known = {**capacity_profiles(), **own}
    return tuple(Profile(name=name, spec=spec) for name, spec in sorted(known.items()))


def _specs(documents: Sequence[Document], kind: str) -> Iterator[tuple[str, Json]]:
    for document in _of_kind(documents, kind):
        yield _key(document).name, stored(document.body)["spec"]


def _of_kind(documents: Sequence[Document], kind: str) -> Iterator[Document]:
    return (document for document in documents if kind_of(document.body) and document.body["kind"] == kind)
