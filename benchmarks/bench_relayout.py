"""Re-layout under load: gaps between tokens while experts load and the cohort switches, against quiet minutes.

``python benchmarks/bench_relayout.py --model .janus/demo``: a real mesh under the supervisor, streams without end,
and in turns a short quiet window and one of the same length that begins with asking the scheduler for another
placement, taken at random. What is compared is each window with its neighbour, so that a machine that is busy with
other work for a while is so in both. Every stream is compared token by token with an undisturbed run. Writes
results/relayout.md and .png.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
from janus_runtime.coordination import Coordination
from janus_runtime.settings import ServiceSettings
from janus_testing import LocalMesh
from janus_testing.load import Load, make_requests
from janus_wire.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc
from machine import write

Placement = list[list[list[int]]]


@dataclass
class Window:
    """A stretch of time, monotonic; one in which the placement changes begins with asking for it."""

    begin: float
    end: float = 0.0
    answered: float = 0.0
    loaded: int = 0
    """Replicas."""


class Scheduler:
    """The scheduler of a mesh: what is in force, and another placement please."""

    def __init__(self, mesh: LocalMesh, seed: int) -> None:
        address = next(s.address for s in mesh.services if s.role == "scheduler")
        self._stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(grpc.insecure_channel(address))
        self._rng = random.Random(seed)

    def layout(self) -> common_pb2.Layout:
        """The layout in force."""
        return self._stub.GetLayout(scheduler_pb2.GetLayoutRequest(), timeout=10).layout

    def shuffled(self, layers: int | None) -> tuple[Placement, int]:
        """The layout in force with the experts of ``layers`` layers (None: all) dealt anew, and how many replicas
        that loads."""
        layout = self.layout()
        now = [[list(row.experts) for row in layer.instances] for layer in layout.layers]
        chosen = range(len(now)) if layers is None else self._rng.sample(range(len(now)), layers)
        loads = 0
        for layer in chosen:
            before = [set(row) for row in now[layer]]
            now[layer] = deal(self._rng, layout.num_experts, [len(row) for row in now[layer]])
            loads += sum(len(set(row) - had) for row, had in zip(now[layer], before, strict=True))
        return now, loads

    def move(self, placement: Placement) -> int:
        """Replicas loaded; raises when it was not done."""
        layers = [
            common_pb2.LayerPlacement(instances=[common_pb2.InstancePlacement(experts=row) for row in layer])
            for layer in placement
        ]
        answer = self._stub.Rebalance(scheduler_pb2.RebalanceRequest(placement=layers), timeout=120)
        if not answer.changed:
            raise RuntimeError(answer.reason)
        return int(answer.replicas_loaded)


def deal(rng: random.Random, experts: int, rooms: Sequence[int]) -> list[list[int]]:
    """Every expert somewhere, the other slots at random, no expert twice on an instance."""
    rows: list[list[int]] = [[] for _ in rooms]
    for expert in rng.sample(range(experts), experts):
        rng.choice([g for g, room in enumerate(rooms) if len(rows[g]) < room for _ in range(room)])
        fits = [g for g, room in enumerate(rooms) if len(rows[g]) < room]
        rows[rng.choice(fits)].append(expert)
    for row, room in zip(rows, rooms, strict=True):
        row += rng.sample([e for e in range(experts) if e not in row], room - len(row))
    return rows


def gaps(load: Load, windows: Sequence[Window]) -> np.ndarray:
    """Milliseconds between two tokens of a stream, of those whose second came in one of the windows."""
    found = []
    for stream in load.streams:
        times = np.array(stream.times)
        for window in windows:
            inside = (times[1:] >= window.begin) & (times[1:] <= window.end)
            found.append(np.diff(times)[inside] * 1e3)
    return np.concatenate(found)


def tpot(load: Load, windows: Sequence[Window]) -> np.ndarray:
    """Milliseconds per token of each stream in each window, of those with at least five tokens there."""
    found = []
    for stream in load.streams:
        times = np.array(stream.times)
        for window in windows:
            inside = (times[1:] >= window.begin) & (times[1:] <= window.end)
            if inside.sum() >= 5:
                found.append(np.diff(times)[inside].mean() * 1e3)
    return np.array(found)


def measure(
    load: Load, scheduler: Scheduler, rounds: int, seconds: float, layers: int | None
) -> tuple[list[Window], list[Window]]:
    """Quiet windows, and windows that begin with a change, in turns."""
    scheduler.move(scheduler.shuffled(layers)[0])  # the first one imports what the others need
    quiet, busy = [], []
    for _ in range(rounds):
        window = Window(time.monotonic())
        time.sleep(seconds)
        window.end = time.monotonic()
        quiet.append(window)
        placement, _ = scheduler.shuffled(layers)
        window = Window(time.monotonic())
        window.loaded = scheduler.move(placement)
        window.answered = time.monotonic()
        time.sleep(max(0.0, window.begin + seconds - window.answered))
        window.end = time.monotonic()
        busy.append(window)
    return quiet, busy


async def counted(redis_url: str, attention: int) -> tuple[float, float]:
    """Switches that attention workers timed, and seconds that those have cost by their count."""
    coordination = await Coordination.connect(ServiceSettings(redis_url=redis_url, worker_id="bench"))
    try:
        last = [await coordination.read_stats(f"attention-{i}", window_s=60) for i in range(attention)]
    finally:
        await coordination.close()
    values = [samples[-1].values for samples in last if samples]
    return sum(v["layout_switches"] for v in values), sum(v["layout_switch_seconds"] for v in values)


def load_average() -> str:
    """Of the last 1 and 15 minutes: what else ran."""
    one, _, fifteen = os.getloadavg()
    return f"{one:.1f} over the last minute, {fifteen:.1f} over the last 15"


def picture(load: Load, quiet: Sequence[Window], busy: Sequence[Window], path: Path) -> None:
    """Distributions of the gaps, and every gap over the time of the last quiet and the last busy window."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", width_ratios=(1, 2))
    for label, windows in (("quiet", quiet), ("changing", busy)):
        values = np.sort(gaps(load, windows))
        left.plot(values, 1 - np.arange(len(values)) / len(values), label=label)
    left.set(yscale="log", xlabel="gap between two tokens, ms", ylabel="share of gaps that are longer")
    left.set_xlim(left=0)
    left.legend()
    shown = min(4, len(quiet))
    begin, end = quiet[-shown].begin, busy[-1].end
    for stream in load.streams:
        times = np.array(stream.times)
        inside = (times[1:] >= begin) & (times[1:] <= end)
        right.plot(times[1:][inside] - begin, np.diff(times)[inside] * 1e3, ".", ms=3, color="tab:blue")
    for window in busy[-shown:]:
        right.axvspan(window.begin - begin, window.answered - begin, color="tab:orange", alpha=0.5, lw=0)
    right.set(xlabel="seconds (orange: from asking for a placement to having it)", ylabel="gap, ms")
    right.set_ylim(bottom=0)
    figure.savefig(path, dpi=110)


