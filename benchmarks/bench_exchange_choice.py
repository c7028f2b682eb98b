"""Which exchange is chosen on modelled links, and how far that is from the best of the three.

``python benchmarks/bench_exchange_choice.py``: exchange_model.py plays each scheme's messages in virtual time (no
wall clock: the machine does not matter). A layer's time is that and computing, which takes as long as the best
exchange give or take 3% and which no chooser is told. "cold": a new Chooser, which has measured single messages and
what a neighbour's do to them, chooses for 200 steps of one row. "day": one Chooser for all token counts of a shape,
which come and go in runs of random length, 3000 steps. Over best: of the exchange alone, all steps from the very first,
trials included. Writes results/exchange_choice.md and .png.
"""

from __future__ import annotations

import itertools
import random
import statistics
from dataclasses import dataclass
from pathlib import Path

import click
from exchange_model import FABRICS, Fabric, seconds
from exchange_party import rows_of
from janus_transport.choice import Chooser
from janus_transport.plan import make_plan
from janus_transport.topology import NAMES, Scheme, Topology
from machine import write

SHAPES = ((4, 4, 2, 2), (8, 8, 2, 2), (8, 16, 1, 2))
TOKENS = (1, 4, 16, 64, 256, 1024)
HIDDEN = (1024, 7168)
STEPS, DAY = 200, 3000


def spread(m: int, n: int, p: int, q: int) -> Topology:
    """m and n workers over p attention and q MoE nodes."""
    return Topology(tuple(f"a{i * p // m}" for i in range(m)), tuple(f"e{i * q // n}" for i in range(n)))


@dataclass(frozen=True, slots=True)
class Row:
    """One load: seconds of each scheme, three plays, and of computing."""

    tokens: dict[int, int]
    played: dict[Scheme, list[float]]

    @property
    def times(self) -> list[float]:
        return [statistics.median(self.played[scheme]) for scheme in Scheme]

    def step(self, chooser: Chooser, draw: random.Random) -> tuple[Scheme, float]:
        """One step as chosen; seconds of its exchange."""
        scheme, _ = chooser.choose(self.tokens)
        took = draw.choice(self.played[scheme])
        chooser.observe(self.tokens, scheme, took + min(self.times) * draw.uniform(0.97, 1.03))
        return scheme, took


def row_of(fabric: Fabric, topology: Topology, sizes: dict[str, int], total: int) -> Row:
    """The three plays of each scheme."""
    tokens = rows_of(total, topology.m)
    plans = {scheme: make_plan(scheme, topology, tuple(tokens)) for scheme in Scheme}
    return Row(tokens, {
        scheme: [seconds(plan, topology, tokens, fabric, **sizes, seed=seed) for seed in range(3)]
        for scheme, plan in plans.items()
    })  # fmt: skip


def cold(row: Row, chooser: Chooser) -> tuple[Scheme, float, int]:
    """What is chosen after 200 steps, the mean seconds of them all, and how many were not of the best scheme."""
    draw = random.Random(5)
    spent, strays = 0.0, 0
    for _ in range(STEPS):
        scheme, took = row.step(chooser, draw)
        spent += took
        strays += row.times[scheme] > min(row.times)
    return chooser.choose(row.tokens, trial=False)[0], spent / STEPS, strays


def day(rows: dict[int, Row], chooser: Chooser) -> dict[int, float]:
    """Mean seconds of the steps of each token count."""
    draw = random.Random(6)
    took: dict[int, list[float]] = {total: [] for total in rows}
    steps = 0
    while steps < DAY:
        total, run = draw.choice(list(rows)), draw.randint(1, 40)
        steps += run
        took[total] += [rows[total].step(chooser, draw)[1] for _ in range(run)]
    return {total: statistics.fmean(times) for total, times in took.items()}


@click.command()
def main() -> None:
    """Play; writes results/exchange_choice.md and .png."""
    columns = (
        "fabric", "m, n, nodes", "hidden", "tokens", "1pc, us", "2pc-1, us", "2pc-2, us", "predicted", "over best",
        "chosen", "over best", "steps not of the best", "cold, all steps", "day, all steps",
    )  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join(["---"] * len(columns)) + " |"]
    worst = dict.fromkeys(("predicted", "chosen", "cold", "day"), 0.0)
    drawn: dict[tuple[str, tuple[int, ...], int], list[list[float]]] = {}
    for fabric, shape, hidden in itertools.product(FABRICS, SHAPES, HIDDEN):
        topology, links = spread(*shape), fabric.known()
        sizes = {"out": 4 * hidden, "back": 8 * hidden, "most": 512}
        rows = {total: row_of(fabric, topology, sizes, total) for total in TOKENS}
        means = day(rows, Chooser(topology, links=links, **sizes))
        for total, row in rows.items():
            chooser, times = Chooser(topology, links=links, **sizes), row.times
            predicted = chooser.choose(row.tokens, trial=False)[0]
            chosen, mean, strays = cold(row, chooser)
            drawn.setdefault((fabric.name, shape, hidden), []).append(times)
            over = {
                "predicted": times[predicted] / min(times) - 1, "chosen": times[chosen] / min(times) - 1,
                "cold": mean / min(times) - 1, "day": means[total] / min(times) - 1,
            }  # fmt: skip
            worst = {key: max(worst[key], over[key]) for key in worst}
            m, n, p, q = shape
            lines.append(
                f"| {fabric.name} | {m}, {n}, {p}+{q} | {hidden} | {total} | "
                + " | ".join(f"{1e6 * t:.0f}" for t in times)
                + f" | {NAMES[predicted]} | {over['predicted']:.0%} | {NAMES[chosen]} | {over['chosen']:.0%} | "
                f"{strays} | {over['cold']:.1%} | {over['day']:.1%} |"
            )
    said = (
        f"Farthest above the best of the three: {worst['predicted']:.0%} by prediction alone, {worst['chosen']:.0%} by "
        f"the choice after {STEPS} steps; over all steps of a row, {worst['cold']:.1%} cold and {worst['day']:.1%} "
        "over a day. No step is left out as warm-up."
    )
    click.echo(said)
    picture(drawn, Path(__file__).parent / "results" / "exchange_choice.png")
    text = "\n\n".join(
        [(__doc__ or "").split("\n\n", 1)[1].strip(), said, "![times](exchange_choice.png)", "\n".join(lines)]
    )
    click.echo(
        write("exchange_choice", "Choice of an exchange", "python benchmarks/bench_exchange_choice.py", text)
    )


def picture(drawn: dict[tuple[str, tuple[int, ...], int], list[list[float]]], path: Path) -> None:
    """Times against tokens: a row per fabric, a column per shape; hidden 1024 dotted, 7168 solid."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(FABRICS), len(SHAPES), figsize=(13, 3.4 * len(FABRICS)), squeeze=False)
    for row, fabric in enumerate(FABRICS):
        for column, shape in enumerate(SHAPES):
            ax = axes[row][column]
            for scheme, colour in zip(Scheme, ("C0", "C1", "C2"), strict=True):
                for hidden, style in ((HIDDEN[0], ":"), (HIDDEN[-1], "-")):
                    times = [1e6 * t[scheme] for t in drawn[fabric.name, shape, hidden]]
                    label = NAMES[scheme] if style == "-" else None
                    ax.plot(TOKENS, times, style, color=colour, label=label)
            m, n, p, q = shape
            ax.set(title=f"{m}, {n}, {p}+{q}; {fabric.name}", xscale="log", yscale="log", xlabel="tokens")
            ax.legend()
        axes[row][0].set_ylabel("one layer, out and back, us")
    figure.tight_layout()
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
