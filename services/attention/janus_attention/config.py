"""Settings of the attention worker."""

from __future__ import annotations

from dataclasses import dataclass

from janus_runtime.settings import setting
from janus_worker.settings import WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSettings(WorkerSettings):
    """The attention worker's own."""

    kv_tokens: int = setting(16384, minimum=16)
    """Tokens that the KV cache holds, over all sequences."""
    block_size: int = setting(16, minimum=1, maximum=1024)
    """Tokens per KV block."""
    max_sequences: int = setting(64, minimum=1, maximum=4096)
    """Most sequences in the batch."""
    max_waiting: int = setting(1024, minimum=1)
    """Most sequences queued; beyond it a request is refused with RESOURCE_EXHAUSTED."""
    guide_timeout_s: float = setting(10.0, minimum=0.1, maximum=600)
    """A guide (schema, regex, grammar) that is not compiled by then is refused."""
    trace_every: int = setting(32, minimum=0)
    """Of a traced request's decode steps, every n-th is recorded with its layers; 0: none."""
    prefix_cache: bool = setting(True)
    """Keep the KV blocks of finished sequences, and share them with those that begin alike."""
    prefill_tokens: int = setting(0, minimum=0, maximum=65536)
    """Most prompt tokens in a step while streams decode; 0: as many as --max-stall allows."""
    max_stall: float = setting(1.7, minimum=1.01, maximum=100)
    """How many times as long as without them prompts may make a step of decoding streams."""
    draft_tokens: int = setting(0, minimum=0, maximum=64)
    """Tokens guessed from a stream's own text that a step checks at once; 0: none. Never changes a token."""
    micro_batches: str = setting("auto", choices=("auto", "1", "2"))
    """Micro-batches of a step; with 2, attention of one overlaps experts of the other; auto: what is quicker."""
    wire_dtype: str = setting("fp32", choices=("fp32", "bf16"))
    """Hidden states on their way to the MoE workers; bf16 halves their bytes and rounds them: tokens may change. The
    same in the whole mesh."""
    kv_shelf_mb: int = setting(1024, minimum=0, maximum=1 << 20)
    """Most MiB, below /dev/shm, of the file in which KV rows are kept for whoever of this host goes on when this worker
    is lost; memory is taken as tokens come. 0: they are computed again. Needs --prefix-cache; on a CPU."""
    emulated_token_us: float = setting(0.0, minimum=0, maximum=1e6)
    """Least microseconds of a step per token of this worker, waited out: as if on a slower device. For demonstrations
    of scaling on a machine whose cores all workers share; 0: none."""
    cuda_graphs: bool = setting(True)
    """Replay decode steps from CUDA graphs, on a GPU."""
