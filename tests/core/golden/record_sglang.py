"""Records the command line of an SGLang release, from its published wheel and without importing it.

    pip download --no-deps sglang==0.5.18
    python tests/core/golden/record_sglang.py sglang-0.5.18-*.whl > tests/core/golden/sglang-0.5.18.json

`sglang/srt/server_args.py` is read as a syntax tree, by the rules of `add_cli_args_from_dataclass` beside it: a field
`name: A[TYPE, "help"]` or `A[TYPE, Arg(…)]` is the flag `--name`, bool takes no value, List takes several; and by its
`add_argument` calls. Choices are recorded where they are literal, or a list of the module's; the algorithms of
speculation, which any string names to the parser, from their enumeration.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

SERVER_ARGS = "sglang/srt/server_args.py"
ALGORITHMS = "sglang/srt/speculative/spec_info.py"

Flag = dict[str, object]


def recorded(wheel: Path) -> dict[str, object]:
    """Origin, version and flags of a wheel."""
    files = zipfile.ZipFile(wheel)
    source = files.read(SERVER_ARGS)
    found = flags(source.decode())
    found["--speculative-algorithm"]["choices"] = algorithms(files.read(ALGORITHMS).decode())
    return {
        "engine": "SGLang",
        "version": wheel.name.split("-")[1],
        "origin": f"{wheel.name}, {SERVER_ARGS}, sha256:{hashlib.sha256(source).hexdigest()}",
        "flags": dict(sorted(found.items())),
    }


def algorithms(source: str) -> list[str]:
    """The members of the enumeration SpeculativeAlgorithm."""
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    (kinds,) = (node for node in classes if node.name == "SpeculativeAlgorithm")
    return [
        target.id
        for node in kinds.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    ]


def flags(source: str) -> dict[str, Flag]:
    """Every flag by name: `values` (none, one, many, maybe), `choices` and `deprecated` where there are any."""
    module = ast.parse(source)
    lists = _lists(module)
    (arguments,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "ServerArgs")
    fields = (node for node in arguments.body if isinstance(node, ast.AnnAssign))
    found = dict(pair for field in fields for pair in _of_field(field, lists))
    (adder,) = (n for n in arguments.body if isinstance(n, ast.FunctionDef) and n.name == "add_cli_args")
    calls = (node for node in ast.walk(adder) if isinstance(node, ast.Call) and _name(node.func) == "add_argument")
    return found | dict(pair for call in calls for pair in _of_call(call, lists))


def _lists(module: ast.Module) -> dict[str, list[object]]:
    """The module's constants that are lists of words."""
    found: dict[str, list[object]] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = _choices(node.value, found)
            if value is not None:
                found[node.targets[0].id] = value
    return found


def _of_field(field: ast.AnnAssign, lists: dict[str, list[object]]) -> Iterator[tuple[str, Flag]]:
    annotation = field.annotation
    if not (isinstance(annotation, ast.Subscript) and _name(annotation.value) in ("A", "Annotated")):
        return
    assert isinstance(annotation.slice, ast.Tuple)
    assert isinstance(field.target, ast.Name)
    kind, *extras = annotation.slice.elts
    said = next((extra for extra in extras if _name(getattr(extra, "func", extra)) != "NS"), None)
    if said is None:
        return
    given = {word.arg: word.value for word in said.keywords} if isinstance(said, ast.Call) else {"help": said}
    if "no_cli" in given:
        return
    flag = _flag(
        _values(kind, given), _choices(given.get("choices"), lists) or _literal(kind), _text(given.get("help"))
    )
    named = given.get("cli_name")
    aliases = given.get("aliases")
    primary = _text(named) if named is not None else f"--{field.target.id.replace('_', '-')}"
    for name in [primary, *(_choices(aliases, lists) or [])]:
        yield str(name), flag
        if _name(given.get("action")) == "BooleanOptionalAction":
            yield str(name).replace("--", "--no-", 1), flag


def _of_call(call: ast.Call, lists: dict[str, list[object]]) -> Iterator[tuple[str, Flag]]:
    given = {word.arg: word.value for word in call.keywords}
    action, text = _name(given.get("action")), _text(given.get("help"))
    none = action in ("DeprecatedAction", "DeprecatedStoreTrueAction", "DeprecatedStoreConstAction") or (
        _text(given.get("action")) == "store_true"
    )
    flag = _flag("none" if none else _values(None, given), _choices(given.get("choices"), lists), text)
    if action.startswith("Deprecated"):
        new = _text(given.get("new_flag"))
        flag["deprecated"] = f"use {new}" if new else text or "deprecated"
        flag |= {"removed": True} if "error_message" in given else {}
    for name in call.args:
        yield _text(name), flag


def _flag(values: str, choices: list[object] | None, text: str) -> Flag:
    flag: Flag = {"values": values}
    flag |= {"choices": choices} if choices else {}
    return flag | ({"deprecated": text} if re.match(r"\W*deprecated", text, re.IGNORECASE) else {})


def _values(kind: ast.expr | None, given: dict[str | None, ast.expr]) -> str:
    """How many values follow."""
    inner = kind
    if isinstance(inner, ast.Subscript) and _name(inner.value) == "Optional":
        inner = inner.slice
    if _name(given.get("action")) == "BooleanOptionalAction":
        return "none"
    nargs = _text(given.get("nargs")) or _text(_keyword(given.get("action_kwargs"), "nargs"))
    if nargs:
        return "maybe" if nargs == "?" else "many"
    if "type_parser" not in given and isinstance(inner, ast.Subscript) and _name(inner.value).lower() == "list":
        return "many"
    return "none" if _name(inner) == "bool" and "action" not in given else "one"


def _literal(kind: ast.expr) -> list[object] | None:
    subscripts = (node for node in ast.walk(kind) if isinstance(node, ast.Subscript) and _name(node.value) == "Literal")
    found = next(subscripts, None)
    if found is None:
        return None
    elements = found.slice.elts if isinstance(found.slice, ast.Tuple) else [found.slice]
    return [element.value for element in elements if isinstance(element, ast.Constant)]


def _choices(node: ast.expr | None, lists: dict[str, list[object]]) -> list[object] | None:
    """The words of a literal list, or of a list of the module's; None where they are made at run time."""
    if isinstance(node, ast.Name):
        return lists.get(node.id)
    if not isinstance(node, ast.List | ast.Tuple):
        return None
    constants = [element.value for element in node.elts if isinstance(element, ast.Constant)]
    return list(constants) if len(constants) == len(node.elts) else None


def _keyword(node: ast.expr | None, name: str) -> ast.expr | None:
    if not isinstance(node, ast.Dict):
        return None
    return next((v for k, v in zip(node.keys, node.values, strict=True) if k is not None and _text(k) == name), None)


def _name(node: object) -> str:
    """The last name of `a.b.c`, or nothing."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _text(node: object) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


if __name__ == "__main__":
    json.dump(recorded(Path(sys.argv[1])), sys.stdout, indent=1)
    print()
