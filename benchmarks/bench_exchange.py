"""The exchange on this machine: ``janus bench exchange``, written to results/exchange.md and results/exchange.png.

Round trips between two processes, in turns with bare UCXX, and layers of a 3 x 3 cohort.
"""

from __future__ import annotations

from pathlib import Path

import click
from janus_bench.exchange import Plan, markdown, measure, picture
from machine import write

INTRO = """Medians. 1x1: a round trip between two processes ("inproc": threads), in turns with UCXX used directly.
"grpc": the baseline, the same bytes as unary calls on loopback.
3x3: a layer of three attention and three MoE workers, each attention worker sending the payload to each MoE worker and
awaiting as much from each; six processes share the machine's cores.

![medians against payload](exchange.png)

"""


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Turns of each kind.")
@click.option("--count", default=200, show_default=True, help="Round trips per turn.")
def main(rounds: int, count: int) -> None:
    """Measure; writes results/exchange.md and results/exchange.png."""
    rows = measure(("shm", "tcp", "inproc", "grpc"), Plan(rounds=rounds, count=count))
    click.echo(markdown(rows))
    picture(rows, Path(__file__).parent / "results" / "exchange.png")
    path = write("exchange", "The exchange", "python benchmarks/bench_exchange.py", INTRO + markdown(rows))
    click.echo(f"written to {path}")


if __name__ == "__main__":
    main()
