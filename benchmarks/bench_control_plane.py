"""What the control plane costs as the cluster grows: simulated members, a real Redis; the solver; a simulation.

``python benchmarks/bench_control_plane.py``. Writes results/control_plane.md. Members are leases, reports and readers
without engines; Redis, the scripts and the records are the real ones. Processor time is compared, not wall time.
"""

from __future__ import annotations

import asyncio
import dataclasses
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import click
import psutil
from janus_autoscaler.observe import observe
from janus_runtime.coordination import Coordination
from janus_runtime.records import CohortMember, CohortRecord, LayoutRecord, Lease, Role, WorkerState
from janus_runtime.redis_server import RedisServer
from janus_runtime.settings import ServiceSettings
from janus_scaling import MODELS, PROFILES, Bounds, Demand, Target, synthetic_layers
from janus_simulator import Scenario, Setting, planner, simulate, synthetic
from janus_simulator.report import markdown
from machine import write

LAYERS, EXPERTS, SLOTS = 59, 160, 27
NOTES = """\
Members are leases and reports of 22 numbers, half attention, half MoE; no engines. The shares of a core are processor
time per operation times how often it happens: a report each second, a lease renewed every third of 5 s. The layout has
DeepSeek-V2's 59 layers and 160 experts. The autoscaler's observation is of 30 reports of each member, made every 15 s.
Milliseconds are wall time unless said otherwise, on a machine that was busy with other work (load average 15 to 30 on
2 cores): an idle one is several times quicker."""
COUNTERS = 22
RENEWALS = 0.6
"""Of a lease, per second."""
"""Numbers of an attention worker's report."""


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def timed(call: Callable[[], Awaitable[Any]], rounds: int = 7) -> float:
    """Median wall milliseconds."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        await call()
        found.append(1e3 * (time.perf_counter() - began))
    return statistics.median(found)


async def members(count: int, redis: RedisServer, rounds: int) -> list[str]:
    """A row: ``count`` members, half of each kind."""
    settings = ServiceSettings(
        redis_url=redis.url, worker_id="scheduler-0", namespace=f"bench{count}", lease_ttl_s=300.0
    )
    coordination = await Coordination.connect(settings)
    server, own = psutil.Process(redis.pid), psutil.Process()
    roles = [Role.ATTENTION] * (count // 2) + [Role.MOE] * (count - count // 2)
    # Members share connections by the dozen: one process may not open thousands.
    groups = [await Coordination.connect(settings) for _ in range(-(-count // 25))]
    keepers = []
    for i, role in enumerate(roles):
        lease = Lease(
            worker_id=f"{role}-{i}", member=0, role=role, pid=1, grpc_address=f"10.0.{i >> 8}.{i & 255}:50051",
            transport="ucx", transport_address="x" * 300, node=f"node-{i // 8}", model="m" * 40,
            state=WorkerState.READY,
            slots=SLOTS if role is Role.MOE else 0, moe_layers=LAYERS, num_experts=EXPERTS,
        )  # fmt: skip
        keepers.append(await groups[i % len(groups)].register(lease))
    stats = {f"counter_{i}": 12345.678 + i for i in range(COUNTERS)}
    names = [k.lease.worker_id for k in keepers]

    async def report() -> None:
        async def of(group: Coordination, mine: list[str]) -> None:
            for name in mine:
                await group.report_stats(name, stats)

        await asyncio.gather(*(of(g, names[i :: len(groups)]) for i, g in enumerate(groups)))

    async def renew() -> None:
        for keeper in keepers:
            await keeper.update(detail=str(time.monotonic()))

    costs = []
    for work in (report, renew):  # counted, not timed: a machine that is busy must not change them
        before, mine = cpu_s(server), cpu_s(own)
        for _ in range(rounds):
            await work()
        costs.append(((cpu_s(server) - before) / rounds, (cpu_s(own) - mine) / rounds / count))
    redis_share = costs[0][0] + RENEWALS * costs[1][0]
    ours = costs[0][1] + RENEWALS * costs[1][1]
    token = await coordination.acquire_leader("scheduler-0", 60.0)
    assert token is not None
    look = await timed(lambda: coordination.look("scheduler-0", token, 60.0))
    rows = [
        CohortMember(
            worker_id=k.lease.worker_id, member=k.lease.member, grpc_address=k.lease.grpc_address,
            transport_address=k.lease.transport_address, node=k.lease.node,
        )
        for k in keepers
    ]  # fmt: skip
    split = count // 2
    hosted = max(1, -(-EXPERTS // max(1, count - split)))
    placement = tuple(
        tuple(tuple((m * hosted + s) % EXPERTS for s in range(hosted)) for m in range(count - split))
        for _ in range(LAYERS)
    )
    record = CohortRecord(epoch=0, attention=tuple(rows[:split]), moe=tuple(rows[split:]), layout_version=0)
    layout = LayoutRecord(version=0, num_experts=EXPERTS, slots=SLOTS, placement=placement)

    async def publish() -> None:
        nonlocal record, layout
        epoch = await coordination.next_epoch()
        record = dataclasses.replace(record, epoch=epoch, layout_version=epoch)
        layout = dataclasses.replace(layout, version=epoch)
        await coordination.publish_cohort(record, layout, token)

    published = await timed(publish)
    read = await timed(coordination.cohort)
    leases = await coordination.workers()

    async def observed() -> None:
        samples = await coordination.read_all_stats(names, window_s=300.0)
        observe(leases, samples, now_s=time.time(), window_s=300.0, recent_s=15.0)

    mine = time.process_time()
    await observed()
    look_stats = 1e3 * (time.process_time() - mine)
    for keeper in keepers:
        await keeper.stop()
    for group in (*groups, coordination):
        await group.close()
    sizes = len(record.to_json()), len(layout.to_json())
    return [
        str(count), f"{100 * redis_share:.1f}%", f"{1e3 * ours:.2f}", f"{look:.1f}", f"{sizes[0] / 1e3:.0f}",
        f"{sizes[1] / 1e3:.0f}", f"{published:.1f}", f"{read:.1f}", f"{look_stats:.0f}",
    ]  # fmt: skip


async def all_members(counts: tuple[int, ...]) -> list[list[str]]:
    with RedisServer.start() as redis:
        rows = []
        for count in counts:
            rows.append(await members(count, redis, 30))
            print(rows[-1], flush=True)
        return rows


def solver_row() -> list[str]:
    """Full search at n_max = 64, the tables there."""
    model, h100 = MODELS["deepseek-v2"], PROFILES["h100"]
    made = planner(
        "janus",
        Setting(
            model=model, routing=synthetic_layers(160, 6, layers=1, skew=0.9, topic=0.0, idle=0.2), attention=h100,
            moe=h100, target=Target(tpot_s=0.05), bounds=Bounds(max_attention=64, max_moe=64), batches=16,
        ),
    )  # fmt: skip
    count = len(made.plan(Demand(tokens_per_s=1000, context=300)).candidates)
    wall, cpu, shown = [], [], []
    for i in range(15):
        demand = Demand(tokens_per_s=1000 + 3000 * i, context=300, prompt_tokens_per_s=500)
        began, mine = time.perf_counter(), time.process_time()
        plan = made.plan(demand)
        wall.append(1e3 * (time.perf_counter() - began))
        cpu.append(1e3 * (time.process_time() - mine))
        mine = time.process_time()
        assert len(plan.candidates) == count
        shown.append(1e3 * (time.process_time() - mine))
    return [str(count), *(f"{statistics.median(x):.0f}" for x in (cpu, wall, shown)), f"{max(wall):.0f}"]


def simulation_row(seconds: float, mean_output: float) -> list[str]:
    """1,000 GPUs, 100,000 requests a second."""
    model, h100 = MODELS["deepseek-v2"], PROFILES["h100"]
    trace = synthetic(
        "bursty", rate=100_000, duration_s=seconds, mean_prompt=16, mean_output=mean_output, seed=1
    )
    made = planner(
        "janus",
        Setting(
            model=model, routing=synthetic_layers(160, 6, layers=1, skew=0.9, topic=0.0, idle=0.2), attention=h100,
            moe=h100, target=Target(tpot_s=0.15), batches=16,
            bounds=Bounds(
                min_attention=600, max_attention=600, min_moe=400, max_moe=400, max_batch=1 << 20
            ),
        ),
    )  # fmt: skip
    began = time.perf_counter()
    out = simulate(trace, made, Scenario(decide_s=1.0, overtime_s=600.0))
    took = time.perf_counter() - began
    done = int((out.end_s == out.end_s).sum())
    return [
        f"{len(trace):,}", f"{seconds:g}", f"{int(trace.output.sum()):,}", f"{done / len(trace):.1%}", f"{out.steps:,}",
        f"{took:.1f}",
    ]  # fmt: skip


@click.command()
def main() -> None:
    """Run it."""
    rows = asyncio.run(all_members((10, 100, 300, 1000)))
    head = [
        "members", "Redis, of a core", "member, ms of CPU per s", "scheduler's look, ms", "cohort record, kB",
        "layout, kB",
        "publish both, ms", "read and parse the cohort, ms", "autoscaler's observation, CPU ms",
    ]  # fmt: skip
    solver = [
        ["candidates", "CPU, ms", "wall, ms", "every reason (Explain), CPU ms", "slowest, wall ms"],
        solver_row(),
    ]
    large = [
        ["requests", "simulated s", "output tokens", "finished", "steps", "wall, s"],
        simulation_row(10.0, 4.0),
    ]
    body = [
        NOTES, "", markdown([head, *rows]), "",
        "## Solver, n_max = 64, tables there", "", markdown(solver), "",
        "## Simulation: 1,000 GPUs (600 attention, 400 MoE), 100,000 requests/s", "",
        "Bursty arrivals, prompts of 16 tokens, answers of 4 (at 100,000/s more than that is beyond 1,000 H100s).", "",
        markdown(large),
    ]  # fmt: skip
    print("\n".join(body))
    write(
        "control_plane",
        "Control plane against cluster size",
        "python benchmarks/bench_control_plane.py",
        "\n".join(body),
    )


if __name__ == "__main__":
    main()
