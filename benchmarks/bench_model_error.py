"""Predicted against measured time per output token on this machine, over a grid of sizes and batches.

``python benchmarks/bench_model_error.py``. A real mesh of emulated devices, or with --no-emulate as it is: then all
workers share the cores, which the model is told. As many streams as the batch asks for are kept going while workers
report; the autoscaler's own learner is fitted on every second point of the grid, as on a chessboard, and asked for the
others. Writes
results/model_error.md, or results/model_error_shared.md without emulation.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
from janus_autoscaler.config import AutoscalerSettings
from janus_autoscaler.learn import Learner
from janus_autoscaler.loop import Autoscaler
from janus_autoscaler.measure import Interval, intervals
from janus_autoscaler.objective import Objective, ObjectiveStore
from janus_models.tiny import make_tiny
from janus_runtime.coordination import Coordination
from janus_runtime.records import Role
from janus_scaling import PROFILES, Exchange, roofline, shape
from janus_simulator.report import markdown
from janus_testing import LocalMesh
from janus_testing.load import Load, make_requests
from machine import write

DEVICE = {"JANUS_MOE_EMULATED_EXPERT_US": "4000", "JANUS_ATTENTION_EMULATED_TOKEN_US": "3000"}
SIZES = ((1, 1), (1, 2), (2, 2), (1, 3), (2, 3))
BATCHES = (2, 6, 12, 24)
EMULATED = {"hidden_size": 256, "num_experts": 32, "moe_intermediate_size": 256, "num_hidden_layers": 4}
SHARED = {"hidden_size": 512, "num_experts": 32, "moe_intermediate_size": 512, "num_hidden_layers": 8}
"""Large enough that on this machine's cores a step is mostly computing, as on any device that is worth planning for."""


async def measured(scaler: Autoscaler, layers: int, since_s: float) -> list[Interval]:
    """Intervals that began at ``since_s`` or later."""
    view = await scaler.look()
    assert view.cohort is not None
    sides = [
        {w.worker_id: view.samples.get(w.worker_id, ()) for w in view.leases if w.role is role}
        for role in (Role.ATTENTION, Role.MOE)
    ]
    n_a, n_e = view.serving
    return intervals(
        sides[0], sides[1], moe_layers=layers, epoch=view.cohort.epoch, n_a=n_a, n_e=n_e,
        since_s=since_s,
    )  # fmt: skip


async def grid(
    mesh: LocalMesh, model: Path, seconds: float, rounds: int
) -> tuple[dict[tuple[int, int, int], list[Interval]], Any]:
    known = shape(str(model))
    settings = AutoscalerSettings(
        redis_url=mesh.redis_url, worker_id="bench", window_s=60.0, model=str(model)
    )
    coordination = await Coordination.connect(settings)
    cpu = PROFILES["cpu"]
    store = ObjectiveStore(coordination, Objective(tpot_ms=1000.0))
    scaler = Autoscaler(settings, coordination, store, model=known, hardware=(cpu, cpu))
    found: dict[tuple[int, int, int], list[Interval]] = {}
    for n_a, n_e in SIZES * rounds:
        await asyncio.to_thread(mesh.scale, attention=n_a, experts=n_e)
        for batch in BATCHES:
            load = Load(mesh.grpc, make_requests(batch, seed=batch, tokens=(60, 80)), at_once=batch)
            stop = threading.Event()
            thread = threading.Thread(target=lambda load=load, stop=stop: hold(load, stop))  # type: ignore[misc]
            thread.start()
            await asyncio.sleep(3.0)
            since = time.time()
            await asyncio.sleep(seconds)
            found.setdefault((n_a, n_e, batch), []).extend(await measured(scaler, known.moe_layers, since))
            stop.set()
            await asyncio.to_thread(thread.join)
            print((n_a, n_e, batch), len(found[n_a, n_e, batch]), flush=True)
    table = await scaler._tables(await scaler.look())
    await coordination.close()
    return found, table


def hold(load: Load, stop: threading.Event) -> None:
    """Streams until ``stop``; then they are let run out."""
    with load:
        stop.wait()


@click.command()
@click.option(
    "--emulate/--no-emulate", default=True, help="Each worker waits out what a device of its own would take."
)
@click.option("--seconds", default=6.0, show_default=True, help="Of measuring, each point and round.")
@click.option(
    "--rounds", default=1, show_default=True, help="Over all points: what else runs then evens out."
)
def main(emulate: bool, seconds: float, rounds: int) -> None:
    """Run it."""
    cores = len(os.sched_getaffinity(0))
    sizes = EMULATED if emulate else SHARED
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny(Path(folder) / "model", family="qwen3_moe", seed=11, **sizes)
        known = shape(str(model))
        with LocalMesh(
            model, attention=1, experts=1, autoscale="off", kv_tokens=65536,
            env={
                "JANUS_SCHEDULER_REBALANCE_S": "0", "JANUS_LEASE_TTL_S": "15", "JANUS_MICRO_BATCHES": "1",
                **(DEVICE if emulate else {}),
            },
        ) as mesh:  # fmt: skip
            found, table = asyncio.run(grid(mesh, model, seconds, rounds))
    cpu = PROFILES["cpu"]
    exchange = Exchange(row_bytes=known.row_bytes, top_k=known.top_k, hardware=cpu, phases=1)
    learner = Learner(
        known, roofline(known, cpu, cpu), exchange, shared_cores=float("inf") if emulate else cores
    )
    points = [p for p in found if found[p]]
    seen = {p for p in points if (SIZES.index(p[:2]) + BATCHES.index(p[2])) % 2 == 0}
    for point in points:
        if point in seen:
            learner.add(found[point], table)
            table.learn(found[point])
    learnt = learner.fit()
    rows = [["attention x MoE", "streams", "measured, ms", "predicted, ms", "error", ""]]
    errors: dict[bool, list[float]] = {True: [], False: []}
    for point in points:
        step = statistics.median(interval.step_s for interval in found[point])
        predicted = statistics.median(learner.predict(interval, table) for interval in found[point])
        error = abs(predicted / step - 1)
        errors[point in seen].append(error)
        rows.append(
            [f"{point[0]} x {point[1]}", str(point[2]), f"{1e3 * step:.1f}", f"{1e3 * predicted:.1f}", f"{error:.0%}",
             "learnt from" if point in seen else "not seen"]
        )  # fmt: skip
    coefficients = ", ".join(
        f"{name} {e.value:.3g} s ({learnt.sources[name]})" for name, e in learnt.estimates.items() if e.value
    )
    what = (
        "emulated devices (4 ms per activated expert, 3 ms per token)" if emulate else f"{cores} shared cores"
    )
    one, _, fifteen = os.getloadavg()
    body = "\n".join([
        f"Median error on points not seen: {statistics.median(errors[False]):.1%}.",
        f"On those learnt from: {statistics.median(errors[True]):.1%}.",
        (
            f"{len(points)} points, {what}, {rounds} times {seconds:g} s each. The machine's load at the end: "
            f"{one:.0f} over a minute, {fifteen:.0f} over 15."
        ), "",
        f"A random qwen3_moe: {sizes}. Coefficients: {coefficients}.", "", markdown(rows),
    ])  # fmt: skip
    print(body)
    name, flag = ("model_error", "") if emulate else ("model_error_shared", " --no-emulate")
    command = f"python benchmarks/bench_model_error.py{flag} --rounds {rounds}"
    write(name, "The performance model on this machine", command, body)


if __name__ == "__main__":
    main()
