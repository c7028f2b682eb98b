"""The kernels on this machine: ``janus bench kernels``, written to results/kernels.md and results/kernels.png."""

from __future__ import annotations

import json
from pathlib import Path

import click
from janus_bench.errors import BenchError
from janus_bench.kernels import CLOCKS, markdown, measure, picture
from machine import write


@click.command()
@click.option("--threads", default=2, show_default=True, help="Threads of kernels and torch.")
@click.option(
    "--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True, help="cpu: 1 thread."
)
@click.option("--rounds", default=9, show_default=True, help="Measurements per case.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; write no file.")
def main(threads: int, clock: str, rounds: int, as_json: bool) -> None:
    """Measure the kernels; writes results/kernels.md and results/kernels.png."""
    try:
        results = measure(threads=threads, clock=clock, rounds=rounds)
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(results))
        return
    body = markdown(results, "kernels.png")
    click.echo(body)
    picture(results["layer"], results["schedule"], Path(__file__).parent / "results" / "kernels.png")
    path = write(
        "kernels", "Kernels", f"python benchmarks/bench_kernels.py --threads {threads} --clock {clock}", body
    )
    click.echo(f"written to {path}")


if __name__ == "__main__":
    main()
