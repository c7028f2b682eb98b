"""Where a decode step's time goes: the model alone in one process against meshes of engine processes.

``python benchmarks/bench_step.py --model .janus/demo``: decodes at several batch sizes, (1) with
janus_models.local, no mesh at all, (2) on engine processes over UCX, without gateway, gRPC and Redis. Times are
from the engines' own counters, milliseconds per step; the step itself is a median of the gaps between tokens.
Writes results/step.md, and JSON where --json says.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import psutil
import torch
from janus_attention.engine import EngineOptions
from janus_kernels import set_num_threads
from janus_models.local import LocalModel
from janus_testing.processes import ProcessMesh
from machine import write

COLUMNS = ["step", "attention", "head", "moe", "exchange", "prepare", "deliver", "cpu"]
Row = dict[str, Any]


def prompt(i: int) -> list[int]:
    """A short one, each stream its own."""
    return [100 + 7 * i, 300 + i, 17, 5000 + 3 * i]


def local(model: str, batches: list[int], tokens: int, threads: int, rounds: int, dtype: str) -> list[Row]:
    """The whole model in this process: the floor that a mesh is measured against."""
    torch.set_num_threads(threads)
    set_num_threads(threads)
    runner = LocalModel(model, dtype, kv_blocks=4 * max(batches) + tokens * max(batches) // 16)
    rows = []
    for batch in batches:
        gaps: list[float] = []
        for _ in range(rounds):
            sequences = [runner.new_sequence(prompt(i)) for i in range(batch)]
            for _ in range(tokens):
                work = [(s, len(s.ids) - s.cached) for s in sequences]
                began = time.perf_counter()
                h_TD = runner.step(work)
                last = torch.tensor([count for _, count in work]).cumsum(0) - 1
                chosen = runner.attention.logits(h_TD[last]).argmax(-1).tolist()
                gaps.append(time.perf_counter() - began)
                for sequence, token in zip(sequences, chosen, strict=True):
                    sequence.ids.append(token)
            for sequence in sequences:
                runner.release(sequence)
        rows.append(
            {"mesh": f"one process, {threads} threads", "batch": batch, "step": 1e3 * statistics.median(gaps)}
        )
    return rows


def total(mesh: ProcessMesh) -> dict[str, float]:
    """Counters summed over the attention workers, and processor seconds of every engine."""
    stats = [worker.stats for worker in mesh.attention]
    names = {name for each in stats for name, value in each.items() if not isinstance(value, dict)}
    sums = {name: sum(worker.stats.get(name, 0.0) for worker in mesh.attention) for name in names}
    pids = [mesh.pid(worker) for worker in mesh.workers]
    sums["cpu"] = sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)
    return sums


def decode(mesh: ProcessMesh, batch: int, tokens: int) -> tuple[list[float], float]:
    """(gaps between the tokens of one stream, wall seconds) of ``batch`` streams."""
    spread = len(mesh.attention)
    began = time.perf_counter()
    numbers = [mesh.submit(prompt(i), worker=i % spread, max_tokens=tokens) for i in range(batch)]
    times: list[float] = []

    def watch() -> bool:
        while len(mesh.peek(numbers[-1]).tokens) > len(times):
            times.append(time.perf_counter())
        return all(mesh.peek(number).finish for number in numbers)

    mesh.pump(watch, "the streams' ends")
    return [b - a for a, b in itertools.pairwise(times[1:])], time.perf_counter() - began


def quiet(mesh: ProcessMesh) -> Callable[[], bool]:
    """Whether each attention worker's last report says that it has nothing to do."""
    return lambda: all(not w.stats.get("running") and not w.stats.get("waiting") for w in mesh.attention)


