"""``janus drain``."""

from __future__ import annotations

import click

from janus_cli.commands.scale import WAIT_S, progress, show
from janus_cli.control import ask
from janus_cli.options import Number, json_option, run_dir_option
from janus_cli.rundir import RunDir


@click.command()
@click.argument("worker", metavar="WORKER")
@click.option("--wait/--no-wait", default=True, help="Return when it has left.  [default: wait]")
@click.option("--deadline", type=Number(1), default=WAIT_S, show_default=True, help="Seconds to wait.")
@json_option
@run_dir_option
def command(run_dir: RunDir, worker: str, wait: bool, deadline: float, as_json: bool) -> None:
    """Take WORKER (attention-1, moe-2, ...) out: its streams go on at others, then it is stopped."""
    request = {"op": "drain", "worker": worker, "wait": wait}
    show(ask(run_dir, request, progress, deadline), as_json=as_json)
