"""The exchange between nodes: 1PC, 2PC case 1 and case 2 against tokens and hidden size, and what ``auto`` makes of it.

Workers are processes over UCX. Nodes are network and IPC namespaces on this machine (root needed): shared memory
inside, tcp over virtual interfaces between them. Nothing is computed between receiving and answering. With
--containers messages are counted between containers too, whose namespaces the workers join. Written to
results/exchange_nodes.md and .png.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from exchange_party import Task, most_rows, party, rows_of
from janus_testing.containers import Containers
from janus_testing.namespaces import Nodes
from janus_transport.choice import Chooser
from janus_transport.cost import DEFAULT, Links, Sizes
from janus_transport.framing import HEADER_BYTES
from janus_transport.plan import make_plan, traffic
from janus_transport.topology import NAMES, Scheme, Topology
from machine import write

DEADLINE_S = 540.0
STEPS = 100
"""Of a load, after which its choice is reported."""
SHAPES = ((4, 4, (2, 2)), (8, 8, (2, 2)), (8, 16, (1, 2)))
"""m, n, nodes at which messages and bytes are counted."""


def measure(
    m: int,
    n: int,
    nodes: tuple[int, int],
    hidden: int,
    tokens: tuple[int, ...],
    rounds: int,
    count: int,
    place: Callable[[tuple[str, ...]], Nodes | Containers] = Nodes,
) -> tuple[dict[tuple[int, int], list[float]], dict[tuple[int, int], list[int]], Links]:
    """Seconds by (rows, scheme) as attention rank 0 sees them, messages and bytes between nodes out and back, links.

    ``place`` makes the nodes of these labels.
    """
    attention = tuple(f"a{i * nodes[0] // m}" for i in range(m))
    moe = tuple(f"e{i * nodes[1] // n}" for i in range(n))
    context = multiprocessing.get_context("spawn")
    deadline = time.monotonic() + DEADLINE_S
    pipes: list[Any] = []
    runners: list[Any] = []

    def hear(i: int) -> Any:
        if not pipes[i].poll(max(0.0, deadline - time.monotonic())):
            raise click.ClickException(f"worker {i} said nothing in time")
        said = pipes[i].recv()
        if isinstance(said, tuple) and said[0] == "error":
            raise click.ClickException(f"worker {i} failed:\n{said[1]}")
        return said

    with place((*attention, *moe)) as made:
        try:
            for me, label in enumerate((*attention, *moe)):
                ours, theirs = context.Pipe()
                task = Task(
                    me=me, attention=attention, moe=moe, hidden=hidden, tokens=tokens, rounds=rounds, count=count,
                    pid=made.pid(label),
                )  # fmt: skip
                runners.append(context.Process(target=party, args=(theirs, task), daemon=True))
                runners[-1].start()
                theirs.close()
                pipes.append(ours)
            addresses = [hear(i) for i in range(m + n)]
            for pipe in pipes:
                pipe.send(addresses)
            for i in range(m + n):
                hear(i)
            for pipe in pipes:
                pipe.send("go")
            said = [hear(i) for i in range(m + n)]
            for pipe in pipes:
                with contextlib.suppress(OSError):
                    pipe.send("end")
            for runner in runners:
                runner.join(10)
        finally:
            for runner in runners:
                if runner.is_alive():
                    runner.kill()
    crossed: dict[tuple[int, int], list[int]] = {}
    for i, (_, sent, _) in enumerate(said):
        for key, (messages, size) in sent.items():
            row = crossed.setdefault(key, [0, 0, 0, 0])
            row[2 * (i >= m)] += messages
            row[2 * (i >= m) + 1] += size
    topology = Topology(attention, moe)
    for (total, scheme), row in crossed.items():
        per_rank = rows_of(total, m)
        plan = make_plan(Scheme(scheme), topology, tuple(per_rank))
        most = most_rows(tokens, attention)
        ways = [traffic(plan, topology, per_rank, row_bytes=b * hidden, most=most) for b in (4, 8)]
        expected = [x for way in ways for x in (way.inter_messages, way.inter_bytes)]
        if row != expected:
            raise click.ClickException(
                f"{NAMES[Scheme(scheme)]}, {total} rows: counted {row}, by plan {expected}"
            )
    return said[0][0], crossed, next((links for _, _, links in said if links is not None), DEFAULT)


def auto(
    samples: dict[tuple[int, int], list[float]], total: int, chooser: Chooser, m: int
) -> tuple[Scheme, Scheme]:
    """What the prediction chooses, and what measurement makes of it, fed with the samples of each scheme in turn."""
    tokens = rows_of(total, m)
    predicted = chooser.choose(tokens, trial=False)[0]
    feeds: dict[Scheme, Iterator[float]] = {s: itertools.cycle(samples[total, s]) for s in Scheme}
    for _ in range(STEPS):
        scheme, _ = chooser.choose(tokens)
        chooser.observe(tokens, scheme, next(feeds[scheme]))
    return predicted, chooser.choose(tokens, trial=False)[0]


def formula(scheme: Scheme, m: int, n: int, nodes: tuple[int, int], rows: int, row: int) -> tuple[int, int]:
    """Messages and bytes between nodes in one direction, as docs/exchange.md has them: ``rows`` of each sender."""
    (p, q), header = nodes, HEADER_BYTES
    return {
        Scheme.ONE_PHASE: (m * n, m * n * (header + rows * row)),
        Scheme.AGGREGATE: (p * q, p * q * header + m * q * rows * row),
        Scheme.ONE_TO_ONE: (m * q, m * q * (header + rows * row)),
    }[scheme]


def counted(places: dict[str, Callable[[tuple[str, ...]], Nodes | Containers]]) -> list[str]:
    """A table of what is counted at each shape, on each kind of nodes; fails where it is not what the formulas say."""
    lines = [
        "| nodes are | m, n, nodes | scheme | messages out | bytes out | messages back | bytes back | by formula |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    total, hidden = 32, 64
    for (kind, place), (m, n, nodes) in itertools.product(places.items(), SHAPES):
        _, crossed, _ = measure(m, n, nodes, hidden, (total,), rounds=1, count=5, place=place)
        for (_, scheme), row in sorted(crossed.items()):
            ways = [formula(Scheme(scheme), m, n, nodes, total // m, size * hidden) for size in (4, 8)]
            expected = [*ways[0], *ways[1]]
            if row != expected:
                raise click.ClickException(f"{m}, {n}, {nodes}: counted {row}, by formula {expected}")
            lines.append(
                f"| {kind} | {m}, {n}, {nodes[0]}+{nodes[1]} | {NAMES[Scheme(scheme)]} | "
                + " | ".join(str(x) for x in row)
                + " | the same |"
            )
    return lines


@click.command()
@click.option("--tokens", default="1,4,16,64,256,1024", show_default=True)
@click.option("--hidden", default="1024,2048,4096,7168", show_default=True)
@click.option("--rounds", default=4, show_default=True, help="Turns of each scheme.")
@click.option("--count", default=15, show_default=True, help="Layers per turn; fewer where they are large.")
@click.option("--m", default=4, show_default=True)
@click.option("--n", default=4, show_default=True)
@click.option("--nodes", default="2,2", show_default=True, help="Attention and MoE nodes.")
@click.option("--containers", is_flag=True, help="Count between containers too; needs a running engine.")
@click.option("--image", default="busybox", show_default=True, help="Of those: anything that has sleep.")
@click.option("--counts", is_flag=True, help="Only count messages; nothing is written.")
def main(
    tokens: str, hidden: str, rounds: int, count: int, m: int, n: int, nodes: str, containers: bool, image: str,
    counts: bool,
) -> None:  # fmt: skip
    """Measure; writes results/exchange_nodes.md and .png."""
    began = time.monotonic()
    places: dict[str, Callable[[tuple[str, ...]], Nodes | Containers]] = {"namespaces": Nodes}
    if containers:
        places["containers"] = functools.partial(Containers, image=image)
    table = counted(places)
    click.echo("\n".join(table))
    if counts:
        return
    per = tuple(int(x) for x in nodes.split(","))
    asked = tuple(int(x) for x in tokens.split(","))
    lines = [
        f"m = {m}, n = {n}, nodes {per[0]}+{per[1]}; load average at the start {os.getloadavg()[0]:.1f}.",
        "",
        "| hidden | tokens | 1pc, us | 2pc-1, us | 2pc-2, us | predicted choice | choice | over the best |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows: list[tuple[int, int, list[float]]] = []
    worst = 0.0
    for width in (int(x) for x in hidden.split(",")):
        samples, _, links = measure(m, n, (per[0], per[1]), width, asked, rounds, count)
        topology = Topology(
            tuple(f"a{i * per[0] // m}" for i in range(m)), tuple(f"e{i * per[1] // n}" for i in range(n))
        )
        click.echo(f"hidden {width}: inside {links.intra.describe()}; between {links.inter.describe()}")
        sizes = Sizes(out=4 * width, back=8 * width, most=most_rows(asked, topology.attention))
        chooser = Chooser(topology, sizes, links=links)
        for total in asked:
            medians = [statistics.median(samples[total, scheme]) * 1e6 for scheme in Scheme]
            predicted, chosen = auto(samples, total, chooser, m)
            over = medians[chosen] / min(medians) - 1
            worst = max(worst, over)
            rows.append((width, total, medians))
            lines.append(
                f"| {width} | {total} | " + " | ".join(f"{x:.0f}" for x in medians)
                + f" | {NAMES[predicted]} | {NAMES[chosen]} | {100 * over:.0f}% |"
            )  # fmt: skip
            click.echo(lines[-1])
    lines += [
        "", f"The choice is at most {100 * worst:.0f}% above the best of the three.",
        f"All of this took {time.monotonic() - began:.0f} s.", "", "## Messages and bytes",
        "Between nodes, one layer, 32 rows of hidden 64: by the transport's count and docs/exchange.md's formulas.",
        "", *table,
    ]  # fmt: skip
    picture(rows, Path(__file__).parent / "results" / "exchange_nodes.png")
    text = (
        (__doc__ or "").split("\n\n", 1)[1].strip()
        + "\n\n![medians](exchange_nodes.png)\n\n"
        + "\n".join(lines)
    )
    click.echo(
        write(
            "exchange_nodes",
            "The exchange between nodes",
            "python " + " ".join(["benchmarks/bench_exchange_nodes.py", *sys.argv[1:]]),
            text,
        )
    )


def picture(rows: list[tuple[int, int, list[float]]], path: Path) -> None:
    """Medians against tokens, a panel per hidden size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    widths = list(dict.fromkeys(row[0] for row in rows))
    figure, axes = pyplot.subplots(
        1, len(widths), figsize=(4.2 * len(widths), 3.6), squeeze=False, sharey=True
    )
    for ax, width in zip(axes[0], widths, strict=True):
        here = [row for row in rows if row[0] == width]
        for scheme in Scheme:
            ax.plot([r[1] for r in here], [r[2][scheme] for r in here], marker="o", label=NAMES[scheme])
        ax.set(title=f"hidden {width}", xlabel="tokens", xscale="log", yscale="log")
        ax.legend()
    axes[0][0].set_ylabel("one layer, out and back, us")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
