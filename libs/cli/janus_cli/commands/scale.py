"""``janus scale``."""

from __future__ import annotations

import json
from typing import Any

import click

from janus_cli.control import ask
from janus_cli.options import Number, json_option, run_dir_option
from janus_cli.resize import parse_targets
from janus_cli.rundir import RunDir

WAIT_S = 600.0


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="attention=M experts=N")
@click.option("--wait/--no-wait", default=True, help="Return when it is done.  [default: wait]")
@click.option("--deadline", type=Number(1), default=WAIT_S, show_default=True, help="Seconds to wait.")
@json_option
@run_dir_option
def command(run_dir: RunDir, targets: tuple[str, ...], wait: bool, deadline: float, as_json: bool) -> None:
    """Start workers, or drain those with the highest numbers, until there are M and N.

    Streams go on meanwhile, with the tokens that they would have had: a worker that leaves hands its own to
    the others. One target may be left out.
    """
    counts = parse_targets(targets)
    request = {"op": "scale", "targets": counts, "wait": wait}
    show(ask(run_dir, request, progress, deadline), as_json=as_json)


def progress(text: str) -> None:
    """What the supervisor says while it works."""
    click.echo(text, err=True)


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """The result of a change."""
    if as_json:
        click.echo(json.dumps(result))
        return
    workers = result["workers"]
    click.echo(f"{workers['attention']} attention x {workers['experts']} MoE workers")
