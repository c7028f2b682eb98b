"""Decode steps replayed from graphs, as far as that can be seen without a GPU.

A graph here is the work itself, done again. So: batches, padded and written into the tensors of their shape, give the
bits that they give as they are; and what a graph reads lies where it lay when it was captured. What only a device can
refuse, such as waiting for it while capturing, is checked op by op where the kernels are compiled.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from janus_attention.engine import EngineOptions
from janus_attention.graphs import CudaRecorder, Replay, recorder_for, rounded_tokens
from janus_kernels.ops import use_backend
from janus_models.rope import RopeTable
from janus_models.tiny import make_tiny
from janus_testing.inprocess import Answer, InProcessMesh
from torch.utils._python_dispatch import TorchDispatchMode

OPTIONS = EngineOptions(kv_tokens=4096, max_batch_tokens=48)


class Again:
    """A recorder whose graphs are their work."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def capture(self, work: Callable[[], None]) -> Replay:
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def run(
    directory: Path,
    work: list[list[int]],
    recorder: Any = None,
    shape: tuple[int, int] = (1, 2),
    **options: Any,
) -> list[Answer]:
    with InProcessMesh(
        directory, attention=shape[0], experts=shape[1], recorder=recorder,
        attention_options=dataclasses.replace(OPTIONS, **options),
    ) as mesh:  # fmt: skip
        answers = mesh.generate(work, max_tokens=12, logits=True)
        if recorder is not None:
            mesh.pump(
                lambda: sum(w.stats.get("graph_steps", 0) for w in mesh.attention) > 0, "a replayed step"
            )
    return answers


def same(found: list[Answer], expected: list[Answer]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.tokens == b.tokens
        assert all(np.array_equal(x, y) for x, y in zip(a.logits, b.logits, strict=True)), "a bit differs"


@pytest.mark.parametrize("micro_batches", ["1", "2"])
@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v2", "gpt_oss"])
def test_the_same_bits_as_without(family: str, micro_batches: str, tmp_path: Path) -> None:
    """Dense layers, shared experts, latents, windows, sinks; batches of 5 fill up to 8, contexts grow wider."""
    make_tiny(tmp_path, family=family, seed=29)
    rng = random.Random(family)
    work = [[rng.randrange(3, 250) for _ in range(n)] for n in (1, 9, 60, 123, 124)]
    recorder = Again()
    same(run(tmp_path, work, recorder, micro_batches=micro_batches), run(tmp_path, work))
    assert recorder.replayed > recorder.captured > 0


def test_workers_with_and_without(mixtral: Path) -> None:
    """And a batch that is larger than what is replayed runs as it is."""
    work = [[5 + i, 7, 11 + i] for i in range(9)]
    same(run(mixtral, work, Again(), (2, 2), max_sequences=6), run(mixtral, work))


class Watched:
    """A recorder that holds a graph to the memory that its first replay read."""

    def __init__(self) -> None:
        self.moved: list[str] = []
        self.compared = 0

    def capture(self, work: Callable[[], None]) -> Replay:
        first: list[list[int]] = []

        def replay() -> None:
            seen = _Reads()
            with seen:
                work()
            if not first:
                first.append(seen.addresses)
            elif seen.addresses != first[0]:
                self.moved.append(f"{len(seen.addresses)} reads")
            else:
                self.compared += 1

        return replay


class _Reads(TorchDispatchMode):
    """Addresses of the tensors that ops take and that none of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[int] = []
        self._kept: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = [value for value in args if isinstance(value, torch.Tensor)]
        made = {_memory(value) for value in self._kept}
        self.addresses += [value.data_ptr() for value in taken if _memory(value) not in made]
        result = func(*args, **(kwargs or {}))
        inputs = {_memory(value) for value in taken}
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor) and _memory(value) not in inputs:
                self._kept.append(value)  # so that nothing else gets its memory meanwhile
        return result


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def test_what_a_graph_reads_stays_where_it_is(mixtral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through other batches between, new sequences, and contexts beyond what rotary tables begin with."""
    monkeypatch.setattr(RopeTable.__init__, "__defaults__", ("cpu", 4))
    recorder = Watched()
    with use_backend("torch"), InProcessMesh(mixtral, recorder=recorder, attention_options=OPTIONS) as mesh:
        for work in ([[5, 6]], [[5, 6], [7, 8, 9]], [[11, 12, 13]], [[5, 6], [7]]):
            mesh.generate(work, max_tokens=6)
    assert not recorder.moved
    assert recorder.compared > 20


def test_a_graph_that_cannot_be_captured_costs_speed_alone(
    mixtral: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Refuses:
        def capture(self, work: Callable[[], None]) -> Replay:
            raise RuntimeError("out of memory")

    work = [[5, 6, 7], [9, 10]]
    with caplog.at_level(logging.WARNING):
        same(run(mixtral, work, Refuses()), run(mixtral, work))
    assert "no CUDA graph of layer 0 for 2 tokens: out of memory" in caplog.text


def test_who_gets_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JANUS_ATTENTION_LIBRARY", raising=False)
    assert recorder_for("cpu", wanted=True) is None
    assert recorder_for("cuda:0", wanted=False) is None
    assert isinstance(recorder_for("cuda:0", wanted=True), CudaRecorder)
    monkeypatch.setattr("janus_kernels.triton.libraries.library", lambda: "flashinfer")
    assert recorder_for("cuda:0", wanted=True) is None


def test_rounding() -> None:
    found = {n: rounded_tokens(n) for n in (1, 2, 3, 5, 9, 16, 17, 32, 33, 64)}
    assert list(found.values()) == [1, 2, 4, 8, 16, 16, 32, 32, 48, 64]


SCRIPT = """
import json, sys
from janus_kernels.ops import use_backend
from janus_testing.inprocess import InProcessMesh
class Again:
    def capture(self, work):
        return work
with use_backend(sys.argv[2]), InProcessMesh(sys.argv[1], recorder=Again(), timeout_s=500) as mesh:
    print(json.dumps([answer.tokens for answer in mesh.generate([[5, 6, 7], [8], [11, 3]], max_tokens=4)]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_the_kernels_for_gpus(tmp_path: Path) -> None:
    """Interpreted, on CPU tensors: padding and wide tables change nothing there either."""
    make_tiny(tmp_path, family="mixtral", seed=3)

    def tokens(backend: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, tmp_path, backend], capture_output=True, text=True, timeout=550,
            env={**os.environ, "TRITON_INTERPRET": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    assert tokens("triton") == tokens("native")