def measure(
    model: str, shape: tuple[int, int], batches: list[int], tokens: int, threads: int, rounds: int,
    options: EngineOptions, dtype: str,
) -> list[Row]:  # fmt: skip
    """One mesh at every batch size."""
    rows = []
    with ProcessMesh(
        model, attention=shape[0], experts=shape[1], threads=threads, attention_options=options, dtype=dtype
    ) as mesh:
        decode(mesh, max(batches), 4)  # each weight read once
        for batch in batches:
            time.sleep(0.3)
            mesh.pump(quiet(mesh), "idle reports")
            before = total(mesh)
            gaps: list[float] = []
            wall = 0.0
            for _ in range(rounds):
                more, seconds = decode(mesh, batch, tokens)
                gaps += more
                wall += seconds
            time.sleep(0.3)
            mesh.pump(quiet(mesh), "idle reports")
            now = total(mesh)
            # Workers step together: a worker's share of the steps is what one step takes.
            spent = {name: now[name] - before.get(name, 0.0) for name in now}
            steps = max(1.0, spent["steps"])
            each = {name: 1e3 * value / steps for name, value in spent.items() if name.endswith("_seconds")}
            rows.append(
                {
                    "mesh": f"{shape[0]}x{shape[1]}, {threads} threads, {options.micro_batches}", "batch": batch,
                    "step": 1e3 * statistics.median(gaps),
                    "attention": each["attention_seconds"] - each["head_seconds"], "head": each["head_seconds"],
                    "moe": each["moe_seconds"], "exchange": each["exchange_seconds"] - each["moe_seconds"],
                    "prepare": each["prepare_seconds"], "deliver": each["deliver_seconds"],
                    "cpu": 100 * spent["cpu"] / wall,
                }
            )  # fmt: skip
    return rows


def table(rows: list[Row]) -> str:
    """Markdown."""
    head = ["| mesh | batch | " + " | ".join(COLUMNS) + " |", "| --- " * (len(COLUMNS) + 2) + "|"]
    lines = []
    for row in rows:
        cells = [f"{row[name]:.{0 if name == 'cpu' else 1}f}" if name in row else "" for name in COLUMNS]
        lines.append(f"| {row['mesh']} | {row['batch']} | " + " | ".join(cells) + " |")
    return "\n".join(head + lines)


@click.command()
@click.option("--model", default=".janus/demo", show_default=True, help="Checkpoint directory.")
@click.option("--shapes", default="1x1,2x3", show_default=True, help="Attention x MoE workers.")
@click.option("--batches", default="1,4,16,64", show_default=True)
@click.option("--tokens", default=16, show_default=True, help="Tokens per stream.")
@click.option("--rounds", default=2, show_default=True, help="Times each is measured.")
@click.option(
    "--threads", default=0, help="Threads per engine; 0: the cores shared out, as the supervisor does."
)
@click.option("--dtype", default="float32", show_default=True, help="Of weights and KV cache.")
@click.option(
    "--micro-batches", "lanes", default="1", show_default=True, help="Several to compare: 1,2,auto."
)
@click.option("--alone/--no-alone", default=True, help="Measure janus_models.local too.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the rows here as well.")
@click.option("--save/--no-save", default=True, help="Write results/step.md.")
def main(
    model: str, shapes: str, batches: str, tokens: int, rounds: int, threads: int, dtype: str, lanes: str,
    alone: bool, out: Path | None, save: bool,
) -> None:  # fmt: skip
    """Measure; writes results/step.md."""
    sizes = [int(size) for size in batches.split(",")]
    cores = len(os.sched_getaffinity(0))
    rows = local(model, sizes, tokens, threads or cores, rounds, dtype) if alone else []
    for shape, choice in itertools.product(shapes.split(","), lanes.split(",")):
        options = EngineOptions(
            kv_tokens=max(sizes) * (tokens + 32), max_sequences=max(sizes), micro_batches=choice
        )
        m, n = (int(number) for number in shape.split("x"))
        each = threads or max(1, cores // (m + n))
        rows += measure(model, (m, n), sizes, tokens, each, rounds, options, dtype)
    body = table(rows) + (
        "\n\nMilliseconds per step; step: median gap between tokens. moe: the slowest MoE worker's compute, summed "
        "over layers (and lanes: a mesh's last number is --micro-batches); exchange: what waiting for it took beyond "
        "that, dense work in the wait included; cpu: per cent of one core over all engines, prefill included."
    )  # fmt: skip
    click.echo(body)
    if out:
        out.write_text(json.dumps(rows, indent=1))
    if save:
        write("step", "A decode step", "python benchmarks/bench_step.py", body)


if __name__ == "__main__":
    main()
