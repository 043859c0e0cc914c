"""Keeps each run's result in a file of its own, by what the result rests on: scenario, data, code and choice.

A run that was kept is found again as long as nothing of that changed; a broken file counts as none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from tokenservice import catalogue
from tokenservice.simulate.oracle import Foresight
from tokenservice.simulate.policies import POLICIES
from tokenservice.simulate.result import Result
from tokenservice.simulate.results.code import FOLDER, code_digest
from tokenservice.simulate.results.unit import Outcome, Search, Unit, rests_on
from tokenservice.simulate.scenario_nodes import scenario_node
from tokenservice.yaml_lines import constructed

Json = Any

_WORDS = ("name", "description")
"""Fields of a scenario that nothing rests on."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A result, and the processor time that it took."""

    outcome: Outcome
    seconds: float


_RUN, _SEARCH = TypeAdapter(Result), TypeAdapter(Foresight)


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of results."""

    folder: Path

    def get(self, unit: Unit) -> Kept | None:
        """What was kept for it, if anything."""
        try:
            read = json.loads(self._file(unit).read_text(encoding="utf-8"))
            adapter: TypeAdapter[Any] = _SEARCH if isinstance(unit, Search) else _RUN
            return Kept(adapter.validate_python(read["outcome"]), read["seconds"])
        except (OSError, ValueError, KeyError, ValidationError):
            return None

    def put(self, unit: Unit, kept: Kept) -> None:
        """Keeps it; a process that is stopped meanwhile leaves no half file under the name."""
        file = self._file(unit)
        file.parent.mkdir(parents=True, exist_ok=True)
        adapter: TypeAdapter[Any] = _SEARCH if isinstance(unit, Search) else _RUN
        written = {"seconds": kept.seconds, "outcome": adapter.dump_python(kept.outcome, mode="json")}
        half = file.with_suffix(f".{os.getpid()}")
        half.write_text(json.dumps(written), encoding="utf-8")
        half.replace(file)

    def _file(self, unit: Unit) -> Path:
        told = [unit.policy, unit.service] if isinstance(unit, Search) else [unit.policy, str(unit.choice)]
        return self.folder / unit.scenario.stem / f"{'-'.join(told)}-{key(unit)[:20]}.json"


def key(unit: Unit, *, package: Path = FOLDER) -> str:
    """Of all that the unit's result rests on; `package` is the folder with its code."""
    begin, without = rests_on(unit)
    code = code_digest(begin, without=without, folder=package)
    parts = [numbers(), figures(unit.scenario), code, *_chosen(unit)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _chosen(unit: Unit) -> list[Json]:
    if isinstance(unit, Search):
        return [unit.policy, unit.service, unit.near]
    label = POLICIES[unit.policy].sweep[unit.choice].label if unit.policy in POLICIES else ""
    return [unit.policy, label, unit.seed, unit.cold_start_seconds]


@cache
def numbers() -> str:
    """What every run rests on beside code: the catalogue, and the library that draws the requests."""
    files = sorted(Path(catalogue.__file__).parent.glob("*.yaml"))
    return _digest(np.__version__, *(json.dumps(_parsed(file)) for file in files))


def _parsed(file: Path) -> Json:
    import yaml

    return list(yaml.safe_load_all(file.read_text(encoding="utf-8")))


@cache
def figures(scenario: Path) -> str:
    """Of a scenario with what it extends, and of the contents of the data that it names."""
    body: dict[str, Json] = {
        name: it for name, it in constructed(scenario_node(scenario)).items() if name not in _WORDS
    }
    data = [hashlib.sha256(file.read_bytes()).hexdigest() for file in _files(body)]
    return _digest(json.dumps(_without_files(body), sort_keys=True), *data)


def _files(node: Json) -> Iterator[Path]:
    """Data files that exist, in the order in which they are named; those that do not are told when the run begins."""
    for name, value in _pairs(node):
        if name == "file" and isinstance(value, str):
            if Path(value).is_file():
                yield Path(value)
        else:
            yield from _files(value)


def _without_files(node: Json) -> Json:
    """Where a file lies changes nothing."""
    if isinstance(node, dict):
        return {name: "" if name == "file" else _without_files(value) for name, value in node.items()}
    return [_without_files(value) for value in node] if isinstance(node, list) else node


def _pairs(node: Json) -> Iterator[tuple[str, Json]]:
    if isinstance(node, dict):
        yield from node.items()
    elif isinstance(node, list):
        yield from (("", value) for value in node)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
