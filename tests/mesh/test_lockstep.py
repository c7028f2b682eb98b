"""Lockstep: idle workers, sleep and wake, cancellation, new cohorts mid-stream, replayed and foreign frames."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from janus_attention.engine import EngineOptions
from janus_models.reference import generate
from janus_testing.inprocess import InProcessMesh

PROMPT = [5, 9, 14, 3, 77, 21]


def test_one_busy_worker_steps_with_idle_ones_and_sleeps_after(mixtral: Path) -> None:
    with InProcessMesh(mixtral, attention=3, experts=2) as mesh:
        for worker in (0, 2, 1, 1):
            number = mesh.submit(PROMPT, worker=worker, max_tokens=4)
            assert mesh.answer(number).tokens == generate(mixtral, PROMPT, 4).ids
            time.sleep(0.05)


def test_idle_mesh_uses_no_cpu(mixtral: Path) -> None:
    with InProcessMesh(mixtral, attention=2, experts=2) as mesh:
        mesh.generate([PROMPT] * 2, max_tokens=2)
        time.sleep(0.3)
        before = time.process_time()
        time.sleep(1.0)
        assert time.process_time() - before < 0.02


def test_cancel_frees_the_sequence_and_spares_the_others(mixtral: Path) -> None:
    with InProcessMesh(mixtral, attention=1, experts=2) as mesh:
        doomed = mesh.submit(PROMPT, max_tokens=3000)
        other = mesh.submit(PROMPT[:3], max_tokens=20)
        mesh.pump(lambda: len(mesh.peek(doomed).tokens) > 2, "a few tokens")
        mesh.cancel(doomed)
        assert mesh.answer(doomed).finish == "cancelled"
        assert mesh.answer(other).tokens == generate(mixtral, PROMPT[:3], 20).ids
        mesh.pump(lambda: mesh.attention[0].stats.get("kv_tokens_used") == 0, "blocks given back")


def test_streams_survive_new_cohorts(mixtral: Path) -> None:
    expected = generate(mixtral, PROMPT, 60).ids
    with InProcessMesh(mixtral, attention=2, experts=1) as mesh:
        numbers = [mesh.submit(PROMPT, worker=i, max_tokens=60) for i in (0, 1)]
        for _ in range(3):
            seen = len(mesh.peek(numbers[0]).tokens)
            mesh.pump(lambda seen=seen: len(mesh.peek(numbers[0]).tokens) > seen + 4, "some tokens")
            mesh.add_moe()
            mesh.form()
        gone = mesh.moe[0]
        mesh.moe.remove(gone)
        mesh.form()
        mesh.stop(gone)
        assert [mesh.answer(number).tokens for number in numbers] == [expected, expected]


def test_short_of_kv_blocks_all_streams_still_finish(mixtral: Path) -> None:
    options = EngineOptions(kv_tokens=64, block_size=8, max_batch_tokens=16)
    prompts = [PROMPT[i:] + PROMPT for i in range(5)]
    with InProcessMesh(mixtral, experts=2, attention_options=options) as mesh:
        answers = mesh.generate(prompts, max_tokens=24)
        mesh.pump(lambda: mesh.attention[0].stats.get("preemptions", 0) > 0, "a preemption")
    assert [a.tokens for a in answers] == [generate(mixtral, p, 24).ids for p in prompts]


def test_resumed_stream_goes_on_exactly(mixtral: Path) -> None:
    sampling = {"temperature": 0.8, "top_p": 0.9, "seed": 1234}
    with InProcessMesh(mixtral, attention=2, experts=2) as mesh:
        whole = mesh.answer(mesh.submit(PROMPT, max_tokens=20, **sampling)).tokens
        rest = mesh.answer(mesh.submit(PROMPT, worker=1, resumed=whole[:7], max_tokens=20, **sampling)).tokens
        again = mesh.generate([PROMPT] * 4, max_tokens=20, **sampling)
        other = mesh.answer(mesh.submit(PROMPT, max_tokens=20, **{**sampling, "seed": 99})).tokens
    assert rest == whole[7:]
    assert all(answer.tokens == whole for answer in again)
    assert other != whole


def test_spans_of_both_sides_share_the_trace(mixtral: Path) -> None:
    trace, parent = "ab" * 16, "cd" * 8
    with InProcessMesh(mixtral, experts=2) as mesh:
        mesh.answer(mesh.submit(PROMPT, max_tokens=3, trace=(trace, parent)))
        mesh.pump(lambda: all(w.spans for w in mesh.workers), "spans of every engine")
        spans = [span for worker in mesh.workers for span in worker.spans]
        exchanges = {s["span"] for s in spans if s["name"] == "exchange.layer"}
    assert {s["trace"] for s in spans} == {trace}
    assert {s["name"] for s in spans} >= {"queue", "prefill", "step", "exchange.layer", "moe.layer", "decode"}
    assert all(s["parent"] in exchanges for s in spans if s["name"] == "moe.layer")


@pytest.mark.parametrize("seed", range(3))
def test_tokens_do_not_depend_on_where_experts_are(mixtral: Path, seed: int) -> None:
    draw = np.random.default_rng(seed)
    with InProcessMesh(mixtral, attention=1, experts=3) as mesh:
        layers, count = len(mesh.config.moe_layers), mesh.config.moe.num_experts
        results = []
        for _ in range(3):
            owners = draw.integers(0, 3, size=(layers, count))
            placement = [[np.flatnonzero(row == g).tolist() for g in range(3)] for row in owners]
            mesh.slots = count
            mesh.form(placement)
            answer = mesh.answer(mesh.submit(PROMPT, max_tokens=10, logits=True))
            results.append(np.stack(answer.logits))
    # Bit for bit: the combination over experts does not depend on the assignment.
    assert all(np.array_equal(result, results[0]) for result in results)
