"""Options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from janus_cli.rundir import RunDir, default_run_dir


class Number(click.FloatRange):
    """A FloatRange that refuses what is no number: NaN compares false with every bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


F = TypeVar("F", bound=Callable[..., Any])


def run_dir_option(command: F) -> F:
    """``--run-dir``, as a RunDir in ``run_dir``."""
    return click.option(
        "--run-dir",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="JANUS_RUN_DIR",
        show_envvar=True,
        callback=lambda ctx, param, value: RunDir((value or default_run_dir()).expanduser().absolute()),
        help="Folder of the mesh: logs, spans, state.  [default: $XDG_STATE_HOME/janus]",
    )(command)


def json_option(command: F) -> F:
    """``--json``, a flag, in ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)
