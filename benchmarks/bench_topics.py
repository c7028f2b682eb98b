"""Placement follows the topic on a real mesh: processes, exchange, reports, search, live re-layout.

``python benchmarks/bench_topics.py``: a small random model whose router goes by topic (`janus_testing.topics`), streams
that all change their topic every minute, and a look at the placement every half minute, as the scheduler's own. What
is told is the a_max that the MoE workers counted. Then streams of all topics at once, nothing changing, and a look
every few seconds: what is moved then, and what of it was useless. Writes results/topics.md and .png.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
from janus_placement import LayerRouting, Placement, Pool, Report, expected_a_max, place, to_hosted
from janus_runtime.coordination import Coordination
from janus_runtime.settings import ServiceSettings
from janus_testing import LocalMesh
from janus_testing.topics import Topical, make_topical
from janus_wire.v1 import common_pb2, generation_pb2, generation_pb2_grpc, scheduler_pb2, scheduler_pb2_grpc
from machine import write

SHAPE = Topical(experts=32, top_k=4, layers=4, topics=6)
INSTANCES, SLOTS = 4, 10
TOPIC_S, LOOK_S, PHASE_S = 60.0, 30.0, 15.0
"""A topic's length, between two looks, and from a change of topic to the first look."""
SETTLE_S = 60.0
EXPERT_US = 1500.0


@dataclass
class Streams:
    """Streams without end, of the topic that is given; None: each of one of its own."""

    address: str
    topic: int | None
    count: int
    failed: list[str] = field(default_factory=list)
    finished: int = 0

    async def run(self) -> None:
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
            await asyncio.gather(*(self._one(stub, random.Random(i)) for i in range(self.count)))

    async def _one(self, stub: Any, rng: random.Random) -> None:
        while True:
            topic = rng.randrange(SHAPE.topics) if self.topic is None else self.topic
            ids = [rng.choice(SHAPE.tokens_of(topic)) for _ in range(rng.randint(4, 12))]
            sampling = common_pb2.SamplingParams(
                max_tokens=rng.randint(20, 40), ignore_eos=True, temperature=1.0, seed=rng.getrandbits(31)
            )
            request = generation_pb2.GenerateRequest(
                prompt_tokens=common_pb2.TokenIds(ids=ids), sampling=sampling
            )
            try:
                async for _ in stub.Generate(request, timeout=60):
                    pass
                self.finished += 1
            except grpc.aio.AioRpcError as error:
                self.failed.append(f"{error.code().name}: {error.details()}")
                await asyncio.sleep(1)


@dataclass
class Watch:
    """What the mesh reports, kept by when it was."""

    coordination: Coordination
    a_max: list[tuple[float, float, float]] = field(default_factory=list)
    """(monotonic time, a_max_sum, layer_passes), cumulative."""
    routing: list[tuple[float, Report]] = field(default_factory=list)
    _position: str = "0"

    async def run(self) -> None:
        last = 0.0
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            samples = await self.coordination.read_stats("moe-0", window_s=5)
            if samples and samples[-1].time_s > last:
                last, values = samples[-1].time_s, samples[-1].values
                self.a_max.append((now - (time.time() - last), values["a_max_sum"], values["layer_passes"]))
            self._position, entries = await self.coordination.read_routing(self._position)
            self.routing += [(now, Report.from_fields(fields)) for fields in entries]

    def mean_a_max(self, begin: float, end: float) -> float:
        """Counted between two monotonic times."""
        inside = [row for row in self.a_max if begin <= row[0] <= end]
        if len(inside) < 2 or inside[-1][2] <= inside[0][2]:
            return float("nan")
        return (inside[-1][1] - inside[0][1]) / (inside[-1][2] - inside[0][2])

    def seen(self, spans: Sequence[tuple[float, float]]) -> tuple[list[LayerRouting], int]:
        """Routing of each layer within spans of time, and tokens of a step."""
        reports = [r for at, r in self.routing if any(a <= at <= b for a, b in spans)]
        layers = [
            LayerRouting(np.concatenate([r.samples for r in reports if r.layer == layer]), SHAPE.experts)
            for layer in range(SHAPE.layers)
        ]
        batches = sum(r.batches for r in reports)
        return layers, max(1, round(sum(r.tokens for r in reports) / max(1, batches)))


class Scheduler:
    """Asked to look at the placement, as it would by itself."""

    def __init__(self, address: str) -> None:
        self._stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(grpc.aio.insecure_channel(address))

    async def look(self) -> Any:
        return await self._stub.Rebalance(scheduler_pb2.RebalanceRequest(), timeout=60)

    async def placement(self) -> list[Placement]:
        layout = (await self._stub.GetLayout(scheduler_pb2.GetLayoutRequest(), timeout=10)).layout
        return [tuple(tuple(row.experts) for row in layer.instances) for layer in layout.layers]


