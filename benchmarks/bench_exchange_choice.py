"""Which exchange is chosen on modelled links, and how far that is from the best of the three.

``python benchmarks/bench_exchange_choice.py``: exchange_model.py plays each scheme's messages in virtual time (no
wall clock: the machine does not matter). A layer's time is that and computing, which takes as long as the best
exchange give or take 3% and which no chooser is told. "cold": a new Chooser, which has measured single messages and
what a neighbour's do to them, chooses for 200 steps of one row. "day": one Chooser for all token counts of a shape,
which come and go in runs of random length, 3000 steps. Over best: of the exchange alone, all steps from the very first,
trials included. AGate: 64 experts top-6 in turn over the MoE workers; rows are as many as a routing in which some
experts are far more popular than others needs, while the chooser expects all to be as likely. Writes
results/exchange_choice.md and .png.
"""

from __future__ import annotations

import functools
import itertools
import random
import statistics
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from exchange_model import FABRICS, Fabric, seconds
from exchange_party import rows_of
from janus_transport.choice import Chooser
from janus_transport.cost import Sizes
from janus_transport.plan import make_plan
from janus_transport.topology import NAMES, Scheme, Topology
from janus_worker.packing import Needs
from machine import write

SHAPES = ((4, 4, 2, 2), (8, 8, 2, 2), (8, 16, 1, 2))
TOKENS = (1, 4, 16, 64, 256, 1024)
HIDDEN = (1024, 7168)
EXPERTS, TOPK = 64, 6
GATES = ("EGate", "AGate")
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


def sizes_of(topology: Topology, hidden: int, gated: bool) -> tuple[Sizes, Sizes]:
    """Of messages as a chooser expects them, and as they are."""
    most, back = 512, 8 * hidden
    if not gated:
        sizes = Sizes(out=4 * hidden, back=back, most=most)
        return sizes, sizes
    n = len(topology.moe)
    needs = Needs([[list(range(rank, EXPERTS, n)) for rank in range(n)]], EXPERTS)
    draw = np.random.default_rng(2)
    popularity = np.log(draw.permutation(1 / np.arange(1, EXPERTS + 1)))
    # Gumbel noise on logarithms: k experts without repetition, each as popular as it is.
    ids = np.argsort(-(popularity + draw.gumbel(size=(4000, EXPERTS))), axis=1)[:, :TOPK]

    def share(ranks: tuple[int, ...]) -> float:
        return len(needs.rows(0, ranks, ids)) / len(ids)

    common = {"out": 4 * hidden + 8 * TOPK, "back": back, "most": most, "ids": 4 * TOPK}
    expected = functools.cache(lambda ranks: needs.share(ranks, TOPK))
    return Sizes(**common, share=expected), Sizes(**common, share=functools.cache(share))


def row_of(fabric: Fabric, topology: Topology, sizes: Sizes, total: int) -> Row:
    """The three plays of each scheme."""
    tokens = rows_of(total, topology.m)
    plans = {scheme: make_plan(scheme, topology, tuple(tokens)) for scheme in Scheme}
    return Row(tokens, {
        scheme: [seconds(plan, topology, tokens, fabric, sizes, seed=seed) for seed in range(3)]
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
        "router", "fabric", "m, n, nodes", "hidden", "tokens", "1pc, us", "2pc-1, us", "2pc-2, us", "predicted",
        "over best", "chosen", "over best", "steps not of the best", "cold, all steps", "day, all steps",
    )  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join(["---"] * len(columns)) + " |"]
    worst = {gate: dict.fromkeys(("predicted", "chosen", "cold", "day"), 0.0) for gate in GATES}
    drawn: dict[tuple[str, tuple[int, ...], int], list[list[float]]] = {}
    for gate, fabric, shape, hidden in itertools.product(GATES, FABRICS, SHAPES, HIDDEN):
        topology, links = spread(*shape), fabric.known()
        sizes, true = sizes_of(topology, hidden, gate == "AGate")
        rows = {total: row_of(fabric, topology, true, total) for total in TOKENS}
        means = day(rows, Chooser(topology, sizes, links=links))
        for total, row in rows.items():
            chooser, times = Chooser(topology, sizes, links=links), row.times
            predicted = chooser.choose(row.tokens, trial=False)[0]
            chosen, mean, strays = cold(row, chooser)
            if gate == "EGate":
                drawn.setdefault((fabric.name, shape, hidden), []).append(times)
            over = {
                "predicted": times[predicted] / min(times) - 1, "chosen": times[chosen] / min(times) - 1,
                "cold": mean / min(times) - 1, "day": means[total] / min(times) - 1,
            }  # fmt: skip
            worst[gate] = {key: max(value, over[key]) for key, value in worst[gate].items()}
            m, n, p, q = shape
            lines.append(
                f"| {gate} | {fabric.name} | {m}, {n}, {p}+{q} | {hidden} | {total} | "
                + " | ".join(f"{1e6 * t:.0f}" for t in times)
                + f" | {NAMES[predicted]} | {over['predicted']:.0%} | {NAMES[chosen]} | {over['chosen']:.0%} | "
                f"{strays} | {over['cold']:.1%} | {over['day']:.1%} |"
            )
    said = "Farthest above the best of the three: " + "; ".join(
        f"{gate}: {w['predicted']:.0%} by prediction alone, {w['chosen']:.0%} by the choice after {STEPS} steps, over "
        f"all steps of a row {w['cold']:.1%} cold and {w['day']:.1%} over a day"
        for gate, w in worst.items()
    ) + ". No step is left out as warm-up. The picture is of EGate."  # fmt: skip
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
