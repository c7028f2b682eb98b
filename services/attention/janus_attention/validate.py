"""Requests to an attention worker, checked. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from janus_runtime.errors import InvalidArgument
from janus_wire.v1 import attention_pb2, common_pb2

from janus_attention.blocks import NAME_BYTES
from janus_attention.guide import FIELD
from janus_attention.handover import MOST_BLOCKS
from janus_attention.moving import is_address

_MAX_LOGPROBS = 20
_MAX_PRIORITY = 1000
_MAX_WAITED_MS = 1 << 53
_MAX_STOP_IDS = 1024
_MAX_BIASES = 1024
_MAX_GUIDE_BYTES = 256 * 1024
_MAX_CHOICES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What this worker can take."""

    vocab_size: int
    context: int
    """Most tokens of a sequence, prompt and output."""
    eos_ids: tuple[int, ...]


def _between(field: str, value: float, low: float, high: float, allowed: str) -> None:
    # NaN compares false with everything, and is refused.
    if not low <= value <= high:
        raise InvalidArgument("is out of range", field=field, value=value, allowed=allowed)


def _ids(field: str, ids: Sequence[int], vocab_size: int) -> list[int]:
    listed = list(ids)
    if listed and max(listed) >= vocab_size:
        raise InvalidArgument(
            "is not a token of this model", field=field, value=max(listed), allowed=f"0..{vocab_size - 1}"
        )
    return listed


def submission(request: attention_pb2.AttentionServiceGenerateRequest, limits: Limits) -> dict[str, Any]:
    """The engine's submit message for a request, without its id and trace.

    Raises InvalidArgument naming the field, its value and the allowed range.
    """
    prompt = _ids("prompt_token_ids", request.prompt_token_ids, limits.vocab_size)
    resumed = _ids("resumed_token_ids", request.resumed_token_ids, limits.vocab_size)
    if not prompt:
        raise InvalidArgument("must not be empty", field="prompt_token_ids", allowed="1 token or more")
    if len(prompt) + len(resumed) >= limits.context:
        raise InvalidArgument(
            "prompt and resumed tokens leave no room for a new one", field="prompt_token_ids",
            value=len(prompt) + len(resumed), allowed=f"1..{limits.context - 1} tokens", reason="CONTEXT_EXCEEDED",
        )  # fmt: skip
    most = _MAX_PRIORITY
    _between("priority", request.priority, -most, most, f"{-most}..{most}; lower is earlier")
    _between("waited_ms", request.waited_ms, 0, _MAX_WAITED_MS, f"0..{_MAX_WAITED_MS} milliseconds")
    return {
        "t": "submit",
        "prompt": prompt,
        "resumed": resumed,
        "sampling": _sampling(
            request.sampling, limits, room=limits.context - len(prompt), resumed=len(resumed)
        ),
        "logits": request.return_logits,
        "priority": request.priority,
        "waited_ms": request.waited_ms,
    }


def check_hand_kv(request: attention_pb2.AttentionServiceHandKvRequest) -> None:
    """Raises InvalidArgument naming the field, its value and the allowed range."""
    _between("number", request.number, 1, (1 << 63) - 1, "1..2^63-1")
    _between("member", request.member, 1, (1 << 32) - 1, "1..2^32-1")
    if not is_address(request.transport_address):
        raise InvalidArgument(
            "is no transport address", field="transport_address", value=request.transport_address[:40],
            allowed="base64, as in the receiver's lease",
        )  # fmt: skip
    count = len(request.block_names)
    _between("block_names", count, 1, MOST_BLOCKS, f"1..{MOST_BLOCKS} names")
    odd = next((name for name in request.block_names if len(name) != NAME_BYTES), None)
    if odd is not None:
        raise InvalidArgument(
            "has a name of another length",
            field="block_names",
            value=f"{len(odd)} bytes",
            allowed="16 bytes each",
        )


