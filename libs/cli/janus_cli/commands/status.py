"""``janus status``."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from janus_cli.options import json_option, run_dir_option
from janus_cli.progress import out_console
from janus_cli.rundir import RunDir
from janus_cli.view import MeshView, look_at, service_rows


@click.command()
@click.option(
    "--redis-url", envvar="REDIS_URL", show_envvar=True, help="Of a mesh that `janus up` did not start."
)
@click.option("--namespace", default="janus", show_default=True, help="With --redis-url.")
@json_option
@run_dir_option
def command(run_dir: RunDir, redis_url: str | None, namespace: str, as_json: bool) -> None:
    """Show the cohort's epoch, the layout's version and every worker. Exit code 1 when there is no mesh."""
    if not redis_url:
        mesh = run_dir.read_mesh()
        redis_url, namespace = str(mesh["redis"]), str(mesh["namespace"])
    view = asyncio.run(look_at(redis_url, namespace))
    if as_json:
        click.echo(json.dumps(as_dict(view)))
    else:
        show(view, out_console())


def as_dict(view: MeshView) -> dict[str, Any]:
    """The same as the table, for scripts."""
    cohort = view.cohort
    return {
        "epoch": cohort.epoch if cohort else 0,
        "layout_version": cohort.layout_version if cohort else 0,
        "gating": cohort.gating if cohort else "",
        "scheduling": cohort.scheduling if cohort else "",
        "exchange": cohort.exchange if cohort else "",
        "attention": [m.worker_id for m in cohort.attention] if cohort else [],
        "moe": [m.worker_id for m in cohort.moe] if cohort else [],
        "services": service_rows(view),
    }


def show(view: MeshView, console: Console) -> None:
    """Cohort line and worker table."""
    cohort = view.cohort
    if cohort:
        console.print(
            f"cohort epoch {cohort.epoch}: {len(cohort.attention)} attention x {len(cohort.moe)} MoE, "
            f"layout {cohort.layout_version}, gating {cohort.gating}, scheduling {cohort.scheduling}"
        )
    else:
        console.print("no cohort yet")
    console.print(worker_table(view))


def worker_table(view: MeshView) -> Table:
    """A row per lease."""
    table = Table(box=None, pad_edge=False)
    for column in ("worker", "state", "epoch", "running", "waiting", "pid", "address", "node", "detail"):
        table.add_column(
            column, justify="right" if column in ("epoch", "running", "waiting", "pid") else "left"
        )
    for row in service_rows(view):
        busy = (str(row["running"]), str(row["waiting"])) if row["role"] == "attention" else ("", "")
        address = row["address"] + (f", http {row['http']}" if row["http"] else "")
        epoch = str(row["epoch"]) if row["role"] in ("attention", "moe") else ""
        state = f"[green]{row['state']}[/]" if row["state"] == "ready" else f"[yellow]{row['state']}[/]"
        table.add_row(
            row["worker_id"], state, epoch, *busy, str(row["pid"]), address, row["node"], row["detail"]
        )
    return table
