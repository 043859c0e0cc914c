"""Reads what scenarios name: request files, rate curves and quantiles. Errors name file, line and column."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf, isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tokenservice.errors import InputError, cause
from tokenservice.simulate.traffic import LONGEST_SECONDS, MOST_TOKENS, Floats, Ints

_PLAIN = ("timestamp_s", "input_tokens", "output_tokens")
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MOONCAKE = ("timestamp", "input_length", "output_length", "hash_ids")
_REQUEST_FORMATS = (
    f"{','.join(_PLAIN)}, {','.join(_AZURE)} (Azure), or JSON lines with {', '.join(_MOONCAKE)} (Mooncake)"
)

Blocks = tuple[Ints, ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """n requests in order of time, the first at 0 s. `blocks` names each prompt's content in blocks, if it is known."""

    at_s: Floats
    input_tokens: Ints
    output_tokens: Ints
    blocks: Blocks | None = None


@dataclass(frozen=True, slots=True)
class RateTable:
    """Rates per minute at times in seconds, of requests or of tokens."""

    t_s: Floats
    per_minute: Floats
    of_tokens: bool


def read_requests(path: Path) -> Trace:
    """A request file in any of the three formats, recognised by its first line. Raises InputError."""
    with _opened(path) as lines:
        first = next(lines, "")
    if first.lstrip().startswith("{"):
        return _mooncake(path)
    header = _header(path)
    if set(_AZURE) <= set(header):
        return _azure(path)
    if set(_PLAIN) <= set(header):
        columns, _ = _numbers(path, {_PLAIN[0]: (-inf, inf), **dict.fromkeys(_PLAIN[1:], _TOKENS)})
        return _sorted(path, columns[_PLAIN[0]], columns[_PLAIN[1]], columns[_PLAIN[2]])
    raise InputError(f"{path}:1: header: {first.strip()!r} is no format known; known are {_REQUEST_FORMATS}")


def read_rates(path: Path) -> RateTable:
    """`t_s` and one of `requests_per_minute` (or `rpm`) and `tokens_per_minute`. Raises InputError."""
    header = _header(path)
    of_tokens = "tokens_per_minute" in header
    if of_tokens and {"requests_per_minute", "rpm"} & set(header):
        raise InputError(f"{path}:1: tokens_per_minute: there are requests per minute, too; leave one of the two out")
    rate = ("tokens_per_minute",) if of_tokens else ("requests_per_minute", "rpm")
    columns, lines = _numbers(path, {"t_s": (0.0, LONGEST_SECONDS), "rate": (0.0, inf)}, {"rate": rate})
    _check_order(path, "t_s", columns["t_s"], lines)
    if columns["t_s"][0] != 0:
        begins = f"begins at {columns['t_s'][0]:g}; give seconds from the start, the first 0"
        raise InputError(f"{path}:{lines[0]}: t_s: {begins}")
    return RateTable(columns["t_s"], columns["rate"], of_tokens)


def read_quantiles(path: Path) -> tuple[Floats, Floats]:
    """`cdf_pct,tokens` as share (0 to 1) and tokens. Raises InputError."""
    columns, lines = _numbers(path, {"cdf_pct": (0.0, inf), "tokens": _TOKENS})
    for name in columns:
        _check_order(path, name, columns[name], lines)
    percent = columns["cdf_pct"]
    if percent[0] != 0 or percent[-1] != 100:
        line = lines[0] if percent[0] != 0 else lines[-1]
        raise InputError(
            f"{path}:{line}: cdf_pct: runs from {percent[0]:g} to {percent[-1]:g}; give quantiles from 0 to 100"
        )
    return percent / 100, columns["tokens"]


# --- Request formats -----------------------------------------------------------------------------------------------


def _azure(path: Path) -> Trace:
    stamps = [_stamp(path, line, row[_AZURE[0]]) for line, row in _rows(path, {name: (name,) for name in _AZURE})]
    columns, _ = _numbers(path, dict.fromkeys(_AZURE[1:], _TOKENS))
    return _sorted(path, np.array(stamps), columns[_AZURE[1]], columns[_AZURE[2]])


def _stamp(path: Path, line: int, text: str) -> float:
    try:
        found = datetime.fromisoformat(text.strip().removesuffix("UTC").rstrip())
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InputError(f"{path}:{line}: {_AZURE[0]}: {text!r} is not a date and time") from None


def _mooncake(path: Path) -> Trace:
    rows, names = [], dict[Any, int]()
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                rows.append(_mooncake_row(path, number, line, names))
    at, inputs, outputs, blocks = zip(*rows, strict=True)
    return _sorted(path, np.array(at) / 1000, np.array(inputs), np.array(outputs), blocks)


