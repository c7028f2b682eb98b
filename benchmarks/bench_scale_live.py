"""What streams notice of scaling: 1 x 2 -> 3 x 4 -> 1 x 2 workers under load, over and over.

``python benchmarks/bench_scale_live.py [--rounds 10] [--streams 8]``; a tiny random model. Prints one JSON object: the
longest pause between two tokens of each stream while the mesh changed, beside the same with nothing happening.
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


def summary(values: list[float]) -> dict[str, float]:
    values = sorted(values)
    return {
        "streams": len(values), "median_s": round(statistics.median(values), 3),
        "p99_s": round(values[int(0.99 * (len(values) - 1))], 3), "worst_s": round(values[-1], 3),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--streams", type=int, default=8)
    options = parser.parse_args()
    found: dict[str, list[float]] = {"nothing": [], "up": [], "down": []}
    seconds: dict[str, list[float]] = {"up": [], "down": []}
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny(Path(folder) / "tiny", family="qwen3_moe", seed=11)
        with LocalMesh(model, attention=1, experts=2, slots=4) as mesh:
            requests = make_requests(options.streams, seed=1, tokens=(150, 300))
            load = Load(mesh.grpc, requests, at_once=options.streams)
            load.reference()
            with load:
                load.wait_tokens(100)
                for _ in range(options.rounds):
                    began = time.monotonic()
                    load.wait_tokens(200)
                    found["nothing"] += pauses(load, began, time.monotonic())
                    for way, (attention, experts) in (("up", (3, 4)), ("down", (1, 2))):
                        began = time.monotonic()
                        mesh.scale(attention=attention, experts=experts)
                        seconds[way].append(time.monotonic() - began)
                        load.wait_tokens(50)
                        found[way] += pauses(load, began, time.monotonic())
            problems = list(load.problems())
    result = {
        "machine": machine(), "load": os.getloadavg(), "rounds": options.rounds, "streams": len(load.streams),
        "longest_pause": {k: summary(v) for k, v in found.items()},
        "change_s": {k: round(statistics.median(v), 1) for k, v in seconds.items()}, "problems": problems,
    }  # fmt: skip
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
