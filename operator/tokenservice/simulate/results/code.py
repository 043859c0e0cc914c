"""Which code a result rests on, definition by definition: what else changes leaves the result as it is.

From the definitions that a run begins with, names are followed through functions, classes and imports of this package.
Every definition that can be reached counts by its syntax tree, without comments and docstrings. A name counts wherever
it stands, annotations included: too much rather than too little. A field of a resource counts once anything that is
reached says its name, in Python or in JSON: a field that nobody asks for changes no result.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

PACKAGE = "tokenservice"
FOLDER = Path(__file__).parents[2]

Name = tuple[str, str]
"""A module and a definition in it; `""` stands for what the module does besides defining, `Class.field` for a field."""

RESOURCE = "ApiModel"
"""The base class of what has fields that count one by one."""

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def code_digest(
    begin: Iterable[Name], *, without: frozenset[Name] = frozenset(), package: str = PACKAGE, folder: Path = FOLDER
) -> str:
    """Of all that is reached from `begin`; what is in `without` is not followed and does not count.

    Raises KeyError for a definition that is not there.
    """
    found = sorted(reached(begin, without, package, folder).items())
    return hashlib.sha256(repr(found).encode()).hexdigest()


def reached(
    begin: Iterable[Name], without: frozenset[Name], package: str = PACKAGE, folder: Path = FOLDER
) -> dict[Name, str]:
    """The definitions, each with the digest of its own text."""
    todo, found = list(begin), dict[Name, str]()
    said, unsaid = set[str](), dict[str, list[Name]]()
    while todo:
        name = todo.pop()
        if name in found or name in without:
            continue
        module = _module(package, folder, name[0])
        if name[1] in module.imports:
            todo.append(module.imports[name[1]])
            found[name] = ""
            continue
        found[name] = module.digests[name[1]]
        todo += [(name[0], ""), *module.uses[name[1]]]
        for word in module.words[name[1]] - said:
            said.add(word)
            todo += unsaid.pop(word, [])
        for one in module.fields.get(name[1], ()):
            waiting = todo if one in said else unsaid.setdefault(one, [])
            waiting.append((name[0], f"{name[1]}.{one}"))
    return found


@dataclass(slots=True)
class _Module:
    """A module's definitions: their digests, the names that each uses, the words in each; the fields of resources."""

    imports: dict[str, Name] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    uses: dict[str, list[Name]] = field(default_factory=dict)
    words: dict[str, frozenset[str]] = field(default_factory=dict)
    fields: dict[str, list[str]] = field(default_factory=dict)


@cache
def _module(package: str, folder: Path, name: str) -> _Module:
    file = _file(package, folder, name)
    assert file is not None, f"{name} is no module of {package}"
    tree = _Bare().visit(ast.parse(file.read_text(encoding="utf-8")))
    module = _Module(imports=dict(_imports(tree, package, folder)))
    parts: dict[str, list[ast.stmt]] = {"": []}
    for statement in tree.body:
        for one in _names(statement):
            parts.setdefault(one, []).append(statement)
        for owner, one, declared in _taken_fields(statement):
            parts[f"{owner}.{one}"] = [declared]
            module.fields.setdefault(owner, []).append(one)
    for one, statements in parts.items():
        text = "\n".join(ast.dump(statement) for statement in statements)
        module.digests[one] = hashlib.sha256(text.encode()).hexdigest()
        module.uses[one] = list(_used(statements, name, module.imports, parts, package, folder))
        module.words[one] = frozenset(word for statement in statements for word in _words(statement))
    return module


def _taken_fields(statement: ast.stmt) -> Iterator[tuple[str, str, ast.stmt]]:
    """Takes the fields out of a resource's class, as (class, field, text): they are definitions of their own."""
    if not isinstance(statement, ast.ClassDef) or RESOURCE not in {ast.unparse(base) for base in statement.bases}:
        return
    for one in list(statement.body):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and "ClassVar" not in ast.dump(one):
            statement.body.remove(one)
            yield statement.name, one.target.id, one


def _words(statement: ast.stmt) -> Iterator[str]:
    """Whatever could name a field: names, attributes, arguments, and the words of texts, as JSON writes them too."""
    for node in ast.walk(statement):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.keyword(arg=str(word)):
                yield word
            case ast.Constant(value=str(text)):
                for word in re.findall(r"\w+", text):
                    yield re.sub(r"(?<=[a-z0-9])[A-Z]", lambda it: f"_{it[0].lower()}", word)


def _file(package: str, folder: Path, name: str) -> Path | None:
    below = folder.joinpath(*name.removeprefix(package).split("."))
    return next((file for file in (below.with_suffix(".py"), below / "__init__.py") if file.is_file()), None)


def _imports(tree: ast.AST, package: str, folder: Path) -> Iterator[tuple[str, Name]]:
    """Names bound by imports from this package, wherever they stand: modules, and definitions in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = _file(package, folder, inner) is not None
                yield alias.asname or alias.name, (inner, "") if is_module else (node.module or "", alias.name)


def _names(statement: ast.stmt) -> tuple[str, ...]:
    """What a statement at the top of a module defines; imports count where they are used."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return ()
    if isinstance(statement, _DEFINITIONS):
        return (statement.name,)
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return tuple(it.id for target in targets if target for it in ast.walk(target) if isinstance(it, ast.Name)) or ("",)


def _used(
    statements: list[ast.stmt],
    name: str,
    imports: dict[str, Name],
    own: dict[str, list[ast.stmt]],
    package: str,
    folder: Path,
) -> Iterator[Name]:
    """Names of this package in these statements; of a module what is taken from it, or all where it stands alone."""
    nodes = [node for statement in statements for node in ast.walk(statement)]
    taken_from = {node.value for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in imports:
            module, inside = imports[node.value.id]
            if inside:
                yield module, inside
            elif _defines(_module(package, folder, module), node.attr):
                yield module, node.attr
        elif isinstance(node, ast.Name) and node not in taken_from and node.id in imports:
            module, inside = imports[node.id]
            yield from [(module, inside)] if inside else everything(module, package=package, folder=folder)
        elif isinstance(node, ast.Name) and node.id in own:
            yield name, node.id


def _defines(module: _Module, name: str) -> bool:
    return name in module.digests or name in module.imports


def everything(module: str, *, package: str = PACKAGE, folder: Path = FOLDER) -> tuple[Name, ...]:
    """All definitions of a module."""
    return tuple((module, one) for one in _module(package, folder, module).digests)


class _Bare(ast.NodeTransformer):
    """Takes away what only people read: texts that stand alone."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        return node
