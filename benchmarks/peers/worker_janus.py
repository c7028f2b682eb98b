"""Janus, answering bench_peers.py as worker_vllm.py does: ``local`` is the model in one process, ``1x2:1`` engine
processes of one attention by two MoE workers, one thread each, over UCX."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Protocol

import torch
from janus_attention.engine import EngineOptions
from janus_kernels import set_num_threads
from janus_models.local import LocalModel
from janus_testing.processes import ProcessMesh


class Engine(Protocol):
    """Something that decodes prompts greedily."""

    def run(self, prompts: list[list[int]], tokens: int) -> list[float]:
        """Monotonic times at which every stream had its 1st, 2nd, ... token."""


class Local:
    """janus_models.local: no mesh."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        set_num_threads(threads)
        self._model = LocalModel(model, "bfloat16", kv_blocks=64 * 8)

    def run(self, prompts: list[list[int]], tokens: int) -> list[float]:
        sequences = [self._model.new_sequence(prompt) for prompt in prompts]
        times = []
        for _ in range(tokens):
            work = [(s, len(s.ids) - s.cached) for s in sequences]
            h_TD = self._model.step(work)
            last = torch.tensor([count for _, count in work]).cumsum(0) - 1
            chosen = self._model.attention.logits(h_TD[last]).argmax(-1).tolist()
            times.append(time.perf_counter())
            for sequence, token in zip(sequences, chosen, strict=True):
                sequence.ids.append(token)
        for sequence in sequences:
            self._model.release(sequence)
        return times


class Mesh:
    """Engine processes."""

    def __init__(self, model: str, shape: str) -> None:
        size, _, threads = shape.partition(":")
        m, n = (int(number) for number in size.split("x"))
        options = EngineOptions(
            max_batch_tokens=1024,
            kv_tokens=64 * 64,
            max_sequences=64,
            prefix_cache=False,
            prefill_tokens=1024,
        )
        self._mesh = ProcessMesh(
            model, attention=m, experts=n, threads=int(threads), dtype="bfloat16", attention_options=options
        )
        self._spread = m
        self._mesh.__enter__()

    def run(self, prompts: list[list[int]], tokens: int) -> list[float]:
        mesh = self._mesh
        numbers = [
            mesh.submit(prompt, worker=i % self._spread, max_tokens=tokens)
            for i, prompt in enumerate(prompts)
        ]
        times: list[float] = []

        def watch() -> bool:
            while len(times) < min(len(mesh.peek(number).tokens) for number in numbers):
                times.append(time.perf_counter())
            return all(mesh.peek(number).finish for number in numbers)

        mesh.pump(watch, "the streams' ends")
        return times


def main() -> None:
    model, kind, answers = sys.argv[1], sys.argv[2], os.fdopen(3, "w")
    torch.set_grad_enabled(False)
    size, _, threads = kind.partition(":")
    engine: Engine = Local(model, int(threads)) if size == "local" else Mesh(model, kind)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        rng = random.Random(question["seed"])
        prompts = [
            [rng.randrange(3, 32000) for _ in range(question["prompt"])] for _ in range(question["batch"])
        ]
        began = time.perf_counter()
        times = engine.run(prompts, question["tokens"])
        answer = {
            "prefill_s": times[0] - began, "decode_s": times[-1] - times[0],
            "decoded": question["batch"] * (len(times) - 1),
        }  # fmt: skip
        print(json.dumps(answer), file=answers, flush=True)
    if isinstance(engine, Mesh):
        engine._mesh.close()


if __name__ == "__main__":
    main()
