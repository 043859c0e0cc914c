"""Records SGLang's command line from its published wheel, without importing it (its parser needs torch and a GPU's
libraries): `pip download --no-deps sglang==0.5.18 && python -m tests.core.golden.record_sglang sglang-0.5.18-*.whl`.

Since 0.5.18 each field of the dataclass `ServerArgs` becomes a flag, by the rules of its `arg_groups/arg_utils.py`;
deprecated flags and those with choices made at run time are added by `add_cli_args`. One line a flag, tab-separated:
names (the first is the flag itself), kind (switch, value or list), choices, and what to use instead where the flag is
deprecated; empty where there is none.
"""

from __future__ import annotations

import ast
import re
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = "sglang/srt/server_args.py"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag of the parser."""

    names: tuple[str, ...]
    kind: str
    choices: tuple[str, ...] = ()
    instead: str = ""

    @property
    def line(self) -> str:
        return "\t".join((",".join(self.names), self.kind, ",".join(self.choices), self.instead))


def read(text: str) -> list[Flag]:
    """The flags of a golden file."""
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return [Flag(tuple(names.split(",")), kind, tuple(filter(None, choices.split(","))), instead)
            for names, kind, choices, instead in rows]  # fmt: skip


def flags(source: str) -> list[Flag]:
    """The flags in the text of `server_args.py`, by name."""
    module = ast.parse(source)
    constants = dict(_constants(module))
    arguments = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "ServerArgs")
    by_name = {flag.names[0]: flag for flag in (*_fields(arguments, constants), *_added(arguments, constants))}
    return [by_name[name] for name in sorted(by_name)]


def _constants(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _fields(arguments: ast.ClassDef, constants: dict[str, ast.expr]) -> Iterator[Flag]:
    """Fields annotated `A[TYPE, "help" or Arg(…), …]`."""
    for node in arguments.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Subscript)):
            continue
        shape = node.annotation.slice
        if not (isinstance(node.target, ast.Name) and isinstance(shape, ast.Tuple)):
            continue
        bare = next((part for part in shape.elts[1:] if isinstance(part, ast.Constant)), ast.Constant(""))
        given = {"help": bare} | _keywords(next((part for part in shape.elts if _is_call(part, "Arg")), None))
        if "no_cli" not in given:
            yield _field(node.target.id, ast.unparse(shape.elts[0]), given, constants)


def _field(name: str, kind: str, given: dict[str, ast.expr], constants: dict[str, ast.expr]) -> Flag:
    literal = re.fullmatch(r"(?:Optional\[)?Literal\[(.*?)\]\]?", kind)
    listed = re.fullmatch(r"(?:Optional\[)?[Ll]ist\[.*", kind) and "type_parser" not in given
    several = "nargs" in given or "nargs" in ast.unparse(given.get("action_kwargs", ast.Constant("")))
    switch = kind in ("bool", "Optional[bool]") and "action" not in given
    own = ast.literal_eval(given["cli_name"]) if "cli_name" in given else "--" + name.replace("_", "-")
    aliases = ast.literal_eval(given["aliases"]) if "aliases" in given else []
    choices = tuple(ast.literal_eval(f"[{literal[1]}]")) if literal else _choices(given.get("choices"), constants)
    help_text = ast.unparse(given["help"]) if "help" in given else ""
    return Flag(
        names=(own, *aliases),
        kind="list" if listed or several else "switch" if switch else "value",
        choices=tuple(str(choice) for choice in choices),
        instead="see its help" if re.search(r"deprecated", help_text, re.IGNORECASE) else "",
    )


def _added(arguments: ast.ClassDef, constants: dict[str, ast.expr]) -> Iterator[Flag]:
    """`parser.add_argument(…)` in `add_cli_args`."""
    method = next(n for n in arguments.body if isinstance(n, ast.FunctionDef) and n.name == "add_cli_args")
    for call in ast.walk(method):
        if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "parser.add_argument"):
            continue
        given = _keywords(call)
        action = ast.unparse(given["action"]).strip("'") if "action" in given else ""
        deprecated = action.startswith("Deprecated") or "eprecated" in ast.unparse(given.get("help", ast.Constant("")))
        switch = action in ("store_true", "DeprecatedAction", "DeprecatedStoreTrueAction", "DeprecatedStoreConstAction")
        new = ast.literal_eval(given["new_flag"]) if "new_flag" in given else "see its help"
        yield Flag(
            names=tuple(ast.literal_eval(name) for name in call.args),
            kind="switch" if switch else "list" if "nargs" in given else "value",
            choices=tuple(str(choice) for choice in _choices(given.get("choices"), constants)),
            instead=new if deprecated else "",
        )


def _choices(node: ast.expr | None, constants: dict[str, ast.expr]) -> tuple[object, ...]:
    """Literal choices; none where they are made at run time."""
    while isinstance(node, ast.Name):
        node = constants.get(node.id)
    try:
        return tuple(sorted(ast.literal_eval(node), key=str)) if node is not None else ()
    except ValueError:
        return ()


def _keywords(node: ast.expr | None) -> dict[str, ast.expr]:
    return {word.arg: word.value for word in node.keywords if word.arg} if isinstance(node, ast.Call) else {}


def _is_call(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def main() -> None:
    """Writes the golden file beside this one."""
    wheel = Path(sys.argv[1])
    version = wheel.name.split("-")[1]
    with zipfile.ZipFile(wheel) as packed:
        found = flags(packed.read(SOURCE).decode())
    golden = Path(__file__).parent / f"sglang-{version}-flags.tsv"
    golden.write_text("".join(f"{flag.line}\n" for flag in found))
    print(f"{golden.name}: {len(found)} flags, {sum(bool(flag.instead) for flag in found)} of them deprecated")


if __name__ == "__main__":
    main()
