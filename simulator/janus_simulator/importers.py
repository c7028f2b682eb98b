"""Traces from CSV files: BurstGPT's and Azure's column names, or plain ones. Bad rows are named by line."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path

import numpy as np
from janus_scaling.checks import ScalingError

from janus_simulator.traces import MAX_REQUESTS, Trace

# (arrival, prompt tokens, output tokens) by header, lower case.
COLUMNS = {
    "burstgpt": ("timestamp", "request tokens", "response tokens"),  # github HPMLL/BurstGPT: seconds
    "azure": (
        "timestamp",
        "contexttokens",
        "generatedtokens",
    ),  # AzurePublicDataset LLM traces: date and time
    "plain": ("arrival_s", "prompt_tokens", "output_tokens"),
}


class TraceError(ScalingError):
    """A file that is no trace: names file, line, column, value."""


def load_csv(path: str | Path, *, skip_bad: bool = False) -> Trace:
    """Read a trace; rows may be in any order, and the first arrival becomes 0.

    A BurstGPT row without response tokens is a failed request and is left out. Other bad rows raise TraceError, or
    are left out with ``skip_bad`` while at least one good one is left.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            return parse_csv(lines, path.name, skip_bad=skip_bad)
    except OSError as error:
        raise TraceError(str(path), error.strerror or str(error), "a readable CSV file") from error
    except UnicodeDecodeError as error:
        raise TraceError(str(path), "not UTF-8", "CSV text in UTF-8") from error


def parse_csv(lines: Iterable[str], name: str, *, skip_bad: bool = False) -> Trace:
    """The same from lines."""
    rows = csv.reader(lines)
    header = [cell.strip().lower() for cell in next(rows, [])]
    kind = next((k for k, wanted in COLUMNS.items() if set(wanted) <= set(header)), None)
    if kind is None:
        allowed = "; or ".join(", ".join(wanted) for wanted in COLUMNS.values())
        raise TraceError(f"{name}, line 1: columns", ", ".join(header) or "none", allowed)
    at = [header.index(column) for column in COLUMNS[kind]]
    parsers: tuple[Callable[[str], float], ...] = (_moment if kind == "azure" else _seconds, _count, _count)
    found: list[tuple[float, float, float]] = []
    bad: TraceError | None = None
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            try:
                values = [
                    _cell(row, index, parse, f"{name}, line {rows.line_num}: {column}")
                    for index, parse, column in zip(at, parsers, COLUMNS[kind], strict=True)
                ]
            except TraceError as error:
                if not skip_bad:
                    raise
                bad = bad or error
                continue
            if kind == "burstgpt" and values[2] == 0:
                continue
            found.append((values[0], max(1.0, values[1]), max(1.0, values[2])))
            if len(found) > MAX_REQUESTS:
                raise TraceError(f"{name}: requests", f"over {MAX_REQUESTS}", f"1..{MAX_REQUESTS}")
    except csv.Error as error:
        raise TraceError(f"{name}, line {rows.line_num}", str(error), "a CSV row") from error
    if not found:
        raise bad or TraceError(f"{name}: requests", 0, f"1..{MAX_REQUESTS}")
    table = np.array(sorted(found), np.float64)
    lengths = table[:, 1:].astype(np.int64)
    return Trace(table[:, 0] - table[0, 0], lengths[:, 0], lengths[:, 1], name)


def _cell(row: list[str], index: int, parse: Callable[[str], float], field: str) -> float:
    if index >= len(row):
        raise TraceError(field, "missing", "a value in every row")
    text = row[index].strip()
    try:
        return parse(text)
    except ValueError as error:
        raise TraceError(field, repr(text), str(error)) from None


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e12:
        raise ValueError("seconds, 0 or more")
    return value


def _count(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1e7 or value != int(value):
        raise ValueError("a whole number of tokens, 0..10000000")
    return value


def _moment(text: str) -> float:
    """Azure writes seven digits of a second, more than Python reads."""
    head, _, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    try:
        moment = datetime.fromisoformat(head + rest[len(digits) :])
    except ValueError:
        raise ValueError("a date and time, e.g. 2023-11-16 18:15:46.6805900") from None
    fraction = float(f"0.{digits}") if digits else 0.0
    return (moment.replace(tzinfo=None) - datetime(2000, 1, 1)).total_seconds() + fraction
