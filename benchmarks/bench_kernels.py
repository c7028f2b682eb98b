"""The kernels on this machine: ``janus bench kernels``, written to results/kernels.md and results/kernels.png."""

from __future__ import annotations

import json
from pathlib import Path

import click
from janus_bench.errors import BenchError
from janus_bench.kernels import CLOCKS, markdown, measure, picture
from machine import write

_AGAIN = ("experts", "linear", "attention")


@click.command()
@click.option(
    "--threads", default=(2, 1), multiple=True, show_default=True, help="Threads of kernels and torch; all cases "
    "with the first, those of memory and arithmetic with the others.",
)  # fmt: skip
@click.option(
    "--clock", type=click.Choice(list(CLOCKS)), default="wall", show_default=True, help="cpu: 1 thread."
)
@click.option("--rounds", default=9, show_default=True, help="Measurements per case.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; write no file.")
def main(threads: tuple[int, ...], clock: str, rounds: int, as_json: bool) -> None:
    """Measure the kernels; writes results/kernels.md and results/kernels.png."""
    try:
        results = [measure(threads=threads[0], clock=clock, rounds=rounds)]
        results += [measure(threads=n, clock=clock, rounds=rounds, cases=_AGAIN) for n in threads[1:]]
    except BenchError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(results))
        return
    pairs = zip(threads[1:], results[1:], strict=True)
    again = [f"# The same with --threads {n}\n\n{markdown(result)}" for n, result in pairs]
    body = "\n\n".join([markdown(results[0], "kernels.png"), *again])
    click.echo(body)
    picture(results[0]["layer"], results[0]["schedule"], Path(__file__).parent / "results" / "kernels.png")
    given = " ".join(f"--threads {n}" for n in threads)
    path = write("kernels", "Kernels", f"python benchmarks/bench_kernels.py {given} --clock {clock}", body)
    click.echo(f"written to {path}")


if __name__ == "__main__":
    main()
