"""What was measured, as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_bench.errors import BenchError


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table."""
    lines = [
        "| transport | pattern | payload, bytes | exchange, us | p90, us | bare UCXX, us | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        bare = "- | -" if row["bare_us"] is None else f"{row['bare_us']:.0f} | {row['ratio']:.2f}"
        lines.append(
            f"| {row['transport']} | {row['pattern']} | {row['payload']} | {row['exchange_us']:.0f} | "
            f"{row['p90_us']:.0f} | {bare} |"
        )
    return "\n".join(lines)


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Medians against payload, a panel per pattern, as a PNG. BenchError without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise BenchError("a picture needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    patterns = list(dict.fromkeys(row["pattern"] for row in rows))
    figure, axes = pyplot.subplots(1, len(patterns), figsize=(5 * len(patterns), 3.8), squeeze=False)
    for ax, pattern in zip(axes[0], patterns, strict=True):
        here = [row for row in rows if row["pattern"] == pattern]
        for name in dict.fromkeys(row["transport"] for row in here):
            found = [row for row in here if row["transport"] == name]
            sizes = [row["payload"] for row in found]
            (line,) = ax.plot(sizes, [row["exchange_us"] for row in found], marker="o", label=name)
            if all(row["bare_us"] is not None for row in found):
                ax.plot(
                    sizes,
                    [row["bare_us"] for row in found],
                    ":",
                    color=line.get_color(),
                    label=f"{name}, bare",
                )
        what = "round trip of a pair" if pattern == "1x1" else f"a layer of {pattern}"
        ax.set(xlabel="payload, bytes", ylabel=f"{what}, us", xscale="log", yscale="log")
        ax.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
