"""Settings that attention and MoE workers share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from janus_runtime.errors import InvalidArgument
from janus_runtime.settings import ServiceSettings, setting

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings(ServiceSettings):
    """A worker with an engine."""

    model: str = setting("", required=True)
    """Hugging Face checkpoint directory."""
    dtype: str = setting("float32", choices=_DTYPES)
    """Widest dtype of weights and KV cache."""
    expert_dtype: str = setting("same", choices=("same", *_DTYPES, "int8", "int4"))
    """Widest dtype of routed experts; int8 and int4 quantise them at load. The same in the whole mesh."""
    attention_dtype: str = setting("same", choices=("same", "int8", "int4"))
    """Quantise the matrices of attention, dense FFNs and shared experts at load. The same in the whole mesh."""
    device: str = setting("cpu")
    """Where the engine computes: cpu, cuda:INDEX, or cuda, which deals out the GPUs it sees (docs/gpu.md)."""
    transport: str = setting("ucx", choices=("ucx",))
    """Data-plane transport."""
    max_batch_tokens: int = setting(512, minimum=1, maximum=65536)
    """Most tokens that one attention worker sends per step; the same in the whole mesh."""
    threads: int = setting(0, minimum=0, maximum=1024)
    """Threads of the engine; 0: one per two cores, at least one."""
    stall_s: float = setting(5.0, minimum=0.1, maximum=3600)
    """Say whom a step waits for after this many seconds."""
    drain_s: float = setting(0.0, minimum=0, maximum=3600)
    """Seconds that the worker, told to stop, may take to drain first; 0: it stops at once, and its streams go on
    elsewhere as if it had died. For platforms that choose by themselves which worker ends."""

    def checked_model(self) -> Path:
        """The model directory. Raises InvalidArgument when it is none."""
        path = Path(self.model).expanduser()
        if not (path / "config.json").is_file():
            raise InvalidArgument(
                "is not a Hugging Face checkpoint directory (no config.json)", field="--model", value=self.model,
                next_step="Build the demo with `janus model demo DIR`, or name a downloaded checkpoint.",
            )  # fmt: skip
        return path

    def worker_options(self) -> dict[str, object]:
        """The part of the engine's options that both roles share."""
        return {
            "model": str(self.checked_model()),
            "dtype": self.dtype,
            "expert_dtype": self.dtype if self.expert_dtype == "same" else self.expert_dtype,
            "device": self.device,
            "attention_dtype": self.attention_dtype,
            "transport": self.transport,
            "max_batch_tokens": self.max_batch_tokens,
            "threads": self.threads or max(1, (os.cpu_count() or 2) // 2),
            "stall_s": self.stall_s,
            "log_level": self.log_level,
        }

    def cohort_key(self, checkpoint_fingerprint: str) -> str:
        """What members of a cohort must agree on, readable where it differs."""
        experts = "" if self.expert_dtype in ("same", self.dtype) else f"/{self.expert_dtype} experts"
        attention = "" if self.attention_dtype == "same" else f"/{self.attention_dtype} attention"
        return f"{checkpoint_fingerprint}/{self.dtype}{experts}{attention}/{self.max_batch_tokens} tokens"
