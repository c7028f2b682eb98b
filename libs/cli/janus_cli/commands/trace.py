"""``janus trace``."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import click
from janus_runtime.errors import NotFound
from janus_runtime.spanstore import list_traces, read_trace
from rich.table import Table
from rich.text import Text

from janus_cli.options import json_option, run_dir_option
from janus_cli.progress import out_console
from janus_cli.rundir import RunDir
from janus_cli.waterfall import bar, rows

_ID = re.compile(r"[0-9a-fA-F]{1,32}")
_BAR = 32


def _trace_id(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not _ID.fullmatch(value):
        raise click.BadParameter(f"{value!r} is not a trace id: 1 to 32 hex digits")
    return value


@click.command()
@click.argument("trace_id", required=False, metavar="[ID]", callback=_trace_id)
@click.option(
    "--dir",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A span store.  [default: traces/ of the run directory]",
)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="A line per span: fold nothing; without ID: not only the gateway's.",
)
@json_option
@run_dir_option
def command(
    trace_id: str | None, folder: Path | None, run_dir: RunDir, everything: bool, as_json: bool
) -> None:
    """Show the spans of trace ID (x-trace-id of an answer) as a waterfall; without ID, the latest requests."""
    store = folder or run_dir.traces
    if trace_id is None:
        roots = list_traces(store, limit=10_000)
        # Calls from worker to worker and from `janus top` are traces too, seldom the ones looked for.
        _list([r for r in roots if everything or r["service"] == "janus-gateway"][:20], as_json)
        return
    spans = read_trace(store, trace_id)
    if not spans:
        raise NotFound(
            f"no span of trace {trace_id} in {store}",
            reason="NO_TRACE",
            next_step="Spans are written about a second after a request; `janus trace` lists what is there. "
            "With OTEL_EXPORTER_OTLP_ENDPOINT set, spans go there instead.",
        )
    if as_json:
        click.echo(json.dumps(spans))
    else:
        _show(spans, fold_above=len(spans) if everything else 4)


def _show(spans: list[dict[str, Any]], fold_above: int) -> None:
    start, end = spans[0]["start_ns"], max(s["end_ns"] for s in spans)
    console = out_console()
    console.print(f"trace {spans[0]['trace_id']}: {len(spans)} spans, {(end - start) / 1e6:.1f} ms")
    table = Table(box=None, pad_edge=False)
    table.add_column("span", no_wrap=True)
    table.add_column("worker", no_wrap=True)
    table.add_column("start ms", justify="right", no_wrap=True)
    table.add_column("took ms", justify="right", no_wrap=True)
    table.add_column("", width=_BAR, no_wrap=True)
    for row in rows(spans, fold_above=fold_above):
        name = "  " * row.depth + row.name + (f" x{row.count}" if row.count > 1 else "")
        style = "red" if row.status == "error" else "cyan"
        table.add_row(
            Text(name, style="red" if row.status == "error" else ""),
            row.worker,
            f"{(row.start_ns - start) / 1e6:.1f}",
            f"{row.busy_ns / 1e6:.1f}",
            Text(bar(row, start, end, _BAR), style=style),
        )
    console.print(table)


def _list(roots: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(roots))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("trace", "when", "took ms", "request", "worker"):
        table.add_column(column, no_wrap=True)
    for root in roots:
        when = time.strftime("%H:%M:%S", time.localtime(root["start_ns"] / 1e9))
        took = f"{(root['end_ns'] - root['start_ns']) / 1e6:.1f}"
        table.add_row(root["trace_id"], when, took, root["name"], root["worker"])
    out_console().print(table)