def _mooncake_row(path: Path, line: int, text: str, names: dict[Any, int]) -> tuple[float, float, float, Ints]:
    """`names` numbers the blocks: some exporters hash them to more digits than an array holds."""
    try:
        row: dict[str, Any] = json.loads(text)
        blocks = np.array([names.setdefault(one, len(names)) for one in row["hash_ids"]], dtype=np.int32)
        at, inputs, outputs = (str(row[name]) for name in _MOONCAKE[:3])
    except KeyError as error:
        raise InputError(
            f"{path}:{line}: {error.args[0]}: is missing; each line needs {', '.join(_MOONCAKE)}"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}:{line}: {error}; each line needs {', '.join(_MOONCAKE)}") from None
    return (
        _number(path, line, _MOONCAKE[0], at, (-inf, inf)),
        _number(path, line, _MOONCAKE[1], inputs, _TOKENS),
        _number(path, line, _MOONCAKE[2], outputs, _TOKENS),
        blocks,
    )


def _sorted(path: Path, at: Floats, inputs: Any, outputs: Any, blocks: Sequence[Ints] | None = None) -> Trace:
    """In order of time from 0; a request without a token, as traces have some, counts one."""
    covers = float(at.max() - at.min())
    if covers > LONGEST_SECONDS:
        raise InputError(f"{path}: times cover {covers:g} s, more than three years: give them in seconds")
    order = np.argsort(at, kind="stable")
    return Trace(
        (at - at.min())[order],
        np.maximum(inputs, 1).astype(np.int32)[order],
        np.maximum(outputs, 1).astype(np.int32)[order],
        None if blocks is None else tuple(blocks[number] for number in order.tolist()),
    )


# --- Tables --------------------------------------------------------------------------------------------------------


Bounds = tuple[float, float]
"""The least and the most that a number may be."""

_TOKENS: Bounds = (0.0, MOST_TOKENS)


def _numbers(
    path: Path, columns: Mapping[str, Bounds], called: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> tuple[dict[str, Floats], list[int]]:
    """Column -> numbers, and the line of each row; `called` gives the names by which a column may go instead."""
    found: dict[str, list[float]] = {name: [] for name in columns}
    lines = []
    for line, row in _rows(path, {name: called.get(name, (name,)) for name in columns}):
        lines.append(line)
        for name, values in found.items():
            values.append(_number(path, line, name, row[name], columns[name]))
    return {name: np.array(values) for name, values in found.items()}, lines


def _number(path: Path, line: int, column: str, text: str, bounds: Bounds) -> float:
    least, most = bounds
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value) or not least <= value <= most:
        end = f"to {most:g}" if isfinite(most) else "on"
        wanted = f"a number from {least:g} {end}" if isfinite(least) else "a number"
        raise InputError(f"{path}:{line}: {column}: must be {wanted}, not {text!r}")
    return value


def _rows(path: Path, columns: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and named cells of each row; there is at least one."""
    header = _header(path)
    places = {name: _place(path, header, names) for name, names in columns.items()}
    empty = True
    with _opened(path) as lines:
        reader = csv.reader(lines)
        next(reader, None)
        while True:
            line = reader.line_num + 1  # where the row begins: a cell in quotes may hold lines
            cells = next(reader, None)
            if cells is None:
                break
            if not "".join(cells).strip():
                continue
            if len(cells) != len(header):
                raise InputError(f"{path}:{line}: has {len(cells)} columns, the header {len(header)}")
            empty = False
            yield line, {name: cells[place] for name, place in places.items()}
    if empty:
        raise InputError(f"{path}:1: there is nothing below the header")


def _header(path: Path) -> tuple[str, ...]:
    with _opened(path) as lines:
        return tuple(name.strip() for name in next(csv.reader(lines), []))


def _place(path: Path, header: tuple[str, ...], names: tuple[str, ...]) -> int:
    found = next((name for name in names if name in header), None)
    if found is None:
        raise InputError(
            f"{path}:1: {' or '.join(names)}: there is no such column; found {', '.join(header) or 'none'}"
        )
    return header.index(found)


def _check_order(path: Path, column: str, values: Floats, lines: Sequence[int]) -> None:
    """Raises InputError where the values fall, or are fewer than two."""
    falling = np.flatnonzero(np.diff(values) < 0)
    if len(values) < 2 or len(falling):
        line = lines[int(falling[0]) + 1] if len(falling) else lines[0]
        raise InputError(f"{path}:{line}: {column}: needs two values or more that never fall")


class _opened:  # noqa: N801 - reads as the verb that it is
    """Lines of a file, its errors in our words."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Iterator[str]:
        try:
            self._file = self._path.open(encoding="utf-8-sig", newline="")
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read: {cause(error)}") from None
        return iter(self._file)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._file.close()
        if isinstance(error, UnicodeDecodeError | csv.Error):
            raise InputError(f"{self._path}: is no text in UTF-8 ({error}); unpack or convert it first") from None
