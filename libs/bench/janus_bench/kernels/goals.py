"""The aims of the kernels beside what was measured of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Row = dict[str, Any]
SCHEDULE_US = {64: 5.0, 256: 10.0, 4096: 60.0}
"""Most microseconds of ``optimal`` alone by tokens, E=160 on 16 instances of 27 slots, top-6."""
PYTHON_US = 3.0
"""Most microseconds that calling it from Python may add."""
MEMORY_SHARE, ATTENTION_SHARE = 0.85, 0.80
"""Least shares of read bandwidth: experts of 1 to 4 tokens, attention decode."""
PEAK_SHARES = {8: 0.45, 64: 0.65}
"""Least shares of the FMA peak by tokens per expert, fp32."""


def goals(results: dict[str, Any]) -> list[Row]:
    """Rows ``goal``, ``measured`` and ``met`` for the cases that :func:`measure` ran."""
    rows: list[Row] = []
    for case, check in (
        ("schedule", _schedule),
        ("experts", _experts),
        ("linear", _linear),
        ("attention", _attention),
    ):
        rows += check(results[case]) if case in results else ()
    return rows


def _row(goal: str, measured: str, met: bool) -> Row:
    return {"goal": goal, "measured": measured, "met": "yes" if met else "no"}


def _schedule(rows: list[Row]) -> Iterator[Row]:
    for row in rows:
        most = SCHEDULE_US.get(row["tokens"])
        if row["instances"] != 16 or most is None:
            continue
        what = f"`optimal`, {row['routing']}, 16 instances, {row['tokens']} tokens"
        core, python = row["core us"], row["optimal us"]
        yield _row(f"{what}: at most {most:g} us", f"{core:.1f} us", core <= most)
        yield _row(f"the same from Python: at most {PYTHON_US:g} us more", f"{python - core:+.1f} us",
                   python - core <= PYTHON_US)  # fmt: skip


def _experts(rows: list[Row]) -> Iterator[Row]:
    by = {(row["weights"], row["tokens per expert"]): row for row in rows}
    for weights in ("fp32", "bf16"):
        for tokens in (1, 2, 4):
            row = by[weights, tokens]
            # What its products alone take of the peak once weights come at full bandwidth.
            products = row["of FMA peak"] / row["of read bandwidth"]
            yield _row(
                f"experts, {weights}, {tokens} tokens: {MEMORY_SHARE:.0%} of read bandwidth",
                f"{row['of read bandwidth']:.0%} (at all of it products alone take {products:.0%} of the FMA peak)",
                row["of read bandwidth"] >= MEMORY_SHARE,
            )
    for tokens, least in PEAK_SHARES.items():
        share = by["fp32", tokens]["of FMA peak"]
        yield _row(
            f"experts, fp32, {tokens} tokens: {least:.0%} of the FMA peak", f"{share:.0%}", share >= least
        )
    for fast, slow, least in (("bf16", "fp32", 2.0), ("int8", "bf16", 2.0), ("int4", "int8", 1.0)):
        times = by[slow, 1]["ms"] / by[fast, 1]["ms"]
        yield _row(
            f"experts, 1 token: {fast} {least:g} times as fast as {slow}",
            f"{times:.2f} times",
            times >= least,
        )
    worst = min(
        min(row[torch] for torch in ("torch ms", "torch bmm ms")) / row["ms"]
        for row in rows if row["torch ms"] is not None
    )  # fmt: skip
    yield _row("experts, fp32: faster than torch at every size", f"{worst:.2f} times at worst", worst > 1)


def _linear(rows: list[Row]) -> Iterator[Row]:
    worst = min(row["torch us"] / row["us"] for row in rows if row["torch us"] is not None)
    yield _row("linear, fp32: faster than torch at every size", f"{worst:.2f} times at worst", worst > 1)


def _attention(rows: list[Row]) -> Iterator[Row]:
    for row in rows:
        share = row["of read bandwidth"]
        yield _row(
            f"attention decode, {row['cache']}, context {row['context']}: {ATTENTION_SHARE:.0%} of read bandwidth",
            f"{share:.0%}", share >= ATTENTION_SHARE,
        )  # fmt: skip


def summary(rows: list[Row]) -> str:
    """One line: how many are met."""
    return f"{sum(row['met'] == 'yes' for row in rows)} of {len(rows)} goals met."
