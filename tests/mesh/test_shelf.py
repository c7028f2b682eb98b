"""A worker that is lost: who goes on with its streams finds what it had computed, bit for bit."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
from janus_attention.engine import EngineOptions
from janus_models.tiny import make_tiny
from janus_testing.inprocess import Answer, InProcessMesh

BLOCK = 8
OPTIONS = EngineOptions(kv_tokens=1024, block_size=BLOCK, cache_seed="model")
MORE: dict[str, Any] = {"max_tokens": 60, "logits": True, "temperature": 0.7, "seed": 5}


def bits(answer: Answer) -> bytes:
    return b"".join(row.tobytes() for row in answer.logits)


@pytest.fixture(scope="module", params=["mixtral", "deepseek_v2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    make_tiny(directory, family=request.param, seed=3)
    return directory


@pytest.fixture
def kept(tmp_path: Path) -> EngineOptions:
    return dataclasses.replace(OPTIONS, kv_shelf_mb=64, kv_shelf_folder=str(tmp_path / "shelf"))


@pytest.mark.parametrize("off", [False, True], ids=["kept", "switched off"])
def test_streams_of_a_lost_worker_go_on_without_computing_anew(
    model: Path, kept: EngineOptions, off: bool
) -> None:
    rng = random.Random(7)
    prompts = [[rng.randrange(3, 90) for _ in range(rng.randrange(30, 70))] for _ in range(5)]
    options = dataclasses.replace(kept, kv_shelf_mb=0) if off else kept
    with InProcessMesh(model, attention=2, experts=2, attention_options=options) as mesh:
        lost, other = mesh.attention
        whole = [mesh.answer(mesh.submit(p, **MORE, worker=1)) for p in prompts]
        # As in a worker that is new: what it has computed it would have in its own cache.
        mesh.stop(other)
        fresh = mesh.add_attention()
        mesh.form()
        numbers = [mesh.submit(p, **MORE) for p in prompts]
        mesh.pump(lambda: all(len(mesh.peek(n).tokens) >= 15 for n in numbers), "fifteen tokens of each")
        mesh.forget(lost)
        mesh.stop(lost)
        mesh.form()
        so_far = [list(mesh.peek(n).tokens) for n in numbers]
        rest = [
            mesh.submit(p, resumed=tokens, **MORE) for p, tokens in zip(prompts, so_far, strict=True)
        ]  # fmt: skip
        for number, tokens, one in zip(rest, so_far, whole, strict=True):
            answer = mesh.answer(number)
            assert tokens + answer.tokens == one.tokens
            assert bits(answer) == b"".join(row.tobytes() for row in one.logits[len(tokens) :])
        had = sum(map(len, prompts)) + sum(map(len, so_far))
        mesh.pump(lambda: fresh.stats["finished_requests"] == len(prompts), "the last report")
        made = sum(len(one.tokens) for one in whole) - sum(map(len, so_far))
        again = fresh.stats["step_tokens"] - made
        if off:
            assert fresh.stats["kv_recovered_tokens"] == 0
            assert again >= had - 3 * len(prompts)
        else:
            # The last token of each is computed for what follows it; two steps' rows may not have been copied yet.
            assert again <= 3 * len(prompts), f"{again} tokens of {had} were computed again"
            assert fresh.stats["kv_recovered_tokens"] >= had - 4 * len(prompts)
