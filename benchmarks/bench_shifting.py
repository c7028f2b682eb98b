"""Does the placement follow the topics, and does it stay when nothing changes? Virtual time, real decisions.

``python benchmarks/bench_shifting.py``: hours of stationary routing, and routing whose topic changes every minute,
through the real Recorder, window, search and judgement. Writes results/shifting.md and .png.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
import numpy as np
from janus_placement import Prices
from janus_testing.rebalancing import Look, Topics, VirtualMesh
from machine import write

PRICES = Prices(seconds_per_expert=0.3e-3, steps_per_second=20.0, load_seconds=0.002, switch_seconds=0.1)
CASES = (
    # experts, top-k, layers, instances, slots, tokens of a step
    (8, 2, 8, 3, 4, 8),
    (8, 2, 8, 6, 2, 16),
    (64, 8, 4, 6, 12, 16),
    (64, 8, 4, 8, 9, 16),
    (128, 8, 4, 8, 18, 32),
    (160, 6, 4, 6, 27, 64),
)


STATIONARY = (
    "a_max, round robin", "after 2 min", "at the end", "best known", "moves after 2 min", "useless", "useless an hour",
)  # fmt: skip


def virtual(case: tuple[int, ...], every_s: float, seed: int) -> VirtualMesh:
    experts, top_k, layers, instances, slots, batch = case
    return VirtualMesh(
        Topics(experts, top_k, layers, seed=seed), instances, slots, batch, PRICES, every_s=every_s, seed=seed
    )


def name(case: tuple[int, ...]) -> str:
    return "| {} top-{} | {} | {} x {} | {} ".format(*case)


def stationary(case: tuple[int, ...], hours: float, every_s: float) -> str:
    """A row: what the first two minutes brought, and what was moved after them."""
    looks = virtual(case, every_s, 0).run(3600 * hours, lambda now: None)
    first = [look for look in looks if look.time_s <= 120]
    later = [look for look in looks if look.time_s > 120]
    moves = [look for look in later if look.moved]
    useless = [look for look in moves if look.a_max_next > look.a_max - 0.01]
    return (
        f"{name(case)}| {first[0].a_max:.2f} | {first[-1].a_max_next:.2f} | {looks[-1].a_max_next:.2f} | "
        f"{looks[-1].best:.2f} | {len(moves)} | {len(useless)} | {len(useless) / hours:.2f} |"
    )


def shifting(case: tuple[int, ...], minutes: int, every_s: float) -> tuple[str, list[Look]]:
    """A row: a_max by the number of looks since the topic changed."""
    period = 60.0
    looks = virtual(case, every_s, 1).run(60.0 * minutes, lambda now: int(now // period) % 6)
    per_topic = round(period / every_s)
    cells = []
    for since in range(per_topic):
        group = [look for i, look in enumerate(looks) if i % per_topic == since and i >= per_topic]
        cells.append(
            f"{np.mean([x.a_max for x in group]):.2f} -> {np.mean([x.a_max_next for x in group]):.2f}"
        )
    later = looks[per_topic:]
    best = np.mean([x.best for x in later])
    loads = np.sum([x.loads for x in later]) / (minutes - 1)
    return f"{name(case)}| {' | '.join(cells)} | {best:.2f} | {loads:.0f} |", looks


def picture(looks: list[Look], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(10, 3.6), layout="constrained")
    times = [look.time_s / 60 for look in looks]
    steps = [t for t in times for _ in (0, 1)]
    axis.plot(steps, [v for x in looks for v in (x.a_max, x.a_max_next)], label="in force", lw=1)
    axis.plot(
        times,
        [x.best for x in looks],
        drawstyle="steps-pre",
        color="tab:green",
        label="made for the topic",
        lw=1,
    )
    for minute in range(int(max(times)) + 1):
        axis.axvline(minute, color="lightgray", lw=0.5, zorder=0)
    axis.set(xlabel="minutes (lines: the topic changes)", ylabel="mean a_max")
    axis.legend()
    figure.savefig(path, dpi=110)


@click.command()
@click.option("--hours", default=4.0, show_default=True, help="Of stationary routing.")
@click.option("--minutes", default=20, show_default=True, help="Of shifting routing.")
@click.option("--every", default=30.0, show_default=True, help="Seconds between two looks; as --rebalance-s.")
@click.option("--dry", is_flag=True, help="Write nothing.")
def main(hours: float, minutes: int, every: float, dry: bool) -> None:
    """Simulate and write the results."""
    began = time.process_time()
    head = "| experts | layers | instances x slots | tokens a step "
    per_topic = round(60 / every)
    looks_head = " | ".join(f"look {i + 1} after the change" for i in range(per_topic))
    parts = [
        f"Prices: {PRICES}. Synthetic routing of six topics.",
        "",
        f"## Stationary, {hours:g} hours, a look every {every:g} s",
        "",
        f"{head}{' '.join(f'| {title}' for title in STATIONARY)} |",
        "| --- " * 11 + "|",
    ]
    with click.progressbar(CASES, label="stationary") as bar:
        parts += [stationary(case, hours, every) for case in bar]
    parts += [
        "",
        "Useless: the a_max of the true routing falls by less than 0.01.",
        "",
        f"## The topic of all tokens changes every minute, {minutes} minutes",
        "",
        f"{head}| {looks_head} | made for the topic | replicas loaded a minute |",
        "| --- " * (6 + per_topic) + "|",
    ]
    kept: list[Look] = []
    with click.progressbar(CASES, label="shifting") as bar:
        for case in bar:
            row, looks = shifting(case, minutes, every)
            parts.append(row)
            kept = looks if case == CASES[3] else kept
    parts += [
        "",
        "Before -> after each look, mean over layers and topics, on fresh batches of the topic.",
        "",
        "![a_max over time: 64 experts, 8 x 9](shifting.png)",
        "",
        f"{time.process_time() - began:.0f} s of processor time.",
    ]
    body = "\n".join(parts)
    click.echo(body)
    if not dry:
        picture(kept, Path(__file__).parent / "results" / "shifting.png")
        click.echo(
            f"written to {write('shifting', 'Placement and change', 'python benchmarks/bench_shifting.py', body)}"
        )


if __name__ == "__main__":
    main()
