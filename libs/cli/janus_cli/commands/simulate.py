"""``janus simulate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from janus_scaling import ScalingError
from janus_simulator import (
    SHAPES,
    SIGHTS,
    SYSTEMS,
    Scenario,
    Trace,
    load_csv,
    picture,
    planner,
    rows,
    simulate,
    summarize,
    synthetic,
)
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from janus_cli.errors import Failure
from janus_cli.options import Number, json_option
from janus_cli.progress import err_console, out_console
from janus_cli.scaling_options import setting, setting_options


@click.command()
@click.option(
    "--trace",
    "source",
    type=click.Path(dir_okay=False, path_type=Path),
    help="CSV with BurstGPT's, Azure's or plain columns (arrival_s, prompt_tokens, output_tokens).",
)
@click.option(
    "--skip-bad-rows", is_flag=True, help="Leave out rows that cannot be read, instead of naming the first."
)
@click.option(
    "--shape", type=click.Choice(SHAPES), default="diurnal", show_default=True, help="Synthetic arrivals."
)
@click.option(
    "--rate", type=Number(0, 1e6, min_open=True), default=1.0, show_default=True, help="Requests per second."
)
@click.option("--hours", type=Number(0, 240, min_open=True), default=24.0, show_default=True)
@click.option(
    "--peak", type=Number(1, 100), default=7.5, show_default=True, help="Diurnal: highest over mean rate."
)
@click.option(
    "--burstiness",
    type=Number(0, 1000, min_open=True),
    default=4.0,
    show_default=True,
    help="Squared coefficient of variation of gaps.",
)
@click.option(
    "--input-len", type=Number(1, 1e6), default=16.0, show_default=True, help="Mean tokens of a prompt."
)
@click.option(
    "--output-len", type=Number(1, 1e6), default=256.0, show_default=True, help="Mean tokens of an answer."
)
@click.option(
    "--system",
    "names",
    type=click.Choice(list(SYSTEMS)),
    multiple=True,
    default=("janus",),
    show_default=True,
    help="May be repeated.",
)
@click.option(
    "--decide-s", type=Number(1, 86400), default=900.0, show_default=True, help="Between decisions."
)
@click.option(
    "--start-s", type=Number(0, 86400), default=0.0, show_default=True, help="For added workers to serve."
)
@click.option(
    "--hold-s",
    type=Number(0, 86400),
    default=0.0,
    show_default=True,
    help="How long fewer workers must have sufficed.",
)
@click.option(
    "--headroom", type=Number(0.1, 100), default=1.0, show_default=True, help="Plan for this times the rate."
)
@click.option(
    "--sight",
    type=click.Choice(SIGHTS),
    default="observed",
    show_default=True,
    help="Plan for the rate since the last decision, also for what earlier days say, or for what will come.",
)
@setting_options
@click.option(
    "--picture", "png", type=click.Path(dir_okay=False, path_type=Path), help="Draw the run into this PNG."
)
@json_option
def command(
    source: Path | None, skip_bad_rows: bool, shape: str, rate: float, hours: float, peak: float, burstiness: float,
    input_len: float, output_len: float, names: tuple[str, ...], decide_s: float, start_s: float, hold_s: float,
    headroom: float, sight: str, png: Path | None, as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Run a trace of requests on simulated hardware: GPU-hours, throughput per GPU, how often objectives are kept."""
    try:
        if source is not None:
            trace = load_csv(source, skip_bad=skip_bad_rows)
        else:
            trace = synthetic(
                shape, rate=rate, duration_s=3600 * hours, peak=peak, burstiness=burstiness, mean_prompt=input_len,
                mean_output=output_len, seed=values["seed"],
            )  # fmt: skip
        common = setting(values)
        scenario = Scenario(decide_s=decide_s, start_s=start_s, hold_s=hold_s, headroom=headroom, sight=sight)
        results = {}
        console = err_console()
        columns = (TextColumn("{task.description}"), BarColumn())
        with Progress(
            *columns, console=console, disable=not console.is_terminal, refresh_per_second=2
        ) as bar:
            for name in dict.fromkeys(names):
                results[name] = _run(name, common, trace, scenario, bar)
    except ScalingError as error:
        raise Failure(str(error)) from error
    if png:
        try:
            picture(results, png, f"{common.model.name}, {trace.name}")
        except ModuleNotFoundError as error:
            raise Failure("pictures need matplotlib: pip install 'janus-mesh-simulator[picture]'") from error
        except OSError as error:
            raise Failure(f"--picture {png}: {error.strerror or error}") from error
    if as_json:
        click.echo(
            json.dumps({"trace": trace.name, "model": common.model.name, "systems": results}, indent=1)
        )
        return
    head, *lines = rows(results)
    table = Table(*head, box=None, pad_edge=False)
    for line in lines:
        table.add_row(*line)
    out_console().print(f"{len(trace)} requests in {trace.duration_s / 3600:.2f} h, {common.model.name}")
    out_console().print(table)


def _run(name: str, common: Any, trace: Trace, scenario: Scenario, bar: Progress) -> dict[str, Any]:
    task = bar.add_task(name, total=trace.duration_s)
    made = planner(name, common)
    outcome = simulate(trace, made, scenario, progress=lambda at: bar.update(task, completed=at))
    bar.update(task, completed=trace.duration_s)
    return summarize(trace, outcome, common.target)