def report(load: Load, quiet: Sequence[Window], busy: Sequence[Window]) -> list[str]:
    """Rows of the table."""
    rows = ["| | quiet | changing | ratio |", "| --- | --- | --- | --- |"]
    for name, values in (("gap", gaps), ("TPOT of a stream in a window", tpot)):
        calm, moved = values(load, quiet), values(load, busy)
        for q in (50, 90, 99):
            a, b = np.percentile(calm, q), np.percentile(moved, q)
            rows.append(f"| {name}, p{q}, ms | {a:.1f} | {b:.1f} | {b / a:.2f} |")
    pairs = [[tpot(load, [w]) for w in pair] for pair in zip(quiet, busy, strict=True)]
    ratio = np.array([b.mean() / a.mean() for a, b in pairs if len(a) and len(b)] or [np.nan])
    rows.append(
        f"| TPOT of a window over that of the quiet one before it, median (quartiles) | | | {np.median(ratio):.2f} "
        f"({np.percentile(ratio, 25):.2f} to {np.percentile(ratio, 75):.2f}) |"
    )
    worst = [[gaps(load, [w]).max() for w in windows] for windows in (quiet, busy)]
    longer = np.array(worst[1]) - np.array(worst[0])
    a, b = np.median(worst[0]), np.median(worst[1])
    rows += [
        f"| longest gap of a window, median, ms | {a:.0f} | {b:.0f} | {b / a:.2f} |",
        "",
        (
            f"The longest gap of a changing window less that of the quiet one before it: median "
            f"{np.median(longer):+.0f} ms, quartiles {np.percentile(longer, 25):+.0f} and "
            f"{np.percentile(longer, 75):+.0f} ms."
        ),
    ]
    return rows


