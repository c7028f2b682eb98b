"""The kernels beside what the machine can do and beside torch, all in one run.

Read bandwidth and the peak of fused multiply-adds are measured between the others, so that shares compare like
with like on a noisy machine, and bandwidth on memory of the same kind. Torch has turns of its own: its threads may
keep a processor busy for a while after each call. On a machine with other work, one thread and the "cpu" clock
leave out the time lent to others. One layer is 64 experts of hidden 1024 and inner 512, all with as many tokens.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from janus_kernels import POLICIES, ReplicaLayout, schedule
from janus_kernels.native import NATIVE, describe, set_num_threads
from janus_kernels.ops import (
    ExpertSet,
    ExpertWeights,
    expert_ffn,
    linear,
    new_pages,
    paged_attention,
    quantize_expert,
)

from janus_bench.errors import BenchError

HIDDEN, INNER, EXPERTS, TOPK = 1024, 512, 64, 8
SLOTS, LAYER_EXPERTS, LAYER_TOPK = 27, 160, 6
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUANTIZED = ("int8", "int4")
Row = dict[str, Any]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}


class Machine:
    """The clock, and probes that run beside the kernels."""

    def __init__(self, clock: str) -> None:
        self._clock = CLOCKS[clock]
        self._data = torch.ones(64 * 2**20)
        self._large = new_pages((1, 2**16, 16, 1, 64), torch.float32, "cpu", columns=False).fill_(1)
        self._rounds = 2_000_000
        assert NATIVE is not None
        self.flops: int = NATIVE.fma_probe(1000) // 1000 * self._rounds

    def medians(self, rounds: int, **cases: Callable[[], object]) -> dict[str, float]:
        """Median seconds of each case, all taken in turns."""
        samples: dict[str, list[float]] = {name: [] for name in cases}
        for turn in range(rounds + 1):
            for name, case in cases.items():
                began = self._clock()
                case()
                if turn:
                    samples[name].append(self._clock() - began)
        return {name: statistics.median(times) for name, times in samples.items()}

    def probes(self, *, large_pages: bool = False) -> dict[str, Callable[[], object]]:
        """Cases for :func:`medians`: ``read``, of memory as a cache is on or of plain memory, and ``fma``."""
        assert NATIVE is not None
        native, data = NATIVE, self._large if large_pages else self._data
        return {
            "read": lambda: native.read_probe(data.data_ptr(), data.nbytes),
            "fma": lambda: native.fma_probe(self._rounds),
        }

    def bandwidth(self, times: dict[str, float]) -> float:
        """Bytes/s."""
        return self._data.nbytes / times["read"]

    def peak(self, times: dict[str, float]) -> float:
        """FLOP/s."""
        return self.flops / times["fma"]


def make_experts(dtype: torch.dtype) -> ExpertSet:
    """Random weights of one layer."""

    def w(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape) * 0.02).to(dtype)

    return ExpertSet(
        {e: ExpertWeights(w(INNER, HIDDEN), w(INNER, HIDDEN), w(HIDDEN, INNER)) for e in range(EXPERTS)}
    )


def routed(experts: ExpertSet, tokens: int, active: int) -> Callable[[], object]:
    """A call of expert_ffn: ``tokens`` tokens, spread evenly over ``active`` experts."""
    topk = min(TOPK, active)
    step = active // topk
    ids = torch.tensor([[i * step + t % step for i in range(topk)] for t in range(tokens)], dtype=torch.int32)
    x, weights = torch.randn(tokens, HIDDEN), torch.rand(tokens, topk)
    mine = torch.ones(tokens, topk, dtype=torch.bool)
    out = torch.empty(tokens, HIDDEN, dtype=torch.float64)
    return lambda: expert_ffn(x, ids, weights, mine, experts, out)


def torch_experts(experts: ExpertSet, per_expert: int) -> Callable[[], object]:
    """The same products by torch, an expert at a time, without gathering and combining."""
    x = torch.randn(per_expert, HIDDEN)
    functional = torch.nn.functional

    def call() -> None:
        for e in experts.values():
            functional.linear(
                functional.silu(functional.linear(x, e.gate)) * functional.linear(x, e.up), e.down
            )

    return call


def torch_batched(experts: ExpertSet, per_expert: int) -> Callable[[], object]:
    """The same products by torch, all experts at once from stacked weights: what equal numbers of tokens allow."""
    parts = [torch.stack([getattr(e, p) for e in experts.values()]) for p in ("gate", "up", "down")]
    gate, up, down = (part.transpose(1, 2) for part in parts)
    x = torch.randn(EXPERTS, per_expert, HIDDEN)
    return lambda: torch.bmm(torch.nn.functional.silu(torch.bmm(x, gate)) * torch.bmm(x, up), down)


def bench_experts(machine: Machine, rounds: int) -> Iterator[Row]:
    """Shares of bandwidth and peak by kind of weights and tokens per expert."""
    for name in (*DTYPES, *QUANTIZED):
        experts = make_experts(DTYPES.get(name, torch.float32))
        if name in QUANTIZED:
            experts = ExpertSet({e: quantize_expert(w, name) for e, w in experts.items()})
        size = sum(t.nbytes for e in experts.values() for t in (e.gate, e.up, e.down, *(e.scales or ())))
        for per_expert in (1, 2, 4, 8, 16, 64):
            cases = {"ours": routed(experts, per_expert * EXPERTS // TOPK, EXPERTS), **machine.probes()}
            times = machine.medians(rounds, **cases)
            if name == "fp32":
                peers = {
                    "torch": torch_experts(experts, per_expert),
                    "batched": torch_batched(experts, per_expert),
                }
                times |= machine.medians(rounds, **peers)
            rate = per_expert * EXPERTS * 6 * HIDDEN * INNER / times["ours"]
            yield {
                "weights": name, "tokens per expert": per_expert, "ms": times["ours"] * 1e3,
                "GB/s": size / times["ours"] / 1e9,
                "of read bandwidth": size / times["ours"] / machine.bandwidth(times),
                "GFLOP/s": rate / 1e9, "of FMA peak": rate / machine.peak(times),
                "torch ms": times["torch"] * 1e3 if "torch" in times else None,
                "torch bmm ms": times["batched"] * 1e3 if "batched" in times else None,
            }  # fmt: skip


def bench_linear(machine: Machine, rounds: int) -> Iterator[Row]:
    """48 different [1024, 1024] weights one after the other, so that none stays in a cache."""
    for name, dtype in DTYPES.items():
        weights = [torch.randn(HIDDEN, HIDDEN).to(dtype) for _ in range(48)]
        for tokens in (1, 4, 16, 64):
            x = torch.randn(tokens, HIDDEN)

            def each(
                fn: Callable[..., object], x: torch.Tensor = x, ws: list[torch.Tensor] = weights
            ) -> None:
                for w in ws:
                    fn(x, w)

            cases: dict[str, Callable[[], object]] = {"ours": partial(each, linear), **machine.probes()}
            times = machine.medians(rounds, **cases)
            if name == "fp32":
                times |= machine.medians(rounds, torch=partial(each, torch.nn.functional.linear))
            one = times["ours"] / len(weights)
            yield {
                "weights": name, "tokens": tokens, "us": one * 1e6,
                "of read bandwidth": weights[0].nbytes / one / machine.bandwidth(times),
                "of FMA peak": 2 * tokens * HIDDEN**2 / one / machine.peak(times),
                "torch us": times["torch"] / len(weights) * 1e6 if "torch" in times else None,
            }  # fmt: skip


def bench_attention(machine: Machine, rounds: int) -> Iterator[Row]:
    """Decode of 16 sequences, 16 heads over 4 KV heads of 64, pages of 16 in random order."""
    batch, heads, kv_heads, dim, size = 16, 16, 4, 64, 16
    for name, dtype in DTYPES.items():
        for context in (1024, 2048, 4096, 8192):
            blocks = batch * context // size
            pages = (1, blocks, size, kv_heads, dim)
            keys, values = (new_pages(pages, dtype, "cpu", columns=c)[0].normal_() for c in (True, False))
            query = torch.randn(batch, heads, dim)
            meta: dict[str, Any] = {
                "query_starts": torch.arange(batch + 1, dtype=torch.int32),
                "context_lens": torch.full((batch,), context, dtype=torch.int32),
                "block_tables": torch.randperm(blocks).int().view(batch, -1), "scale": dim**-0.5,
            }  # fmt: skip
            ours = lambda q=query, k=keys, v=values, m=meta: paged_attention(q, k, v, **m)  # noqa: E731
            times = machine.medians(rounds, ours=ours, **machine.probes(large_pages=True))
            rate = 2 * keys.nbytes / times["ours"]
            yield {
                "cache": name, "context": context, "ms": times["ours"] * 1e3, "GB/s": rate / 1e9,
                "of read bandwidth": rate / machine.bandwidth(times),
            }  # fmt: skip


def replicated(instances: int, draw: np.random.Generator) -> ReplicaLayout:
    """E=160 over ``instances`` of 27 slots: every expert once, the spare slots to random others."""
    rows: list[list[int]] = [[] for _ in range(instances)]
    for place, expert in enumerate(draw.permutation(LAYER_EXPERTS)):
        rows[place % instances].append(int(expert))
    for row in rows:
        others = [int(e) for e in draw.permutation(LAYER_EXPERTS) if e not in row]
        row.extend(others[: SLOTS - len(row)])
    return ReplicaLayout.from_placement(rows, LAYER_EXPERTS, SLOTS)


def draw_ids(tokens: int, skew: float, draw: np.random.Generator) -> np.ndarray:
    """Top-6 of 160: Gumbel noise over popularities rank^-skew."""
    logits = -skew * np.log(np.arange(1, LAYER_EXPERTS + 1))
    noisy = logits + draw.gumbel(size=(tokens, LAYER_EXPERTS))
    return np.argpartition(-noisy, LAYER_TOPK, axis=1)[:, :LAYER_TOPK].astype(np.int32)


def bench_schedule(machine: Machine, draws: int = 12) -> Iterator[Row]:
    """Mean a_max of every policy, and the median time of ``optimal``, its compiled part and called from Python."""
    draw = np.random.default_rng(0)
    for routing, skew in (("uniform", 0.0), ("skewed", 1.0)):
        for instances in (6, 8, 12, 16):
            layout = replicated(instances, draw)
            for tokens in (16, 64, 256, 1024, 4096):
                batches = [draw_ids(tokens, skew, draw) for _ in range(draws if tokens < 1024 else 3)]
                row: Row = {"routing": routing, "instances": instances, "tokens": tokens}
                for policy in POLICIES:
                    row[policy] = statistics.mean(schedule(ids, layout, policy).a_max for ids in batches)
                ids, scheduler = batches[0], layout.native
                out, load = np.empty_like(ids), np.empty(instances, np.int32)
                times = machine.medians(
                    400 if tokens < 1024 else 100,
                    core=partial(scheduler.run, ids, 0, 0, 0, out, load),  # type: ignore[attr-defined]
                    optimal=partial(schedule, ids, layout),
                )
                yield {**row, "core us": times["core"] * 1e6, "optimal us": times["optimal"] * 1e6}


def bench_layer(machine: Machine, rounds: int) -> dict[str, list[Row]]:
    """Latency against distinct activated experts (16 tokens) and against tokens (all experts): fig. 2 and 3."""
    result: dict[str, list[Row]] = {"distinct": [], "tokens": []}
    for name, dtype in DTYPES.items():
        experts = make_experts(dtype)
        cases = {str(n): routed(experts, 16, n) for n in (8, 16, 24, 32, 40, 48, 56, 64)}
        for count, seconds in machine.medians(rounds, **cases).items():
            result["distinct"].append({"weights": name, "experts": int(count), "ms": seconds * 1e3})
        cases = {str(n): routed(experts, n, EXPERTS) for n in (8, 16, 32, 64, 128, 256)}
        for count, seconds in machine.medians(rounds, **cases).items():
            result["tokens"].append({"weights": name, "tokens": int(count), "ms": seconds * 1e3})
    return result


CASES: dict[str, Callable[[Machine, int], Any]] = {
    "experts": lambda machine, rounds: list(bench_experts(machine, rounds)),
    "linear": lambda machine, rounds: list(bench_linear(machine, rounds)),
    "attention": lambda machine, rounds: list(bench_attention(machine, rounds)),
    "schedule": lambda machine, rounds: list(bench_schedule(machine)),
    "layer": bench_layer,
}


def measure(*, threads: int, clock: str, rounds: int, cases: Sequence[str] = tuple(CASES)) -> dict[str, Any]:
    """Rows of each of ``cases``, and what the machine can do. BenchError without the compiled kernels."""
    if NATIVE is None:
        raise BenchError(
            "the compiled kernels are missing: pip install janus-mesh-kernels where a C++ compiler is"
        )
    if clock == "cpu" and threads != 1:
        raise BenchError("the cpu clock is one thread's time: add --threads 1")
    set_num_threads(threads)
    torch.set_num_threads(threads)
    machine = Machine(clock)
    times = machine.medians(rounds, **machine.probes())
    return {
        "kernels": describe(),
        "read GB/s": machine.bandwidth(times) / 1e9,
        "FMA GFLOP/s": machine.peak(times) / 1e9,
        **{name: CASES[name](machine, rounds) for name in cases},
    }
