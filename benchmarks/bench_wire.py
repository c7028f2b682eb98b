"""What hidden states rounded to bf16 on the wire change: logits, tokens, bytes.

A random qwen3_moe in fp32, one mesh with fp32 on the wire and one with bf16, the same prompts, greedy. Errors are of
the first token's logits, where both have read the same: relative to the largest logit's size, and of the chosen
token. Both meshes are one attention and two MoE engines in process. Writes results/wire.md.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import click
import numpy as np
from janus_attention.engine import EngineOptions
from janus_models.config import load_config
from janus_models.tiny import make_tiny
from janus_testing.inprocess import InProcessMesh
from machine import write


@click.command()
@click.option("--prompts", default=24, show_default=True)
@click.option("--tokens", default=16, show_default=True)
def main(prompts: int, tokens: int) -> None:
    """Measure; writes results/wire.md."""
    with tempfile.TemporaryDirectory() as place:
        model = make_tiny(
            Path(place) / "model", family="qwen3_moe", seed=3, num_experts=32, num_experts_per_tok=4, hidden_size=512,
            moe_intermediate_size=128, num_hidden_layers=8,
        )  # fmt: skip
        draw, vocab = random.Random(2), load_config(model).vocab_size
        asked = [[draw.randrange(3, vocab) for _ in range(draw.randrange(4, 40))] for _ in range(prompts)]
        found, sent = {}, {}
        for dtype in ("fp32", "bf16"):
            options = EngineOptions(kv_tokens=16384, wire_dtype=dtype)
            with InProcessMesh(model, attention=1, experts=2, attention_options=options) as mesh:
                found[dtype] = mesh.generate(asked, max_tokens=tokens, logits=True)
                sent[dtype] = int(mesh.attention[0].stats["exchange_bytes_sent"])
    errors, chosen, same, streams = [], [], 0, 0
    for exact, near in zip(found["fp32"], found["bf16"], strict=True):
        one, other = np.asarray(exact.logits[0], np.float64), np.asarray(near.logits[0], np.float64)
        errors.append(np.abs(one - other).max() / np.abs(one).max())
        chosen.append(abs(one[exact.tokens[0]] - other[exact.tokens[0]]) / abs(one[exact.tokens[0]]))
        same += exact.tokens[0] == near.tokens[0]
        streams += exact.tokens == near.tokens
    lines = [
        "| | |", "| --- | --- |",
        f"| largest error of a logit, relative: median, worst | {np.median(errors):.2%}, {max(errors):.2%} |",
        f"| error of the chosen token's logit, relative: median, worst | {np.median(chosen):.2%}, {max(chosen):.2%} |",
        f"| first tokens that are the same | {same} of {prompts} |",
        f"| streams of {tokens} tokens that are the same to the end | {streams} of {prompts} |",
        f"| bytes sent by the attention worker, fp32 and bf16 | {sent['fp32']}, {sent['bf16']} |",
    ]  # fmt: skip
    text = (__doc__ or "").split("\n\n", 1)[1].strip() + "\n\n" + "\n".join(lines)
    click.echo(text)
    click.echo(write("wire", "Hidden states on the wire", "python benchmarks/bench_wire.py", text))


if __name__ == "__main__":
    main()