@click.command()
@click.option("--model", default=".janus/demo", show_default=True, help="Checkpoint directory.")
@click.option("--attention", default=1, show_default=True)
@click.option("--experts", default=2, show_default=True)
@click.option("--slots", default=5, show_default=True, help="Of each MoE worker and layer.")
@click.option("--streams", default=4, show_default=True)
@click.option("--rounds", default=25, show_default=True, help="Pairs of a quiet and a changing window.")
@click.option("--seconds", default=3.0, show_default=True, help="Of a window.")
@click.option("--layers", type=int, help="Layers that a change deals anew.  [default: all]")
@click.option("--dry", is_flag=True, help="Write nothing.")
def main(
    model: str, attention: int, experts: int, slots: int, streams: int, rounds: int, seconds: float,
    layers: int | None, dry: bool,
) -> None:  # fmt: skip
    """Measure and write the results."""
    env = {"JANUS_SCHEDULER_REBALANCE_S": "0"}
    requests = make_requests(streams, seed=5, tokens=(150, 250))
    with LocalMesh(model, attention=attention, experts=experts, slots=slots, env=env) as mesh:
        load = Load(mesh.grpc, requests, at_once=streams)
        load.reference()
        scheduler = Scheduler(mesh, seed=1)
        with load:
            load.wait_tokens(20 * streams)
            quiet, busy = measure(load, scheduler, rounds, seconds, layers)
            switches, cost = asyncio.run(counted(mesh.redis_url, attention))
        problems = list(load.problems())
    if problems:
        raise click.ClickException("; ".join(problems[:3]))
    took = np.array([w.answered - w.begin for w in busy])
    which = "all layers" if layers is None else f"{layers} layers"
    intro = (
        f"{attention} attention and {experts} MoE workers with {slots} slots, {streams} streams; {rounds} times a "
        f"quiet window of {seconds:g} s and one that begins with a change: the experts of {which} dealt anew, "
        f"{np.mean([w.loaded for w in busy]):.0f} replicas loaded by each, {np.median(took):.2f} s from asking for "
        f"it to having it (longest {took.max():.2f} s). The machine's load at the end: {load_average()}."
    )
    counts = (
        f"By the attention workers' own count a switch delayed the step after it by {1e3 * cost / switches:.0f} ms "
        f"(mean of {switches:.0f})."
        if switches
        else "No switch fell between two steps of as many tokens."
    )
    body = "\n".join(
        [
            intro,
            "",
            *report(load, quiet, busy),
            counts,
            "",
            f"All {len(load.streams)} streams have the tokens of an undisturbed run.",
            "",
            "![gaps](relayout.png)",
        ]
    )
    click.echo(body)
    if dry:
        return
    picture(load, quiet, busy, Path(__file__).parent / "results" / "relayout.png")
    click.echo(
        f"written to {write('relayout', 'Re-layout under load', 'python benchmarks/bench_relayout.py', body)}"
    )


if __name__ == "__main__":
    main()
