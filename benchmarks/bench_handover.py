"""What a drained attention worker's streams notice: their KV blocks moved, or computed again.

``python benchmarks/bench_handover.py --model .janus/demo``: real processes, two attention and two MoE workers; streams
with long prompts decode, one attention worker is drained, in turns with the prefix cache (blocks move) and without it.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from pathlib import Path

import click
from janus_testing import LocalMesh
from janus_testing.load import Load
from janus_wire.v1 import common_pb2, generation_pb2
from machine import write

WAYS = {"moved": "true", "computed again": "false"}
"""Of the keys and values, and the prefix cache's setting."""


def requests(count: int, prompt: int, tokens: int) -> list[generation_pb2.GenerateRequest]:
    """Greedy, each with a prompt of its own."""
    rng = random.Random(1)
    return [
        generation_pb2.GenerateRequest(
            prompt_tokens=common_pb2.TokenIds(ids=[rng.randrange(10, 500) for _ in range(prompt)]),
            sampling=common_pb2.SamplingParams(max_tokens=tokens, ignore_eos=True, temperature=0.0),
        )
        for _ in range(count)
    ]


def drained(
    model: Path, cache: str, streams: int, prompt: int, tokens: int
) -> tuple[list[float], float, float]:
    """Longest pauses of all streams from the drain on, the median time between tokens before it, and seconds until
    the worker had left."""
    with LocalMesh(
        model, attention=2, experts=2, start_deadline_s=240, env={"JANUS_PREFIX_CACHE": cache}
    ) as mesh:
        load = Load(mesh.grpc, requests(streams, prompt, tokens), at_once=streams, timeout_s=600)
        load.reference()
        with load:
            load.wait_tokens(1, timeout_s=300)
            while any(len(s.tokens) < 8 for s in load.streams):
                time.sleep(0.1)
            load._stop.set()  # no new streams: the drained ones alone are looked at
            began = time.monotonic()
            mesh.drain("attention-1")
            left = time.monotonic() - began
        problems = list(load.problems())
        if problems:
            raise click.ClickException("; ".join(problems))
        gaps = [[(a, b) for a, b in itertools.pairwise(s.times)] for s in load.streams]
        quiet = statistics.median(b - a for pairs in gaps for a, b in pairs if b < began)
        return [max((b - a for a, b in pairs if b > began), default=0.0) for pairs in gaps], quiet, left


@click.command()
@click.option("--model", default=".janus/demo", show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--streams", default=6, show_default=True, help="Half of them are on the worker that is drained."
)
@click.option("--prompt", default=400, show_default=True, help="Tokens of each.")
@click.option("--tokens", default=120, show_default=True)
@click.option("--rounds", default=2, show_default=True)
def main(model: Path, streams: int, prompt: int, tokens: int, rounds: int) -> None:
    """Measure; writes results/handover.md."""
    found: dict[str, list[tuple[list[float], float, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way, cache in WAYS.items():
            found[way].append(drained(model, cache, streams, prompt, tokens))
            click.echo(f"{way}: {found[way][-1]}", err=True)
    what = (
        f"2 attention and 2 MoE workers, {streams} streams with prompts of {prompt} tokens, one attention worker "
        f"drained; {rounds} rounds of each in turns. All tokens exact. Longest pause of a stream from then on, seconds:"
    )
    rows = [
        what,
        "",
        "| keys and values | time between tokens before, median | pause, median | worst | until the worker has left |",
        "| --- | --- | --- | --- | --- |",
    ]
    for way, runs in found.items():
        pauses = sorted(pause for run, _, _ in runs for pause in run)
        quiet, left = (statistics.median(run[i] for run in runs) for i in (1, 2))  # type: ignore[misc]
        rows.append(
            f"| {way} | {quiet:.2f} | {statistics.median(pauses):.2f} | {pauses[-1]:.2f} | {left:.1f} |"
        )
    path = write(
        "handover",
        "Streams of a worker that is drained",
        "python benchmarks/bench_handover.py",
        "\n".join(rows),
    )
    click.echo(path.read_text())


if __name__ == "__main__":
    main()