@dataclass
class Look:
    """One look at the placement."""

    at: float
    before: list[Placement]
    after: list[Placement]
    loaded: int
    reason: str

    @property
    def moved(self) -> bool:
        return self.before != self.after


async def look(scheduler: Scheduler) -> Look:
    before = await scheduler.placement()
    answer = await scheduler.look()
    loaded = answer.replicas_loaded if answer.changed else 0
    return Look(time.monotonic(), before, await scheduler.placement(), loaded, answer.reason)


async def until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.monotonic()))


async def drive(
    mesh: LocalMesh, minutes: int, still_minutes: float, every_s: float, count: int
) -> tuple[Watch, Streams, list[float], list[list[Look]], list[Look]]:
    """Watch, streams, the changes of topic, the looks at each topic, and the looks while nothing changed."""
    coordination = await Coordination.connect(ServiceSettings(redis_url=mesh.redis_url, worker_id="bench"))
    watch, streams = Watch(coordination), Streams(mesh.grpc, 0, count)
    scheduler = Scheduler(mesh.service("scheduler-0").address)
    tasks = [asyncio.create_task(watch.run()), asyncio.create_task(streams.run())]
    changes: list[float] = []
    topics: list[list[Look]] = []
    still: list[Look] = []
    try:
        begin = time.monotonic()
        for minute in range(minutes):
            streams.topic = minute % SHAPE.topics
            start = begin + minute * TOPIC_S
            changes.append(start)
            topics.append([])
            for number in range(int(TOPIC_S / LOOK_S)):
                await until(start + PHASE_S + number * LOOK_S)
                topics[-1].append(await look(scheduler))
            await until(start + TOPIC_S)
            print(f"minute {minute}: {[x.reason for x in topics[-1]]}", flush=True)
        streams.topic = None
        begin = time.monotonic()
        for number in range(int((60 * still_minutes + SETTLE_S) / every_s)):
            await until(begin + (number + 1) * every_s)
            still.append(await look(scheduler))
        changes.append(begin)
        await asyncio.sleep(2)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await coordination.close()
    return watch, streams, changes, topics, still


def known(layers: Sequence[LayerRouting], batch: int, placement: Sequence[Placement] | None) -> float:
    """Mean a_max over the layers: of ``placement``, or of one made from half of this routing, on the other half."""
    pool, values = Pool(num_experts=SHAPE.experts, slots=(SLOTS,) * INSTANCES), []
    for layer, routing in enumerate(layers):
        first, second = routing.halves()
        if placement is None:
            made = place(pool, first, first.draw([batch], 1000, layer + 1)).placement
        else:
            made = placement[layer]
        sets = second.draw([batch], 1000, layer)
        values.append(expected_a_max(to_hosted(made, SHAPE.experts), sets))
    return float(np.mean(values))


def shifting(watch: Watch, changes: list[float], topics: list[list[Look]]) -> list[str]:
    """Rows: counted a_max before a look at the new topic, after the first, after the second; the first topic apart."""
    rows, columns = [], []
    for i, (start, looks) in enumerate(zip(changes[:-1], topics, strict=True)):
        edges = [start + 4, *(x.at for x in looks), start + TOPIC_S - 0.5]
        counted = [watch.mean_a_max(a + 1.5, b) for a, b in itertools.pairwise(edges)]
        layers, batch = watch.seen([(start + 4, start + TOPIC_S)])
        first = known(layers, batch, looks[0].before)
        best = known(layers, batch, None)
        if i:
            columns.append([*counted, first, known(layers, batch, looks[-1].after), best])
        loads = " + ".join(str(x.loaded) for x in looks)
        cells = [f"{v:.2f}" for v in (*counted, first, best)]
        rows.append(f"| {i + 1} | {i % SHAPE.topics} | {' | '.join(cells)} | {loads} |")
    means = np.nanmean(columns, axis=0)
    lost, left = means[0] - means[-1], means[2] - means[-1]
    rows += [
        "",
        (
            f"Means from the second minute on: {means[0]:.2f} before a look, {means[1]:.2f} after one, {means[2]:.2f} "
            f"after two; {means[-1]:.2f} made for the topic. Of the {lost:.2f} that a new topic costs, "
            f"{1 - left / lost:.0%} are won back after two looks. Replayed on all the topic's routing: "
            f"{means[-3]:.2f} before, {means[-2]:.2f} after two looks."
        ),
    ]
    return rows


