"""Prompts beside decoding streams: how much long ones hold streams up, and what a shared prefix saves.

``python benchmarks/bench_prefill.py --model .janus/demo``: engine processes over UCX, without gateway. (1) Streams
decode alone, then while prompts of 2,048 tokens arrive, with the learnt prefill budget and without one.
(2) Time to first token of prompts that share 1,024 tokens, with the prefix cache and without.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from janus_attention.engine import EngineOptions
from janus_testing.processes import ProcessMesh
from machine import write

LONG, SHARED, TAIL = 2048, 1024, 16


def tokens(seed: int, count: int) -> list[int]:
    """A prompt of its own; ids that every vocabulary has."""
    ids: list[int] = np.random.default_rng(seed).integers(10, 500, count).tolist()
    return ids


class Watch:
    """When each token of some streams came."""

    def __init__(self, mesh: ProcessMesh, numbers: list[int]) -> None:
        self.mesh, self.numbers = mesh, numbers
        self.times: dict[int, list[float]] = {number: [] for number in numbers}

    def look(self) -> bool:
        """Note what has come; False, for :meth:`ProcessMesh.pump`."""
        now = time.perf_counter()
        for number, times in self.times.items():
            times += [now] * (len(self.mesh.peek(number).tokens) - len(times))
        return False

    def gaps(self, since: float) -> list[float]:
        """Seconds between tokens that came after ``since``."""
        return [
            b - a for times in self.times.values() for a, b in itertools.pairwise(times) if a >= since
        ]  # fmt: skip


def stalls(
    model: str, shape: tuple[int, int], options: EngineOptions, streams: int, seconds: float
) -> dict[str, Any]:
    """Gaps between the tokens of ``streams`` streams, alone and while long prompts come one after another."""
    with ProcessMesh(model, attention=shape[0], experts=shape[1], attention_options=options) as mesh:
        running = [mesh.submit(tokens(i, 8), max_tokens=6000) for i in range(streams)]
        watch = Watch(mesh, running)
        mesh.pump(lambda: watch.look() or all(len(mesh.peek(n).tokens) > 4 for n in running), "the streams")
        began = time.perf_counter()
        mesh.pump(lambda: watch.look() or time.perf_counter() > began + seconds, "quiet")
        quiet = watch.gaps(began)
        seed, done, first, under_way = 100, 0, [], []
        began = time.perf_counter()
        while time.perf_counter() < began + 2 * seconds:
            # Two at a time, so that there is always one.
            while len(under_way) < 2:
                seed += 1
                under_way.append((mesh.submit(tokens(seed, LONG), max_tokens=1), time.perf_counter()))
            mesh.pump(
                lambda: watch.look() or any(mesh.peek(n).finish for n, _ in under_way)
                or time.perf_counter() > began + 2 * seconds,
                "a long prompt",
            )  # fmt: skip
            for number, asked in list(under_way):
                if mesh.peek(number).finish:
                    under_way.remove((number, asked))
                    first.append(time.perf_counter() - asked)
                    done += 1
        busy = watch.gaps(began)
        rate = mesh.attention[0].stats["prompt_tokens"] / (time.perf_counter() - began)
        for number in (*running, *(number for number, _ in under_way)):
            mesh.cancel(number)
    return {
        "quiet p50": 1e3 * statistics.median(quiet), "quiet p99": 1e3 * float(np.quantile(quiet, 0.99)),
        "busy p50": 1e3 * statistics.median(busy), "busy p99": 1e3 * float(np.quantile(busy, 0.99)),
        "prompt tokens/s": rate, "long prompts done": done,
    }  # fmt: skip


def prefix(model: str, shape: tuple[int, int], options: EngineOptions, prompts: int) -> list[float]:
    """Seconds to the first token of prompts that share their beginning, one after another."""
    shared, taken = tokens(7, SHARED), []
    with ProcessMesh(model, attention=shape[0], experts=shape[1], attention_options=options) as mesh:
        mesh.answer(mesh.submit(tokens(1, 64), max_tokens=2))  # each weight read once
        for i in range(prompts):
            began = time.perf_counter()
            mesh.answer(mesh.submit([*shared, *tokens(50 + i, TAIL)], max_tokens=1))
            taken.append(time.perf_counter() - began)
    return taken


@click.command()
@click.option("--model", default=".janus/demo", show_default=True, help="Checkpoint directory.")
@click.option("--shape", default="1x1", show_default=True, help="Attention x MoE workers.")
@click.option("--streams", default=4, show_default=True)
@click.option("--seconds", default=10.0, show_default=True, help="Of quiet; prompts come for twice as long.")
@click.option("--prompts", default=4, show_default=True, help="That share a prefix.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Write the numbers here as well.")
@click.option("--save/--no-save", default=True, help="Write results/prefill.md.")
def main(
    model: str, shape: str, streams: int, seconds: float, prompts: int, out: Path | None, save: bool
) -> None:
    """Measure; writes results/prefill.md."""
    m, n = (int(number) for number in shape.split("x"))
    kv = 8 * LONG
    with_budget = stalls(model, (m, n), EngineOptions(kv_tokens=kv), streams, seconds)
    click.echo(f"learnt budget: {with_budget}", err=True)
    without = stalls(model, (m, n), EngineOptions(kv_tokens=kv, prefill_tokens=512), streams, seconds)
    click.echo(f"as they fit: {without}", err=True)
    warm = prefix(model, (m, n), EngineOptions(kv_tokens=kv), prompts)
    cold = prefix(model, (m, n), EngineOptions(kv_tokens=kv, prefix_cache=False), 2)
    rows = [
        f"{m}x{n} workers; {streams} streams decode while prompts of {LONG} tokens come, two at a time; ms per token:",
        "",
        "| prompts per step | quiet p50 | p99 | busy p50 | p99 | p99 busy / quiet | prompt tokens/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in (("learnt budget", with_budget), ("as they fit (512)", without)):
        rows.append(
            f"| {name} | {row['quiet p50']:.0f} | {row['quiet p99']:.0f} | {row['busy p50']:.0f} | "
            f"{row['busy p99']:.0f} | {row['busy p99'] / row['quiet p99']:.2f} | {row['prompt tokens/s']:.0f} |"
        )
    first, later = warm[0], statistics.median(warm[1:])
    answer = (
        f"Prompts of {SHARED + TAIL} tokens that share {SHARED}, alone on the mesh: first token after "
        f"{1e3 * first:.0f} ms for the first of them, {1e3 * later:.0f} ms for the next ones "
        f"(1/{first / later:.0f}); without the cache {1e3 * statistics.median(cold):.0f} ms."
    )
    rows += ["", answer]
    body = "\n".join(rows)
    click.echo(body)
    if out:
        out.write_text(
            json.dumps({"learnt": with_budget, "unbounded": without, "warm": warm, "cold": cold}, indent=1)
        )
    if save:
        write(
            "prefill",
            "Prompts beside streams",
            f"python benchmarks/bench_prefill.py --seconds {seconds:g}",
            body,
        )


if __name__ == "__main__":
    main()
