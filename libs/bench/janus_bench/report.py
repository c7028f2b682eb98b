"""What a run found, for people: a table, and a picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from janus_bench.errors import BenchError
from janus_bench.summary import PERCENTILES, Record

_BUSY = 0.7
_LATE_S = 0.05
_ROWS = {
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "itl_ms": "between pieces (ITL)",
    "e2e_ms": "whole answer",
}


def warnings(result: dict[str, Any]) -> list[str]:
    """Reasons not to believe the numbers."""
    client, found = result["client"], []
    if client["cpu_share"] > _BUSY:
        found.append(f"the client used {client['cpu_share']:.0%} of a core: it may be what is slow")
    if client["lag_ms"] > _LATE_S * 1e3:
        found.append(f"a request was sent {client['lag_ms']:.0f} ms late: the client did not keep up")
    if result["tokens_counted_by"] != "server" and result["succeeded"]:
        found.append("the server sent no usage: tokens are pieces of the stream, prompts are not counted")
    return found


def table(result: dict[str, Any]) -> Group:
    """Latencies, rates, failures."""
    latency = Table("ms", "mean", *(f"p{p}" for p in PERCENTILES), box=None, pad_edge=False)
    for column in latency.columns[1:]:
        column.justify = "right"
    for key, name in _ROWS.items():
        values = result[key]
        cells = ["-"] * 5 if values is None else [f"{value:.1f}" for value in values.values()]
        latency.add_row(name, *cells)
    rates = Table.grid(padding=(0, 2))
    rates.add_row(
        "requests", f"{result['succeeded']} of {result['requests']} in {result['duration_s']:.1f} s"
    )
    rates.add_row("output tokens/s", f"{result['output_tokens_per_s']:.1f}")
    rates.add_row("prompt and output tokens/s", f"{result['total_tokens_per_s']:.1f}")
    rates.add_row("requests/s", f"{result['requests_per_s']:.2f}")
    if (good := result.get("goodput")) is not None:
        limits = {"TTFT": good["slo_ttft_ms"], "TPOT": good["slo_tpot_ms"]}
        slo = ", ".join(f"{name} <= {ms:g} ms" for name, ms in limits.items() if ms is not None)
        rates.add_row("goodput", f"{good['requests_per_s']:.2f} requests/s, {good['share']:.0%} kept {slo}")
    lines = [
        Text(f"error: {n} x {kind}: {result['error_examples'][kind]}") for kind, n in result["errors"].items()
    ]
    lines += [Text(f"warning: {text}") for text in warnings(result)]
    return Group(rates, Text(), latency, *([Text()] if lines else []), *lines)


def picture(result: dict[str, Any], records: Sequence[Record], path: Path) -> None:
    """Distributions of TTFT, TPOT and whole answers, and pieces per second over time, as a PNG."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise BenchError("a picture needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    whole = [record for record in records if not record.error]
    figure, axes = pyplot.subplots(1, 4, figsize=(15, 3.6))
    shown = {
        "time to first token, ms": [r.ttft * 1e3 for r in whole],
        "time per output token, ms": [t * 1e3 for r in whole if (t := r.tpot) is not None],
        "whole answer, ms": [r.e2e * 1e3 for r in whole],
    }
    for ax, (label, values) in zip(axes, shown.items(), strict=False):
        if values:
            ax.ecdf(values)
        ax.set(xlabel=label, ylabel="share of requests", ylim=(0, 1.02))
        ax.set_xlim(left=0)
    marks = sorted(itertools.chain.from_iterable(record.marks for record in whole))
    if marks:
        start = min(record.due for record in records)
        # Bars of about a hundredth of the run; a run of seconds has bars of a tenth.
        width = max(0.1, (marks[-1] - start) / 100)
        counts: dict[int, int] = {}
        for mark in marks:
            slot = int((mark - start) / width)
            counts[slot] = counts.get(slot, 0) + 1
        axes[3].bar(
            [slot * width for slot in counts], [n / width for n in counts.values()], width=width, align="edge"
        )
    axes[3].set(xlabel="seconds", ylabel="pieces of answers per second")
    figure.suptitle(f"{result['target']}: {result['load']}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
