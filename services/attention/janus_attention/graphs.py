"""Decode steps replayed from CUDA graphs: what a layer computes between two exchanges is one launch, not dozens.

Each layer's work is captured once per shape and replayed with the step's batch written into the same tensors. A shape
is the tokens and the width of the block tables, both rounded up; what fills it up is computed and dropped, and, since
no kernel's result depends on a token's neighbours, changes no bit. The first step of a shape runs as it is, which
compiles its kernels; its second captures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from janus_models.decoder import AttentionModel, BatchMeta, KvCache

_LOG = logging.getLogger("janus.attention")

Replay = Callable[[], Any]


class Recorder(Protocol):
    """What captures work on a device."""

    def capture(self, work: Callable[[], None]) -> Replay:
        """Record ``work`` without doing it; what comes back does it. Raises RuntimeError where it cannot be."""
        ...


class CudaRecorder:
    """CUDA graphs of the current device, in one pool of memory: none of them outlives a layer with its scratch."""

    def __init__(self) -> None:
        self._pool: Any = None

    def capture(self, work: Callable[[], None]) -> Replay:
        """See :class:`Recorder`. Other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        self._pool = graph.pool()
        replay: Replay = graph.replay
        return replay


def recorder_for(device: str, wanted: bool) -> Recorder | None:
    """What captures on ``device``; None where there are no graphs, or none are wanted."""
    if not wanted or not device.startswith("cuda"):
        return None
    # Imports Triton, which a worker on a CPU has no use for.
    from janus_kernels.triton.libraries import library

    if library() == "flashinfer":
        _LOG.warning("no CUDA graphs: FlashInfer plans each step on the host")
        return None
    return CudaRecorder()


class LayerGraphs:
    """The graphs of one worker, by lane and shape."""

    def __init__(
        self, model: AttentionModel, kv: KvCache, recorder: Recorder, *, most: int, scratch: int
    ) -> None:
        """``most``: sequences of a batch that is replayed. ``scratch``: a block of ``kv`` that no sequence has."""
        self._model, self._kv, self._recorder = model, kv, recorder
        self._most, self._scratch = most, scratch
        self._shapes: dict[tuple[int, int, int], Staged] = {}

    def stage(self, lane: int, meta: BatchMeta, h_TD: torch.Tensor) -> Staged | None:
        """A lane's batch in the tensors of its shape's graphs; None where it is not to be replayed: prompts, and
        batches of more sequences than ``most``."""
        tokens, (sequences, width) = meta.positions.shape[0], meta.block_tables.shape
        if tokens != sequences or tokens > self._most:
            return None
        shape = lane, rounded_tokens(tokens), max(8, 1 << (width - 1).bit_length())
        if shape not in self._shapes:
            self._shapes[shape] = Staged(
                self._model, self._kv, self._recorder, *shape[1:], scratch=self._scratch
            )
        staged = self._shapes[shape]
        staged.write(meta, h_TD)
        return staged


def rounded_tokens(tokens: int) -> int:
    """Powers of two up to 16, then multiples of 16."""
    return 1 << (tokens - 1).bit_length() if tokens <= 16 else -(-tokens // 16) * 16


class Staged:
    """One shape's tensors and graphs. T tokens of the batch, then padding."""

    def __init__(
        self, model: AttentionModel, kv: KvCache, recorder: Recorder, tokens: int, width: int, *, scratch: int
    ) -> None:
        self._model, self._kv, self._recorder = model, kv, recorder
        self._scratch = scratch
        device = model.device

        def numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._meta = BatchMeta(
            positions=numbers(tokens, dtype=torch.int64),
            query_starts=torch.arange(tokens + 1, dtype=torch.int32, device=device),
            context_lens=numbers(tokens, dtype=torch.int32),
            block_tables=numbers(tokens, width, dtype=torch.int32),
            slots=numbers(tokens, dtype=torch.int64),
        )
        self._h, self._x, self._local = (
            numbers(tokens, model.config.hidden, dtype=torch.float32) for _ in range(3)
        )
        self._replays: dict[tuple[int, bool], Replay | None] = {}
        """By layer, and whether it is the local part beside the exchange. None: has run once."""
        self.h_TD = self._h
        """fp32 [T, d]: the batch's hidden states."""

    def write(self, meta: BatchMeta, h_TD: torch.Tensor) -> None:
        """Take over a batch. Padding attends to one token of a block that nobody owns."""
        tokens, width = meta.block_tables.shape
        mine = self._meta
        mine.positions[:tokens].copy_(meta.positions)
        mine.positions[tokens:].zero_()
        mine.context_lens[:tokens].copy_(meta.context_lens)
        mine.context_lens[tokens:].fill_(1)
        mine.block_tables[:tokens, :width].copy_(meta.block_tables)
        mine.block_tables[tokens:, 0].fill_(self._scratch)
        mine.slots[:tokens].copy_(meta.slots)
        mine.slots[tokens:].fill_(self._scratch * self._kv.block_size)
        self._h[tokens:].zero_()
        self.h_TD = self._h[:tokens].copy_(h_TD)

    def layer(self, layer: int) -> torch.Tensor:
        """Layer ``layer`` up to the norm before its routed experts, or, in a dense layer, whole: fp32 [T, d], what
        the norm gave."""

        def work() -> None:
            self._model.attention(layer, self._h, self._meta, self._kv)
            self._model.moe_norm(layer, self._h, out=self._x)
            if not self._model.is_moe(layer):
                self._h.add_(self._computed(layer))

        self._run((layer, False), work)
        return self._x[: self.h_TD.shape[0]]

    def local(self, layer: int) -> torch.Tensor | None:
        """An MoE layer's shared expert on what :meth:`layer` gave: fp32 [T, d]; None where the model has none."""
        if not self._model.has_local(layer):
            return None
        self._run((layer, True), lambda: self._local.copy_(self._computed(layer)))
        return self._local[: self.h_TD.shape[0]]

    def _computed(self, layer: int) -> torch.Tensor:
        local = self._model.local_ffn(layer, self._x)
        assert local is not None
        return local

    def _run(self, key: tuple[int, bool], work: Callable[[], Any]) -> None:
        if key not in self._replays:
            self._replays[key] = None
            work()
            return
        replay = self._replays[key]
        if replay is None:
            try:
                replay = self._recorder.capture(work)
            except RuntimeError as error:
                # Slower, and right: this layer of this shape runs as it is from now on.
                _LOG.warning("no CUDA graph of layer %d for %d tokens: %s", key[0], self._h.shape[0], error)
                replay = work
            self._replays[key] = replay
        replay()
