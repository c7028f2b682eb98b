"""One MoE layer's pass on one MoE worker: gate, schedule, expert FFNs, partial sums. No I/O."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from janus_kernels import ReplicaLayout, Schedule, schedule
from janus_kernels.ops import ExpertSet, ExpertWeights, expert_ffn
from janus_models.experts import ExpertModel
from janus_runtime.metrics import SCHEDULE_BOUNDS_S
from janus_worker.histogram import Histogram

from janus_moe.activation import LayerGroups


@dataclass(slots=True)
class PassCounters:
    """What a MoE worker did since start. Sums; seconds where named so."""

    steps: int = 0
    layer_passes: int = 0
    tokens: int = 0
    expert_calls: int = 0
    expert_tokens: int = 0
    a_max_sum: int = 0
    moe_seconds: float = 0.0
    schedule_seconds: float = 0.0
    wait_seconds: float = 0.0
    experts_hosted: int = 0
    expert_bytes: int = 0


@dataclass(slots=True, kw_only=True)
class HostedLayout:
    """The replica layout in force as one instance runs it."""

    version: int
    rank: int
    policy: str
    layers: list[ReplicaLayout]
    experts: list[ExpertSet] = field(default_factory=list)
    """Per MoE layer: expert id to weights, for the experts placed on this rank."""


class MoeCompute:
    """Router, schedule and experts of one MoE worker."""

    def __init__(self, model: ExpertModel, counters: PassCounters, *, expert_s: float = 0.0) -> None:
        """``expert_s``: least seconds of a pass per distinct activated expert, waited out: an emulated device."""
        self._expert_s = expert_s
        self._model = model
        self._counters = counters
        self._hosted: HostedLayout | None = None
        self.groups = LayerGroups(model.num_layers, model.config.moe.num_experts)
        self.schedule_latency = Histogram(SCHEDULE_BOUNDS_S)

    def adopt(self, hosted: HostedLayout, loaded: Mapping[tuple[int, int], ExpertWeights]) -> None:
        """Serve ``hosted`` from now on; ``loaded`` holds (MoE layer, expert) weights."""
        hosted.experts = [
            ExpertSet({expert: loaded[layer, expert] for expert in layout.placement[hosted.rank]})
            for layer, layout in enumerate(hosted.layers)
        ]
        self._hosted = hosted
        self.groups.adopt(hosted.layers, hosted.rank)
        self._counters.experts_hosted = sum(len(layer) for layer in hosted.experts)
        self._counters.expert_bytes = self._counters.experts_hosted * self._model.bytes_per_expert

    def uses(self, layer: int, expert: int) -> bool:
        """Whether the layout in force places this expert of this MoE layer here."""
        return self._hosted is not None and expert in self._hosted.experts[layer]

    def gate(self, layer: int, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """EGate: top-k expert ids int32 [T, k] and weights fp64 [T, k] of hidden states fp32 [T, d]."""
        return self._model.gate(layer, x_TD)

    def run(
        self,
        layer: int,
        x_TD: torch.Tensor,
        ids_TK: torch.Tensor,
        weights_TK: torch.Tensor,
        out_TD: torch.Tensor,
        rows_R: np.ndarray[Any, np.dtype[np.int64]] | None = None,
    ) -> Schedule:
        """Partial sum of the routed experts that the schedule gives this rank. Tensors are on the model's device.

        Args:
            layer: MoE layer, counted from the first.
            x_TD: hidden states of the whole cohort in rank order, fp32.
            ids_TK: logical expert ids, int32.
            weights_TK: routing weights, fp64.
            out_TD: fp64, overwritten; each contribution is a multiple of 2^-34 (docs/decisions/0002).
            rows_R: where not all rows are here, the tokens that are: x, weights and out have these rows alone. They
                include every token that is routed to an expert of this rank.
        """
        hosted = self._hosted
        if hosted is None:
            raise RuntimeError("a pass was asked for before a layout was adopted")
        counters = self._counters
        started = time.perf_counter()
        plan = schedule(
            ids_TK.cpu().numpy(),
            hosted.layers[layer],
            hosted.policy,
            layout_version=hosted.version,
            seed=layer,
        )
        scheduled = time.perf_counter()
        mine_TK = torch.from_numpy(np.equal(plan.replica_ids // hosted.layers[layer].slots, hosted.rank))
        tokens = ids_TK.shape[0]
        if rows_R is not None:
            mine_TK, ids_TK = mine_TK[rows_R], ids_TK[rows_R]
        mine_TK = mine_TK.to(x_TD.device)
        stats = expert_ffn(
            x_TD, ids_TK, weights_TK, mine_TK, hosted.experts[layer], out_TD, self._model.activation
        )
        if (left := self._expert_s * stats.calls - (time.perf_counter() - scheduled)) > 0:
            time.sleep(left)
        counters.schedule_seconds += scheduled - started
        counters.moe_seconds += time.perf_counter() - started
        counters.layer_passes += 1
        counters.tokens += tokens
        counters.expert_calls += stats.calls
        counters.expert_tokens += stats.pairs
        counters.a_max_sum += plan.a_max
        self.schedule_latency.observe(scheduled - started)
        self.groups.add(layer, plan, spreads=hosted.policy == "token-balanced")
        return plan
