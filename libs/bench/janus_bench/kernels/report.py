"""What was measured of the kernels, as Markdown and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from janus_kernels import POLICIES

from janus_bench.errors import BenchError
from janus_bench.kernels.goals import goals, summary
from janus_bench.kernels.measure import DTYPES, HIDDEN, INNER

Row = dict[str, Any]
_TITLES = {
    "experts": f"Expert FFN, 64 experts, hidden {HIDDEN}, inner {INNER}",
    "linear": f"Linear, {HIDDEN} x {HIDDEN}",
    "attention": "Attention decode, 16 sequences, pages of 16 in random order",
    "schedule": "Activation scheduling: mean a_max by policy, and the time of `optimal`, alone and from Python",
}


def markdown(results: dict[str, Any], picture_name: str = "") -> str:
    """Tables of what there is; ``picture_name``: the file that :func:`picture` has drawn."""
    machine = (
        f"{results['kernels']}. Alone: read {results['read GB/s']:.1f} GB/s, fused multiply-add\n"
        f"{results['FMA GFLOP/s']:.0f} GFLOP/s. Shares are of what was measured in turns with each line."
    )
    parts = [machine]
    if picture_name:
        parts.append(f"![layer latency and a_max]({picture_name})")
    if aims := goals(results):
        parts += ["## Goals", summary(aims), table(aims)]
    for name, title in _TITLES.items():
        if name in results:
            parts += [f"## {title}", table(results[name])]
    if "layer" in results:
        parts.append("## One layer against distinct experts and against tokens")
        parts += [table(rows) for rows in results["layer"].values()]
    return "\n\n".join(parts)


def table(rows: Sequence[Row]) -> str:
    """Markdown."""

    def cell(key: str, value: Any) -> str:
        if value is None:
            return "-"
        if key.startswith("of "):
            return f"{value:.0%}"
        return f"{value:.1f}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(rows[0]) + " |", "| " + " | ".join("---" for _ in rows[0]) + " |"]
    lines += ["| " + " | ".join(cell(key, value) for key, value in row.items()) + " |" for row in rows]
    return "\n".join(lines)


def picture(layer: dict[str, list[Row]], policies: list[Row], path: Path) -> None:
    """Layer latency (above) and a_max by policy and instances (below), as a PNG. BenchError without matplotlib."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise BenchError("a picture needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(14, 7.4))
    halves: Any = figure.subfigures(2, 1)
    above, below = halves
    axes = above.subplots(1, 2)
    for ax, what, label in ((axes[0], "distinct", "experts"), (axes[1], "tokens", "tokens")):
        for name in DTYPES:
            rows = [row for row in layer[what] if row["weights"] == name]
            ax.plot([row[label] for row in rows], [row["ms"] for row in rows], marker="o", label=name)
        ax.set(ylabel="ms per layer", ylim=(0, None))
        ax.legend()
    axes[0].set(xlabel="distinct activated experts (16 tokens)", xlim=(0, None))
    axes[1].set(xlabel="tokens (64 experts, top-8: 8 tokens are one per expert)", xscale="log")
    counts = sorted({row["instances"] for row in policies})
    axes = below.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for ax, instances in zip(axes, counts, strict=True):
        for routing, line in (("uniform", "-"), ("skewed", ":")):
            rows = [row for row in policies if (row["routing"], row["instances"]) == (routing, instances)]
            for i, policy in enumerate(POLICIES):
                ax.plot(
                    [row["tokens"] for row in rows], [row[policy] for row in rows], line, marker=".",
                    color=f"C{i}", label=policy if routing == "uniform" else None,
                )  # fmt: skip
        ax.set(
            xlabel="tokens",
            xscale="log",
            ylim=(0, None),
            title=f"{instances} instances of 27 slots, E=160, top-6",
        )
        ax.title.set_fontsize("small")
    axes[0].set(ylabel="a_max (solid: uniform, dotted: skewed)")
    axes[0].legend(fontsize="small")
    above.subplots_adjust(left=0.05, right=0.99, bottom=0.16, top=0.95)
    below.subplots_adjust(left=0.05, right=0.99, bottom=0.14, top=0.9, wspace=0.06)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
