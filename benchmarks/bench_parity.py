"""Parity with transformers: every family, dtype and mesh shape, on random tiny checkpoints; writes docs/parity.md.

``python benchmarks/bench_parity.py``: checkpoints are made and saved by transformers. For each, the mesh of one process
(the real engines as threads) continues prompts greedily; every chosen token and every logit is compared with
transformers in float32 on the same files. Some minutes on two cores.
"""

from __future__ import annotations

import logging
import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from janus_models import reference
from janus_models.config import load_config
from janus_models.families import FAMILIES
from janus_models.tiny import make_tiny
from janus_testing.inprocess import InProcessMesh
from janus_testing.quantise import to_fp8, to_mxfp4
from machine import machine

PAGE = Path(__file__).parents[1] / "docs" / "parity.md"
DTYPES = ("float32", "bfloat16", "float16")
SHAPES = ((1, 1, "moe"), (2, 3, "moe"), (2, 3, "attention"), (3, 2, "moe"))
PROMPTS, TOKENS = 6, 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """Greedy continuation of some prompts against transformers in float32."""

    same: int
    of: int
    worst: float
    """largest absolute difference of a logit"""

    def __str__(self) -> str:
        tokens = "all" if self.same == self.of else f"{self.same}/{self.of}"
        return f"{tokens}, {self.worst:.0e}"


def prompts(directory: Path, seed: int) -> list[list[int]]:
    """Random prompts of 1 to 60 tokens."""
    draw, vocab = random.Random(seed), load_config(directory).vocab_size
    return [[draw.randrange(3, vocab) for _ in range(draw.randrange(1, 61))] for _ in range(PROMPTS)]


def compare(directory: Path, prompt: list[int], tokens: list[int], logits: torch.Tensor) -> Outcome:
    """One stream: each token against the argmax after the same prefix, each logit against transformers' own."""
    expected = reference.prompt_logits(directory, [*prompt, *tokens[:-1]])[len(prompt) - 1 :]
    same = sum(int(row.argmax()) == token for row, token in zip(expected, tokens, strict=True))
    return Outcome(same, len(tokens), float((logits - expected).abs().max()))


def total(outcomes: list[Outcome]) -> Outcome:
    """Of all streams together."""
    return Outcome(sum(o.same for o in outcomes), sum(o.of for o in outcomes), max(o.worst for o in outcomes))


def on_mesh(directory: Path, attention: int, experts: int, gating: str, dtype: str) -> Outcome:
    """The mesh of this shape, serving in ``dtype``: weights and KV cache are kept in it, arithmetic is float32."""
    asked = prompts(directory, seed=attention * 10 + experts)
    with InProcessMesh(
        directory, attention=attention, experts=experts, gating=gating, dtype=dtype, timeout_s=300
    ) as mesh:
        answers = mesh.generate(asked, max_tokens=TOKENS, logits=True)
    return total(
        [
            compare(
                directory, prompt, answer.tokens, torch.stack([torch.tensor(row) for row in answer.logits])
            )
            for prompt, answer in zip(asked, answers, strict=True)
        ]
    )


def of_transformers(directory: Path, dtype: str) -> Outcome:
    """transformers in ``dtype`` itself, the usual way to serve such a checkpoint, against its own float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    outcomes = []
    for prompt in prompts(directory, seed=23):
        with torch.inference_mode():
            ids = model.generate(
                torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None
            )
            logits = model(input_ids=ids[:, :-1]).logits[0, len(prompt) - 1 :].float()
        outcomes.append(compare(directory, prompt, ids[0, len(prompt) :].tolist(), logits))
    return total(outcomes)


def row(title: str, directory: Path, dtype: str) -> str:
    """One line of the table."""
    cells = [str(on_mesh(directory, *shape, dtype="float32")) for shape in SHAPES]
    if dtype in DTYPES[1:]:
        cells += [str(on_mesh(directory, 2, 3, "moe", dtype)), str(of_transformers(directory, dtype))]
    else:
        cells += ["", ""]
    line = f"| {title} | {dtype} | " + " | ".join(cells) + " |"
    click.echo(line)
    return line


@click.command()
@click.option(
    "--family", "chosen", multiple=True, type=click.Choice(list(FAMILIES)), help="Only these; writes nothing."
)
def main(chosen: tuple[str, ...]) -> None:
    """Measure, and write docs/parity.md."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    logging.getLogger("janus").setLevel(logging.ERROR)  # engines that end one after another say so
    torch.set_num_threads(2)
    lines = []
    for family in chosen or FAMILIES:
        with tempfile.TemporaryDirectory() as scratch:
            for dtype in DTYPES:
                directory = make_tiny(Path(scratch) / dtype, family, seed=41, dtype=dtype)
                lines.append(row(family, directory, dtype))
            if family == "deepseek_v3":
                lines.append(
                    row(family, to_fp8(Path(scratch) / "float32", Path(scratch) / "fp8", (8, 8)), "FP8")
                )
            if family == "gpt_oss":
                plain = make_tiny(Path(scratch) / "plain", family, seed=41, intermediate_size=64)
                lines.append(row(family, to_mxfp4(plain, Path(scratch) / "mxfp4"), "MXFP4"))
    if not chosen:
        PAGE.write_text(page(lines))


def page(lines: list[str]) -> str:
    """The whole document."""
    shapes = " | ".join(f"{m}:{n} {'EGate' if gating == 'moe' else 'AGate'}" for m, n, gating in SHAPES)
    return f"""# Parity with transformers

Each cell: greedy tokens that equal transformers' ({PROMPTS} prompts of 1 to 60 tokens, {TOKENS} tokens each), and the
largest absolute difference of a logit. The yardstick is always transformers in float32 on the same files: random
tiny checkpoints that it made and saved itself (`janus_models.tiny`); their logits spread over several units. m:n is
attention by MoE workers, all engines real, in one process.

- *m:n* columns serve in float32 whatever the files hold (weights of a narrower file stay as they are).
- *own dtype* serves in the files' dtype: the KV cache is then rounded to it, arithmetic stays float32.
- *transformers, own dtype* is transformers computing in that dtype, against its own float32, for comparison.
  In half precision a rounding now and then flips a router or an argmax: one such token makes a large difference.
- FP8 is quantised in blocks as DeepSeek-V3 is published, MXFP4 as gpt_oss is; transformers reads the same files.

More configurations (windows, yarn, groups, biases, a query bottleneck or none, ...) are in
`janus_testing.variants`; the tests in `tests/models` hold each of them to 1e-4 and token for token.

`python benchmarks/bench_parity.py` on {machine()}

| family | files | {shapes} | own dtype, 2:3 | transformers, own dtype |
| --- | --- | {"--- | " * len(SHAPES)}--- | --- |
{chr(10).join(lines)}
"""


if __name__ == "__main__":
    main()
