"""Which exchange is chosen on modelled links, and how far that is from the best of the three.

``python benchmarks/bench_exchange_choice.py``: exchange_model.py plays each scheme's messages in virtual time (no
wall clock: the machine does not matter); a Chooser that has measured single messages, and nothing else, chooses for
200 steps. Writes results/exchange_choice.md and .png.
"""

from __future__ import annotations

import itertools
import statistics
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
STEPS = 200


def spread(m: int, n: int, p: int, q: int) -> Topology:
    """m and n workers over p attention and q MoE nodes."""
    return Topology(tuple(f"a{i * p // m}" for i in range(m)), tuple(f"e{i * q // n}" for i in range(n)))


def point(
    fabric: Fabric, shape: tuple[int, int, int, int], hidden: int, total: int
) -> tuple[list[float], Scheme, Scheme, float]:
    """Seconds of each scheme; predicted and learned choice; mean seconds of all steps, trials included."""
    topology, tokens = spread(*shape), rows_of(total, shape[0])
    sizes = {"out": 4 * hidden, "back": 8 * hidden, "most": 512}
    plans = {scheme: make_plan(scheme, topology, tuple(tokens)) for scheme in Scheme}
    played = {
        scheme: [seconds(plan, topology, tokens, fabric, **sizes, seed=seed) for seed in range(3)]
        for scheme, plan in plans.items()
    }
    chooser = Chooser(topology, links=fabric.links, **sizes)
    predicted = chooser.choose(tokens, trial=False)[0]
    spent = 0.0
    for step in range(STEPS):
        scheme, _ = chooser.choose(tokens)
        took = played[scheme][step % 3]
        spent += took
        chooser.observe(tokens, scheme, took)
    chosen = chooser.choose(tokens, trial=False)[0]
    return [statistics.median(played[scheme]) for scheme in Scheme], predicted, chosen, spent / STEPS


@click.command()
def main() -> None:
    """Play; writes results/exchange_choice.md and .png."""
    columns = (
        "fabric", "m, n, nodes", "hidden", "tokens", "1pc, us", "2pc-1, us", "2pc-2, us", "predicted", "over best",
        "chosen", "over best", "all steps over best",
    )  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join(["---"] * len(columns)) + " |"]
    worst = {"predicted": 0.0, "chosen": 0.0, "all": 0.0}
    drawn: dict[tuple[str, tuple[int, ...], int], list[list[float]]] = {}
    for fabric, shape, hidden, total in itertools.product(FABRICS, SHAPES, HIDDEN, TOKENS):
        times, predicted, chosen, mean = point(fabric, shape, hidden, total)
        drawn.setdefault((fabric.name, shape, hidden), []).append(times)
        over = {
            "predicted": times[predicted] / min(times) - 1, "chosen": times[chosen] / min(times) - 1,
            "all": mean / min(times) - 1,
        }  # fmt: skip
        worst = {key: max(worst[key], over[key]) for key in worst}
        m, n, p, q = shape
        lines.append(
            f"| {fabric.name} | {m}, {n}, {p}+{q} | {hidden} | {total} | "
            + " | ".join(f"{1e6 * t:.0f}" for t in times)
            + f" | {NAMES[predicted]} | {over['predicted']:.0%} | {NAMES[chosen]} | {over['chosen']:.0%} | "
            f"{over['all']:.0%} |"
        )
    said = (
        f"Farthest above the best of the three: {worst['predicted']:.0%} by prediction alone, {worst['chosen']:.0%} by "
        f"the choice after trials, {worst['all']:.0%} over all {STEPS} steps with their trials."
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

    figure, axes = pyplot.subplots(len(FABRICS), len(SHAPES), figsize=(13, 7), squeeze=False)
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
