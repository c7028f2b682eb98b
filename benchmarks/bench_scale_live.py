"""What streams notice of scaling: 1 x 2 -> 3 x 4 -> 1 x 2 workers under load, over and over.

``python benchmarks/bench_scale_live.py [--rounds 10] [--streams 8] [--model DIR]``; a tiny random model if none is
given. Prints one JSON object: the
longest pause between two tokens of each stream while the mesh changed, beside the same with nothing happening, in
seconds and in steps. A step is the median time between two tokens of a stream in the same window; ``--run-dir`` keeps
the logs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from janus_bench.machine import machine
from janus_models.tiny import make_tiny
from janus_testing import LocalMesh
from janus_testing.load import Load, make_requests


def pauses(load: Load, began: float, ended: float) -> list[float]:
    """Of each stream under way then, its longest pause that overlaps the time."""
    longest = []
    for stream in load.streams:
        gaps = [b - a for a, b in itertools.pairwise(stream.times) if b > began and a < ended]
        if gaps:
            longest.append(max(gaps))
    return longest


def step(load: Load, began: float, ended: float) -> float:
    """Median time between two tokens of a stream, over those that came in the window."""
    return statistics.median(
        b - a for s in load.streams for a, b in itertools.pairwise(s.times) if a >= began and b <= ended
    )


def summary(values: list[float], unit: str) -> dict[str, float]:
    values = sorted(values)
    return {
        "streams": len(values), f"median_{unit}": round(statistics.median(values), 3),
        f"p99_{unit}": round(values[int(0.99 * (len(values) - 1))], 3), f"worst_{unit}": round(values[-1], 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    in_steps: dict[str, list[float]] = {"nothing": [], "up": [], "down": []}
    steps: dict[str, list[float]] = {"nothing": [], "up": [], "down": []}
    places: list[str] = []
    found: dict[str, list[float]] = {"nothing": [], "up": [], "down": []}
    seconds: dict[str, list[float]] = {"up": [], "down": []}
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or make_tiny(Path(folder) / "tiny", family="qwen3_moe", seed=11)
        with LocalMesh(model, attention=1, experts=2, slots=4, run_dir=options.run_dir) as mesh:
            requests = make_requests(options.streams, seed=1, tokens=(150, 300))
            load = Load(mesh.grpc, requests, at_once=options.streams)
            load.reference()
            with load:
                load.wait_tokens(100)

                def look(what: str, began: float) -> None:
                    ended = time.monotonic()
                    longest, length = pauses(load, began, ended), step(load, began, ended)
                    found[what] += longest
                    steps[what].append(length)
                    in_steps[what] += [pause / length for pause in longest]
                    at, pause = max(
                        (
                            (a, b - a)
                            for s in load.streams
                            for a, b in itertools.pairwise(s.times)
                            if began < a < ended
                        ),
                        key=lambda gap: gap[1],
                    )
                    when = time.strftime("%H:%M:%S", time.localtime(time.time() - time.monotonic() + at))
                    places.append(
                        f"{what}: {1000 * pause:.0f} ms, {at - began:.1f} s after it began, at {when}"
                    )

                for _ in range(options.rounds):
                    began = time.monotonic()
                    load.wait_tokens(400)
                    look("nothing", began)
                    for way, (attention, experts) in (("up", (3, 4)), ("down", (1, 2))):
                        began = time.monotonic()
                        mesh.scale(attention=attention, experts=experts)
                        seconds[way].append(time.monotonic() - began)
                        load.wait_tokens(50)
                        look(way, began)
            problems = list(load.problems())
    result = {
        "machine": machine(), "load": os.getloadavg(), "rounds": options.rounds, "streams": len(load.streams),
        "longest_pause": {k: summary(v, "s") for k, v in found.items()},
        "longest_pause_in_steps": {k: summary(v, "steps") for k, v in in_steps.items()},
        "step_s": {k: round(statistics.median(v), 4) for k, v in steps.items()}, "longest_of_each": places,
        "change_s": {k: round(statistics.median(v), 1) for k, v in seconds.items()}, "problems": problems,
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
