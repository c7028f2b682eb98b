"""What the control process of an attention worker chooses for its engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the control process chooses for its engine."""

    max_batch_tokens: int = 512
    """Most tokens in one step; the same in the whole mesh."""
    max_sequences: int = 64
    """Most sequences in the batch."""
    kv_tokens: int = 16384
    """Tokens that the KV cache holds."""
    block_size: int = 16
    """Tokens per KV block."""
    stall_s: float = 5.0
    """Say whom a step waits for after this many seconds, and again each time they have passed."""
    trace_every: int = 32
    """Of a traced request's decode steps, every n-th is recorded with its layers; 0: none."""
    prefix_cache: bool = True
    """Keep full KV blocks and share them between sequences with the same prefix."""
    cache_seed: str = ""
    """The model's fingerprint: part of every cached block's name."""
    prefill_tokens: int = 0
    """Most prompt tokens in a step beside decoding streams; 0: as max_stall allows."""
    max_stall: float = 1.7
    """How many times as long prompts may make a step."""
    draft_tokens: int = 0
    """Most guessed tokens of a stream that a step checks; 0: none."""
    micro_batches: str = "auto"
    """Micro-batches of a step: "1", "2", or "auto": as the coordinator has measured to be quicker."""
    wire_dtype: str = "fp32"
    """Hidden states in frames: rows.WIRE_DTYPES."""
    emulated_token_us: float = 0.0
    """Least microseconds of a step per token; 0: none."""
    cuda_graphs: bool = True
    """Replay decode steps from CUDA graphs, where the device has them."""
    kv_shelf_mb: int = 0
    """Most MiB of the file in which KV rows are kept for whoever goes on when this worker is lost; 0: none."""
    kv_shelf_folder: str = ""
    """Where, for all workers of the mesh on this host."""
    kv_shelf_node: str = ""
    """Only workers of the same node read each other's files."""
