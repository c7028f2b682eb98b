"""A sequence: one stream's tokens, from prompt to last token, and how its next token is chosen."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass, field
from typing import Any

from janus_attention.guide import Guide
from janus_attention.history import TokenHistory


class Finish(enum.StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen; checked by the servicer."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    """End-of-sequence ids included, unless they are ignored."""
    logprobs: int | None = None
    """None: off; n: the n likeliest beside the chosen one."""
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Distinct token ids, each with what is added to its logit."""
    guide: dict[str, Any] | None = None
    """What the output must be: ``kind``, and its ``text`` or ``texts`` (janus.v1.Guide)."""

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0

    @property
    def penalized(self) -> bool:
        """Whether the tokens so far change the next one's logits."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)

    @classmethod
    def from_message(cls, body: dict[str, Any]) -> Sampling:
        """From the engine link's JSON."""
        bias = tuple((token, value) for token, value in body.get("logit_bias", ()))
        return cls(**{**body, "stop_token_ids": frozenset(body["stop_token_ids"]), "logit_bias": bias})


@dataclass(slots=True, kw_only=True)
class Trace:
    """Where a request's spans hang."""

    trace_id: str
    """32 hex digits."""
    span_id: str
    """16 hex digits: the parent of the engine's spans."""


@dataclass(slots=True, kw_only=True)
class Sequence:
    """State of one stream. ``tokens[:computed]`` are in the KV cache."""

    id: int
    prompt: int
    """Tokens of the prompt."""
    tokens: list[int]
    """Prompt, then what has been generated."""
    sampling: Sampling
    resumed: int = 0
    """Generated tokens that another worker made and the client already has."""
    trace: Trace | None = None
    want_logits: bool = False
    computed: int = 0
    kept: int = 0
    """Of them, those that others of this host find when this worker is lost, or that cannot be kept (shelf.py)."""
    sought: bool = False
    """What other workers of this host have of it has been looked for."""
    blocks: list[int] = field(default_factory=list)
    history: TokenHistory = field(default_factory=TokenHistory)
    """Only kept up to date while penalties need it."""
    guide: Guide | None = None
    """State after all of ``tokens``; set before the sequence is queued, when ``sampling.guide`` is."""
    block_names: list[bytes] = field(default_factory=list)
    """Of the blocks that its tokens fill, as far as anyone asked (blocks.py)."""
    priority: int = 0
    """Lower goes first, and gives blocks up last."""
    waited_ms: int = 0
    """Since its client asked, when another worker had it before; 0: this is its first."""
    arrival: int = 0
    """Number among the worker's sequences."""
    served: int = 0
    """Number of the last step that it took part in."""
    admitted: int = 0
    """Number of the step in which it began to run."""
    cancelled: bool = False
    arrived_ns: int = field(default_factory=time.time_ns)
    started_ns: int = 0
    """First step's start; 0 while queued."""
    first_token_ns: int = 0

    @property
    def generated(self) -> int:
        """Tokens after the prompt, resumed ones included."""
        return len(self.tokens) - self.prompt

    @property
    def pending(self) -> int:
        """Tokens not in the KV cache: 1 in decode, more in prefill."""
        return len(self.tokens) - self.computed

    @property
    def moved(self) -> bool:
        """Whether it was at another worker, and has had no token here yet: its reader waits."""
        return self.again and self.resumed == self.generated

    @property
    def again(self) -> bool:
        """Whether another worker had it before."""
        return bool(self.resumed or self.waited_ms)

    def finish_after(self, token: int, context: int) -> Finish | None:
        """Whether ``token``, just appended, is the last one."""
        sampling = self.sampling
        if token in sampling.stop_token_ids and self.generated > sampling.min_tokens:
            return Finish.STOP
        if self.guide is not None and self.guide.ended:
            return None  # the guide's end counts, not the limits'
        if self.generated >= sampling.max_tokens or len(self.tokens) >= context:
            return Finish.LENGTH
        return None