def _sampling(
    params: common_pb2.SamplingParams, limits: Limits, *, room: int, resumed: int
) -> dict[str, Any]:
    temperature = params.temperature if params.HasField("temperature") else 1.0
    top_p = params.top_p if params.HasField("top_p") else 1.0
    max_tokens = params.max_tokens if params.HasField("max_tokens") else room
    _between("sampling.temperature", temperature, 0.0, 1e4, ">= 0; 0 is greedy")
    _between("sampling.top_p", top_p, 1e-9, 1.0, "(0, 1]")
    _between("sampling.min_p", params.min_p, 0.0, 1.0, "[0, 1]")
    _between("sampling.top_k", params.top_k, -1, 1 << 31, "-1 or 0 (off), or a positive number")
    _between("sampling.max_tokens", max_tokens, resumed + 1, 1 << 31, f"{resumed + 1} or more")
    if params.HasField("logprobs"):
        _between("sampling.logprobs", params.logprobs, 0, _MAX_LOGPROBS, f"0..{_MAX_LOGPROBS}")
    if params.stop:
        raise InvalidArgument(
            "an attention worker knows token ids only", field="sampling.stop", value=list(params.stop),
            next_step="Send stop strings to the gateway.",
        )  # fmt: skip
    if temperature > 0 and not params.HasField("seed"):
        raise InvalidArgument(
            "is required unless temperature is 0, so that the stream can go on elsewhere",
            field="sampling.seed",
        )
    repetition = params.repetition_penalty if params.HasField("repetition_penalty") else 1.0
    _between("sampling.repetition_penalty", repetition, 1e-6, 100.0, "above 0, at most 100")
    _between("sampling.frequency_penalty", params.frequency_penalty, -2.0, 2.0, "-2..2")
    _between("sampling.presence_penalty", params.presence_penalty, -2.0, 2.0, "-2..2")
    _between("sampling.logit_bias", len(params.logit_bias), 0, _MAX_BIASES, f"at most {_MAX_BIASES} tokens")
    _ids("sampling.logit_bias", list(params.logit_bias), limits.vocab_size)
    for token, bias in params.logit_bias.items():
        _between(f"sampling.logit_bias[{token}]", bias, -100.0, 100.0, "-100..100")
    stop_ids = _ids("sampling.stop_token_ids", params.stop_token_ids, limits.vocab_size)
    _between("sampling.stop_token_ids", len(stop_ids), 0, _MAX_STOP_IDS, f"at most {_MAX_STOP_IDS} ids")
    if not params.ignore_eos:
        stop_ids += limits.eos_ids
    return {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": max(params.top_k, 0),
        "min_p": params.min_p,
        "seed": params.seed,
        "max_tokens": min(max_tokens, room),
        "min_tokens": params.min_tokens,
        "stop_token_ids": sorted(set(stop_ids)),
        "logprobs": params.logprobs if params.HasField("logprobs") else None,
        "repetition_penalty": repetition,
        "frequency_penalty": params.frequency_penalty,
        "presence_penalty": params.presence_penalty,
        "logit_bias": sorted(params.logit_bias.items()),
        **({"guide": guide(params.guide)} if params.HasField("guide") else {}),
    }


def guide(message: common_pb2.Guide) -> dict[str, Any]:
    """A guide as the engine takes it; whether it can be followed, only compiling it tells."""
    kind = message.WhichOneof("kind")
    if kind is None or (kind == "json_object" and not message.json_object):
        raise InvalidArgument(
            "is empty", field=FIELD, allowed="json_object (true), json_schema, regex, grammar or choice"
        )
    field = f"{FIELD}.{kind}"
    _between(field, message.ByteSize(), 0, _MAX_GUIDE_BYTES, f"at most {_MAX_GUIDE_BYTES} bytes")
    if kind == "choice":
        texts = list(message.choice.texts)
        _between(field, len(texts), 1, _MAX_CHOICES, f"1..{_MAX_CHOICES} texts")
        if "" in texts:
            raise InvalidArgument("has an empty text", field=field, value="", allowed="1 character or more")
        return {"kind": kind, "texts": texts}
    text = "" if kind == "json_object" else getattr(message, kind)
    if kind in ("regex", "grammar") and not text:
        raise InvalidArgument("must not be empty", field=field, value="", allowed="1 character or more")
    return {"kind": kind, "text": text}
