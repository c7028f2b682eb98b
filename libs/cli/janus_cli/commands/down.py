"""``janus down``."""

from __future__ import annotations

import os
import signal
import time

import click
from janus_runtime.errors import DeadlineExceeded

from janus_cli.options import Number, run_dir_option
from janus_cli.rundir import RunDir


@click.command()
@click.option("--deadline", type=Number(0), default=60.0, show_default=True, help="Seconds to wait.")
@run_dir_option
def command(run_dir: RunDir, deadline: float) -> None:
    """Stop the mesh that `janus up` started: streams end, processes and sockets go."""
    pid = int(run_dir.read_mesh()["pid"])
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + deadline
    while run_dir.running():
        if time.monotonic() > until:
            raise DeadlineExceeded(
                f"supervisor {pid} did not end within {deadline:g} s",
                next_step=f"Look at {run_dir.logs}, or signal it again: kill {pid} (at once, without drain).",
            )
        time.sleep(0.05)
    click.echo("stopped")
