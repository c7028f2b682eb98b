"""What calls take and give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

FinishReason = Literal["stop", "length", "cancelled", "error", "tool_calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """TLS to the gateway. Without ``ca``: gRPC's own roots; with ``cert`` and ``key``: mutual TLS. PEM files."""

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool, by the model."""

    id: str
    name: str
    arguments: str
    """JSON text of an object, as the model wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """More of a call in a stream: first its id and name, then its arguments' text."""

    index: int
    """Which call of the answer."""
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that the model may call."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None
    """JSON Schema of the arguments' object; None: any."""
    strict: bool = False
    """Schema keywords that guided output does not know are an error where a call is forced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    name: str = ""
    tool_call_id: str = ""
    """Role tool: the call that this answers."""
    tool_calls: tuple[ToolCall, ...] = ()
    """Role assistant: what it called, as :class:`Completion` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of a request; an end-of-sequence token counts."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability."""

    token_id: int
    logprob: float
    top: tuple[TokenLogprob, ...] = ()
    """The likeliest tokens at this place, likeliest first; their own ``top`` is empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """What became known since the chunk before."""

    text: str
    """Never splits a character; may be empty."""
    index: int = 0
    """Which of the n answers this continues."""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of ``token_ids``, when asked for."""
    finish_reason: FinishReason | None = None
    """Set in each answer's last chunk."""
    usage: Usage | None = None
    """Set in the last chunk; counts all answers."""
    stop_sequence: str | None = None
    """The stop string that ended the stream."""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    """Parts of tool calls; their text is not in ``text``."""
    request_id: str = ""
    trace_id: str = ""
    """For `janus trace`; set in the first chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer: the chunks of a stream put together."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: FinishReason
    usage: Usage
    """Of the whole request: with several answers, of all of them."""
    stop_sequence: str | None
    request_id: str
    trace_id: str
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a mesh serves."""

    model: str
    family: str
    """``model_type`` of the checkpoint."""
    context_length: int
    """Most tokens of prompt and answer together."""
    vocab_size: int
    num_layers: int
    num_experts: int
    """Routed experts per MoE layer."""
    experts_per_token: int
    dtype: str
    """Of the workers; empty until a cohort has formed."""
    fingerprint: str
    """What every worker of the mesh agrees on; empty until a cohort has formed."""