def stationary(watch: Watch, begin: float, still: list[Look]) -> list[str]:
    """What was moved while nothing changed, after a minute to settle."""
    layers, batch = watch.seen([(begin + 4, time.monotonic())])
    later = [x for x in still if x.at > begin + SETTLE_S]
    moves = [x for x in later if x.moved]
    gains = [known(layers, batch, x.before) - known(layers, batch, x.after) for x in moves]
    useless = sum(gain < 0.01 for gain in gains)
    hours = len(later) * LOOK_S / 3600
    return [
        (
            f"{len(later)} looks, as many as {60 * hours:.0f} minutes have; {len(moves)} moved something"
            + (f", a_max by {', '.join(f'{-g:+.2f}' for g in gains)}" if gains else "")
            + f"; useless (a_max falls by less than 0.01 on all the routing seen): {useless}, "
            f"{useless / hours:.1f} an hour."
        ),
        (
            f"a_max on that routing: {known(layers, batch, still[0].before):.2f} as the last topic left it, "
            f"{known(layers, batch, still[-1].after):.2f} at the end, {known(layers, batch, None):.2f} made for it."
        ),
    ]


def picture(
    watch: Watch, changes: list[float], topics: list[list[Look]], still: list[Look], path: Path
) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(11, 3.8), layout="constrained")
    zero = changes[0]
    times = [a for a, _, _ in watch.a_max]
    points = [(t, watch.mean_a_max(t - 4, t)) for t in times]
    axis.plot([(t - zero) / 60 for t, _ in points], [v for _, v in points], lw=1, label="counted, last 4 s")
    for change in changes:
        axis.axvline((change - zero) / 60, color="lightgray", lw=1, zorder=0)
    moved = [x for looks in [*topics, still] for x in looks if x.moved]
    axis.plot(
        [(x.at - zero) / 60 for x in moved], [axis.get_ylim()[0]] * len(moved), "^", ms=5, color="tab:orange",
        label="replicas moved",
    )  # fmt: skip
    axis.set(xlabel="minutes (lines: the topic changes; after the last: all topics)", ylabel="mean a_max")
    axis.legend()
    figure.savefig(path, dpi=110)


@click.command()
@click.option("--minutes", default=7, show_default=True, help="Topics, a minute each.")
@click.option("--still-minutes", default=4.0, show_default=True, help="Of nothing changing.")
@click.option("--every", default=5.0, show_default=True, help="Seconds between two looks then.")
@click.option("--streams", default=12, show_default=True)
@click.option("--dry", is_flag=True, help="Write nothing.")
def main(minutes: int, still_minutes: float, every: float, streams: int, dry: bool) -> None:
    """Run it."""
    env = {"JANUS_SCHEDULER_REBALANCE_S": "0", "JANUS_MOE_EMULATED_EXPERT_US": str(EXPERT_US)}
    with tempfile.TemporaryDirectory() as folder:
        model = make_topical(Path(folder) / "model", SHAPE)
        with LocalMesh(model, attention=1, experts=INSTANCES, slots=SLOTS, env=env, autoscale="off") as mesh:
            watch, load, changes, topics, still = asyncio.run(
                drive(mesh, minutes, still_minutes, every, streams)
            )
    if load.failed:
        raise click.ClickException(f"{len(load.failed)} streams failed: {load.failed[0]}")
    body = "\n".join([
        (
            f"A random model whose router goes by topic: {dataclasses.asdict(SHAPE)}. 1 attention worker, {INSTANCES} "
            f"MoE workers with {SLOTS} slots, {streams} streams; {load.finished} answers, none failed. A MoE worker "
            f"waits {EXPERT_US / 1000:g} ms per activated expert, as a device of its own would, so that a_max is worth "
            "something. The scheduler's own prices, search and re-layout."
        ),
        "",
        f"## All streams change their topic every minute; looks {PHASE_S:g} s and {PHASE_S + LOOK_S:g} s after it",
        "",
        (
            "| minute | topic | counted a_max, before a look | after one | after two | replayed, before | made for the "
            "topic | replicas loaded |"
        ),
        "| --- " * 8 + "|",
        *shifting(watch, changes, topics),
        "",
        f"## All topics at once, {still_minutes:g} minutes after one to settle, a look every {every:g} s",
        "",
        *stationary(watch, changes[-1], still),
        "",
        "![a_max over time](topics.png)",
    ])  # fmt: skip
    click.echo(body)
    if not dry:
        picture(watch, changes, topics, still, Path(__file__).parent / "results" / "topics.png")
        write("topics", "The placement follows the topic", "python benchmarks/bench_topics.py", body)


if __name__ == "__main__":
    main()
