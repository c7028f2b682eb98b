"""Spans of one trace as rows of a waterfall. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Span = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line: a span, or several like spans under one parent folded together."""

    name: str
    worker: str
    depth: int
    start_ns: int
    """Of the first span."""
    end_ns: int
    """Of the last one."""
    busy_ns: int
    """Time inside the spans, summed."""
    count: int = 1
    status: str = "unset"
    attributes: dict[str, Any]


def rows(spans: Sequence[Span], *, fold_above: int = 4) -> list[Row]:
    """Depth-first, by start. More than ``fold_above`` spans of one name and worker under one parent become one row.

    A span whose parent is not among ``spans`` (the caller's own, or lost) is a root.
    """
    known = {span["span_id"] for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda s: (s["start_ns"], s["end_ns"])):
        parent = span["parent_span_id"]
        children[parent if parent in known else ""].append(span)
    result: list[Row] = []
    # The parents' chain cannot loop: a child's row is made from its parent's, and roots have none in `known`.
    stack: list[tuple[list[Span], int]] = [
        (group, 0) for group in reversed(_groups(children[""], fold_above))
    ]
    while stack:
        group, depth = stack.pop()
        result.append(_row(group, depth))
        below = [child for span in group for child in children[span["span_id"]]]
        # What is under folded spans is folded too.
        inner = _groups(below, fold_above if len(group) == 1 else 0)
        stack.extend((each, depth + 1) for each in reversed(inner))
    return result


def _groups(spans: Sequence[Span], fold_above: int) -> list[list[Span]]:
    by_kind: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in spans:
        by_kind[span["name"], span["worker"]].append(span)
    groups: list[list[Span]] = []
    for alike in by_kind.values():
        groups.extend([alike] if len(alike) > fold_above else [[span] for span in alike])
    return sorted(groups, key=lambda group: group[0]["start_ns"])


def _row(group: list[Span], depth: int) -> Row:
    first = group[0]
    failed = next((s["status"] for s in group if s["status"] == "error"), first["status"])
    return Row(
        name=first["name"],
        worker=first["worker"] or first["service"],
        depth=depth,
        start_ns=first["start_ns"],
        end_ns=max(s["end_ns"] for s in group),
        busy_ns=sum(s["end_ns"] - s["start_ns"] for s in group),
        count=len(group),
        status=failed,
        attributes=first["attributes"] if len(group) == 1 else {},
    )


def bar(row: Row, start_ns: int, end_ns: int, width: int) -> str:
    """Where the row lies in the whole, ``width`` characters."""
    span = max(1, end_ns - start_ns)
    left = min(width - 1, (row.start_ns - start_ns) * width // span)
    right = max(left + 1, min(width, -(-(row.end_ns - start_ns) * width // span)))
    return " " * left + ("░" if row.count > 1 else "█") * (right - left) + " " * (width - right)
