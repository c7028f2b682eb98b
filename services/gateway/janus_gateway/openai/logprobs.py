"""Log probabilities in OpenAI's two styles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from janus_wire.v1 import common_pb2

from janus_gateway.answer import Token
from janus_gateway.model import ServedModel

_LEAST = -9999.0  # JSON has no -infinity


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST) if logprob == logprob else _LEAST


def visible(tokens: Sequence[Token]) -> list[tuple[Token, common_pb2.TokenLogprobs]]:
    """Tokens whose text was given out, with their log probabilities."""
    return [(t, t.logprobs) for t in tokens if t.logprobs is not None and not t.hidden]


def chat(tokens: Sequence[Token], model: ServedModel) -> dict[str, Any]:
    """``choices[].logprobs`` of chat completions."""

    def entry(one: common_pb2.TokenLogprob) -> dict[str, Any]:
        return {
            "token": model.token_text(one.token_id),
            "logprob": _finite(one.logprob),
            "bytes": model.token_bytes(one.token_id),
        }

    content = [
        {**entry(probs.chosen), "top_logprobs": [entry(one) for one in probs.top]}
        for _, probs in visible(tokens)
    ]
    return {"content": content, "refusal": None}


def completion(tokens: Sequence[Token], model: ServedModel) -> dict[str, Any]:
    """``choices[].logprobs`` of completions; offsets count characters of this choice's text."""
    shown = visible(tokens)
    return {
        "tokens": [model.token_text(token.id) for token, _ in shown],
        "token_logprobs": [_finite(probs.chosen.logprob) for _, probs in shown],
        # Two tokens can have one text (parts of a character): the likelier one stays.
        "top_logprobs": [
            {model.token_text(one.token_id): _finite(one.logprob) for one in reversed(probs.top)}
            for _, probs in shown
        ],
        "text_offset": [token.start for token, _ in shown],
    }
