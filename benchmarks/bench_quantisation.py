"""What narrower experts cost: perplexity of the demo model on its sample text, by dtype of the routed experts.

``python benchmarks/bench_quantisation.py`` writes results/quantisation.md. Everything but the experts stays float32.
The demo's dense weights come from a 4-bit file of affine groups of 32, so its experts lie on int4's own kind of grid.
"""

from __future__ import annotations

import importlib.resources
import math
import time
from typing import Any

import click
import torch
from janus_bench.kernels.report import table
from janus_kernels.native import set_num_threads
from janus_models.local import LocalModel
from janus_models.tokenizer import Tokenizer
from machine import write

_CAUTION = """The demo's experts were made from affine 4-bit groups of 32: int4 finds these exactly. Other models'
weights it changes, a Gaussian's by 7.3% (root mean square); its perplexity here says nothing about theirs."""
DTYPES = ("float32", "bfloat16", "int8", "int4")


def measure(model: LocalModel, passages: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Log-probabilities of each next token [N], the likeliest next tokens [N], and seconds."""
    began = time.perf_counter()
    own, best = [], []
    for ids in passages:
        sequence = model.new_sequence(ids)
        logits = model.attention.logits(model.step([(sequence, len(ids) - 1)])).double()
        model.release(sequence)
        after = torch.tensor(ids[1:])
        own.append(logits.log_softmax(-1).gather(1, after[:, None])[:, 0])
        best.append(logits.argmax(-1))
    return torch.cat(own), torch.cat(best), time.perf_counter() - began


@click.command()
@click.option("--model", default=".janus/demo", show_default=True, help="Checkpoint directory.")
@click.option("--tokens", default=1024, show_default=True, help="Tokens of the text.")
@click.option("--length", default=256, show_default=True, help="Tokens of a passage.")
@click.option("--threads", default=2, show_default=True)
def main(model: str, tokens: int, length: int, threads: int) -> None:
    """Perplexity by dtype of the experts; writes results/quantisation.md."""
    set_num_threads(threads)
    torch.set_num_threads(threads)
    text = (importlib.resources.files("janus_models") / "sample.txt").read_text()
    ids = Tokenizer(model).encode(text)[:tokens]
    passages = [ids[i : i + length] for i in range(0, len(ids) - 1, length)]
    rows: list[dict[str, Any]] = []
    first: torch.Tensor | None = None
    for dtype in DTYPES:
        local = LocalModel(model, expert_dtype=dtype)
        own, best, seconds = measure(local, [p for p in passages if len(p) > 1])
        first = best if first is None else first
        rows.append({
            "experts": dtype, "MiB per expert": local.experts.bytes_per_expert / 2**20,
            "perplexity": f"{math.exp(-float(own.mean())):.3f}",
            "same likeliest token as float32": f"{float((best == first).double().mean()):.1%}", "seconds": seconds,
        })  # fmt: skip
        click.echo(rows[-1])
        del local
    body = f"{len(ids)} tokens of `janus_models/sample.txt` in passages of {length}.\n\n{table(rows)}\n\n{_CAUTION}"
    path = write(
        "quantisation",
        "Quantised experts",
        f"python benchmarks/bench_quantisation.py --tokens {tokens}",
        body,
    )
    click.echo(f"written to {path}")


if __name__ == "__main__":
    main()
