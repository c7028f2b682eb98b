"""Two micro-batches against one, where attention and MoE workers have processors of their own.

``python benchmarks/bench_microbatch.py``: an in-process mesh of real engines with a tiny model, whose attention
and MoE passes sleep as long as a device would compute (a fixed part and one per token), and whose messages
arrive after a delay. Nothing of that takes processor time, so two cores suffice and little else than the step's
structure is measured, beside what it should be. Settings are measured in turns; numbers are medians of the gaps
between a stream's tokens. Writes results/microbatch.md.
"""

from __future__ import annotations

import functools
import itertools
import queue
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from janus_attention.engine import EngineOptions
from janus_kernels import set_num_threads
from janus_models.decoder import AttentionModel
from janus_models.tiny import make_tiny
from janus_moe.compute import MoeCompute
from janus_testing.inprocess import InProcessMesh
from janus_transport.inproc import _HUB, InprocTransport
from machine import write

CHOICES = ("1", "2", "auto")
LAYERS, BATCH = 3, 16


@dataclass(frozen=True, slots=True)
class Devices:
    """Milliseconds per layer of the whole batch, and which share of it half the batch takes."""

    attention: float
    attention_half: float
    moe: float
    moe_half: float
    link: float
    """One way, of every message."""

    def predicted(self, lanes: int) -> float:
        """Of a step, host time left out."""
        if lanes == 1:
            return LAYERS * (self.attention + self.moe + 2 * self.link)
        a, m = self.attention * self.attention_half, self.moe * self.moe_half
        # Either side is busy all the time, or a lane's own way through a layer is the longest.
        return LAYERS * max(2 * a, 2 * m, a + m + 2 * self.link)


CASES = {
    "both linear": Devices(12, 0.5, 12, 0.5, 0),
    "both linear, links": Devices(12, 0.5, 12, 0.5, 4),
    "half of the experts' time is reading": Devices(12, 0.5, 12, 0.75, 0),
    "the same, links": Devices(12, 0.5, 12, 0.75, 4),
    "experts all reading": Devices(12, 0.5, 12, 1.0, 0),
    "little attention, experts all reading": Devices(3, 0.5, 20, 1.0, 1),
    "links alone": Devices(0.5, 0.5, 0.5, 0.5, 10),
}


def emulate(devices: Devices) -> None:
    """Make the passes of every engine of this process take so long."""

    def slow(function: Any, whole_ms: float, half: float, batch: int) -> Any:
        each = 2 * whole_ms * (1 - half) / batch
        fixed = whole_ms - each * batch

        @functools.wraps(function)
        def run(self: Any, layer: int, x_TD: torch.Tensor, *rest: Any) -> Any:
            result = function(self, layer, x_TD, *rest)
            time.sleep((fixed + each * x_TD.shape[0]) * 1e-3)
            return result

        return run

    attention, moe = _ORIGINAL
    AttentionModel.attention = slow(attention, devices.attention, devices.attention_half, BATCH)  # type: ignore[method-assign]
    MoeCompute.run = slow(moe, devices.moe, devices.moe_half, BATCH)  # type: ignore[method-assign]


_ORIGINAL = (AttentionModel.attention, MoeCompute.run)


class DelayedTransport(InprocTransport):
    """Messages arrive ``delay_s`` after they were sent, in order."""

    def __init__(self, member: int, delay_s: float) -> None:
        super().__init__(member)
        self._delay_s = delay_s
        self._under_way: queue.SimpleQueue[tuple[float, int, bytes]] = queue.SimpleQueue()
        threading.Thread(target=self._carry, daemon=True).start()

    def _deliver(self, source: int, data: bytes) -> None:
        if self._delay_s:
            self._under_way.put((time.perf_counter() + self._delay_s, source, data))
        else:
            super()._deliver(source, data)

    def _carry(self) -> None:
        while True:
            due, source, data = self._under_way.get()
            time.sleep(max(0.0, due - time.perf_counter()))
            with _HUB.lock:
                super()._deliver(source, data)


def gaps(mesh: InProcessMesh, batch: int, tokens: int) -> list[float]:
    """Seconds between the tokens of the last of ``batch`` streams, all of them decoding."""
    spread = len(mesh.attention)
    numbers = [mesh.submit([5 + i, 9, 300 + i], worker=i % spread, max_tokens=tokens) for i in range(batch)]
    times: list[float] = []

    def watch() -> bool:
        while len(mesh.peek(numbers[-1]).tokens) > len(times):
            times.append(time.perf_counter())
        return all(mesh.peek(number).finish for number in numbers)

    mesh.pump(watch, "the streams' ends")
    return [b - a for a, b in itertools.pairwise(times[2:])]


def measure(model: Path, devices: Devices, tokens: int, rounds: int) -> dict[str, float]:
    """Median milliseconds per step of each choice, measured in turns."""
    emulate(devices)
    found: dict[str, list[float]] = {choice: [] for choice in CHOICES}
    meshes: dict[str, InProcessMesh] = {}
    try:
        for choice in CHOICES:
            options = EngineOptions(kv_tokens=BATCH * (tokens + 200), micro_batches=choice)
            meshes[choice] = InProcessMesh(
                model, transport=lambda member: DelayedTransport(member, devices.link * 1e-3),
                attention_options=options,
            ).__enter__()  # fmt: skip
        gaps(meshes["auto"], BATCH, 150)  # it has made up its mind by then
        for _ in range(rounds):
            for choice in CHOICES:
                found[choice] += gaps(meshes[choice], BATCH, tokens)
    finally:
        for mesh in meshes.values():
            mesh.close()
    return {choice: 1e3 * statistics.median(times) for choice, times in found.items()}


@click.command()
@click.option("--tokens", default=16, show_default=True, help="Tokens per stream and round.")
@click.option("--rounds", default=2, show_default=True)
@click.option("--save/--no-save", default=True, help="Write results/microbatch.md.")
def main(tokens: int, rounds: int, save: bool) -> None:
    """Measure; writes results/microbatch.md."""
    torch.set_num_threads(1)
    set_num_threads(1)
    head = "| devices | attention | half | MoE | half | link | 1 predicted | 1 | 2 predicted | 2 | auto | 1 / 2 |"
    lines = [head, "| --- " * 12 + "|"]
    with tempfile.TemporaryDirectory() as scratch:
        model = make_tiny(Path(scratch), family="mixtral", seed=1)
        for name, devices in CASES.items():
            took = measure(model, devices, tokens, rounds)
            d = devices
            lines.append(
                f"| {name} | {d.attention:g} | {d.attention_half:g} | {d.moe:g} | {d.moe_half:g} | {d.link:g} | "
                f"{d.predicted(1):.0f} | {took['1']:.0f} | {d.predicted(2):.0f} | {took['2']:.0f} | "
                f"{took['auto']:.0f} | {took['1'] / took['2']:.2f} |"
            )
            click.echo(lines[-1])
    body = "\n".join(lines) + (
        f"\n\nMilliseconds. attention, MoE: per layer and whole batch of {BATCH}, emulated; half: the share of it that "
        "half the batch takes (0.5: all of it is per token; 1: none is); link: one way, every message. Then a decode "
        f"step of {LAYERS} layers, 1x1, by `--micro-batches`: predicted without any host time, and measured."
    )  # fmt: skip
    if save:
        write("microbatch", "Two micro-batches", "python benchmarks/bench_microbatch.py", body)


if __name__ == "__main__":
    main()
