"""Choosing a token from a large vocabulary: milliseconds of one thread's processor time per token.

``python benchmarks/bench_sample.py``; writes results/sample.md. Logits are N(0, scale): flat ones, where top_p keeps
most of the vocabulary, to peaked ones.
"""

from __future__ import annotations

import statistics
import time

import click
import torch
from janus_kernels import set_num_threads
from janus_kernels.ops import backends, sample, use_backend
from machine import write

LIMITS: dict[str, dict[str, float]] = {
    "none": {}, "top_p 0.9": {"top_p": 0.9}, "top_p 0.99": {"top_p": 0.99}, "top_k 50": {"top_k": 50},
    "top_k 50, top_p 0.9": {"top_k": 50, "top_p": 0.9}, "min_p 0.05": {"min_p": 0.05},
}  # fmt: skip


def milliseconds(logits: torch.Tensor, draws: int, **limits: float) -> float:
    """Median thread time of a draw."""
    times = []
    for index in range(draws):
        began = time.thread_time()
        sample(logits, temperature=0.8, seed=1, index=index, **limits)  # type: ignore[arg-type]
        times.append(time.thread_time() - began)
    return 1e3 * statistics.median(times)


@click.command()
@click.option("--vocabulary", default=151_936, show_default=True)
@click.option("--draws", default=20, show_default=True)
@click.option("--save/--no-save", default=True, help="Write results/sample.md.")
def main(vocabulary: int, draws: int, save: bool) -> None:
    """Measure every backend for CPU tensors."""
    torch.set_num_threads(1)
    set_num_threads(1)
    names = [name for name in backends() if name != "triton"]
    scales = (1.0, 3.0, 8.0)
    head = [f"{name}, scale {scale:g}" for name in names for scale in scales]
    lines = ["| limits | " + " | ".join(head) + " |", "| --- " * (len(head) + 1) + "|"]
    generator = torch.Generator().manual_seed(0)
    logits = {scale: torch.randn(vocabulary, generator=generator) * scale for scale in scales}
    for label, limits in LIMITS.items():
        cells = []
        for name in names:
            with use_backend(name):
                cells += [f"{milliseconds(logits[scale], draws, **limits):.1f}" for scale in scales]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
        click.echo(lines[-1])
    body = "\n".join(lines) + f"\n\nMilliseconds per token, vocabulary {vocabulary}."
    if save:
        write("sample", "Choosing a token", "python benchmarks/bench_sample.py", body)


if __name__ == "__main__":
    main()
