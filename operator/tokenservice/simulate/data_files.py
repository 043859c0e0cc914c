"""Reads what scenarios name: request files, rate curves and quantiles. Errors name file, line and column."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from tokenservice.errors import InputError
from tokenservice.simulate.traffic import Floats, Ints

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
        columns = _numbers(path, {name: (name,) for name in _PLAIN}, at_least={_PLAIN[0]: -inf})
        return _sorted(columns[_PLAIN[0]], columns[_PLAIN[1]], columns[_PLAIN[2]])
    raise InputError(f"{path}:1: header: {first.strip()!r} is no format known; known are {_REQUEST_FORMATS}")


def read_rates(path: Path) -> RateTable:
    """`t_s` and one of `requests_per_minute` (or `rpm`) and `tokens_per_minute`. Raises InputError."""
    header = _header(path)
    of_tokens = "tokens_per_minute" in header
    if of_tokens and {"requests_per_minute", "rpm"} & set(header):
        raise InputError(f"{path}:1: tokens_per_minute: there are requests per minute, too; leave one of the two out")
    rate = ("tokens_per_minute",) if of_tokens else ("requests_per_minute", "rpm")
    columns = _numbers(path, {"t_s": ("t_s",), "rate": rate}, at_least={"t_s": 0.0, "rate": 0.0})
    _check_order(path, "t_s", columns["t_s"])
    if columns["t_s"][0] != 0:
        raise InputError(f"{path}:2: t_s: begins at {columns['t_s'][0]:g}; give seconds from the start, the first 0")
    return RateTable(columns["t_s"], columns["rate"], of_tokens)


def read_quantiles(path: Path) -> tuple[Floats, Floats]:
    """`cdf_pct,tokens` as share (0 to 1) and tokens. Raises InputError."""
    columns = _numbers(path, {"cdf_pct": ("cdf_pct",), "tokens": ("tokens",)}, at_least={"cdf_pct": 0.0, "tokens": 0.0})
    for name in columns:
        _check_order(path, name, columns[name])
    percent = columns["cdf_pct"]
    if percent[0] != 0 or percent[-1] != 100:
        line = 2 if percent[0] != 0 else len(percent) + 1
        raise InputError(
            f"{path}:{line}: cdf_pct: runs from {percent[0]:g} to {percent[-1]:g}; give quantiles from 0 to 100"
        )
    return percent / 100, columns["tokens"]


# --- Request formats -----------------------------------------------------------------------------------------------


def _azure(path: Path) -> Trace:
    stamps = [_stamp(path, line, row[_AZURE[0]]) for line, row in _rows(path, {name: (name,) for name in _AZURE})]
    columns = _numbers(path, {name: (name,) for name in _AZURE[1:]}, at_least={})
    return _sorted(np.array(stamps), columns[_AZURE[1]], columns[_AZURE[2]])


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
    return _sorted(np.array(at) / 1000, np.array(inputs), np.array(outputs), blocks)


def _mooncake_row(path: Path, line: int, text: str, names: dict[Any, int]) -> tuple[float, int, int, Ints]:
    """`names` numbers the blocks: some exporters hash them to more digits than an array holds."""
    try:
        row: dict[str, Any] = json.loads(text)
        blocks = np.array([names.setdefault(one, len(names)) for one in row["hash_ids"]], dtype=np.int32)
        return float(row["timestamp"]), max(int(row["input_length"]), 1), max(int(row["output_length"]), 1), blocks
    except KeyError as error:
        raise InputError(
            f"{path}:{line}: {error.args[0]}: is missing; each line needs {', '.join(_MOONCAKE)}"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}:{line}: {error}; each line needs {', '.join(_MOONCAKE)}") from None


def _sorted(at: Floats, inputs: Any, outputs: Any, blocks: Sequence[Ints] | None = None) -> Trace:
    """In order of time from 0; a request without a token, as traces have some, counts one."""
    order = np.argsort(at, kind="stable")
    return Trace(
        (at - at.min())[order],
        np.maximum(inputs, 1).astype(np.int32)[order],
        np.maximum(outputs, 1).astype(np.int32)[order],
        None if blocks is None else tuple(blocks[number] for number in order.tolist()),
    )


# --- Tables --------------------------------------------------------------------------------------------------------


def _numbers(path: Path, columns: Mapping[str, tuple[str, ...]], *, at_least: Mapping[str, float]) -> dict[str, Floats]:
    """Column -> numbers; `columns` gives the names by which each may be called."""
    found: dict[str, list[float]] = {name: [] for name in columns}
    for line, row in _rows(path, columns):
        for name, values in found.items():
            values.append(_number(path, line, name, row[name], at_least.get(name, 0.0)))
    return {name: np.array(values) for name, values in found.items()}


def _number(path: Path, line: int, column: str, text: str, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value) or value < least:
        wanted = f"a number from {least:g} on" if isfinite(least) else "a number"
        raise InputError(f"{path}:{line}: {column}: must be {wanted}, not {text!r}")
    return value


def _rows(path: Path, columns: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and named cells of each row; there is at least one."""
    header = _header(path)
    places = {name: _place(path, header, names) for name, names in columns.items()}
    empty = True
    with _opened(path) as lines:
        for line, cells in enumerate(csv.reader(lines), start=1):
            if line == 1 or not "".join(cells).strip():
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


def _check_order(path: Path, column: str, values: Floats) -> None:
    """Raises InputError where the values fall, or are fewer than two."""
    falling = np.flatnonzero(np.diff(values) < 0)
    if len(values) < 2 or len(falling):
        line = int(falling[0]) + 3 if len(falling) else 2
        raise InputError(f"{path}:{line}: {column}: needs two values or more that never fall")


class _opened:  # noqa: N801 - reads as the verb that it is
    """Lines of a file, its errors in our words."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Iterator[str]:
        try:
            self._file = self._path.open(encoding="utf-8-sig", newline="")
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read: {error.strerror}") from None
        return iter(self._file)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._file.close()
        if isinstance(error, UnicodeDecodeError | csv.Error):
            raise InputError(f"{self._path}: is no text in UTF-8 ({error}); unpack or convert it first") from None
