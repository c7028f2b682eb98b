"""What a request asks for, checked and completed with the model's defaults. Pure but for the random seed."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from janus_runtime.errors import InvalidArgument
from janus_wire.v1 import common_pb2

from janus_gateway.model import Defaults

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_IDS = 64
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_TEMPERATURE = 100.0
MAX_PRIORITY = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request's sampling fields; None: unset. Ranges are those of ``janus.v1.SamplingParams``."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    guide: common_pb2.Guide | None = None

    @classmethod
    def from_proto(cls, params: common_pb2.SamplingParams) -> Ask:
        """From the gRPC message."""

        def given(name: str) -> float | None:
            return getattr(params, name) if params.HasField(name) else None  # type: ignore[arg-type]

        optional = (
            "temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens", "logprobs",
            "repetition_penalty", "frequency_penalty", "presence_penalty",
        )  # fmt: skip
        return cls(
            ignore_eos=params.ignore_eos,
            stop=tuple(params.stop),
            stop_token_ids=tuple(params.stop_token_ids),
            logit_bias=dict(params.logit_bias),
            guide=params.guide if params.HasField("guide") else None,
            **{name: given(name) for name in optional},  # type: ignore[arg-type]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """How a protocol spells the fields, for errors: prefix, and names that differ."""

    prefix: str = ""
    max_tokens: str = "max_tokens"
    prompt: str = "prompt"
    logprobs: str = "logprobs"

    def __call__(self, field: str) -> str:
        return self.prefix + field


def _check(field: str, value: float, low: float, high: float, allowed: str) -> None:
    # NaN compares false with everything, and is refused.
    if not low <= value <= high:
        raise InvalidArgument("is out of range", field=field, value=value, allowed=allowed)


def check_priority(priority: int) -> int:
    """The priority of a request. Raises InvalidArgument when it is out of range."""
    _check(
        "priority",
        priority,
        -MAX_PRIORITY,
        MAX_PRIORITY,
        f"{-MAX_PRIORITY}..{MAX_PRIORITY}; lower is earlier",
    )
    return priority


def check(ask: Ask, names: Names, vocab_size: int) -> None:
    """Everything that can be judged without the prompt. Raises InvalidArgument naming the field."""
    if ask.temperature is not None:
        _check(
            names("temperature"),
            ask.temperature,
            0.0,
            MAX_TEMPERATURE,
            f"0..{MAX_TEMPERATURE:g}; 0 is greedy",
        )
    if ask.top_p is not None:
        _check(names("top_p"), ask.top_p, math.ulp(0.0), 1.0, "above 0, at most 1")
    if ask.top_k is not None:
        _check(names("top_k"), ask.top_k, -1, 2**31 - 1, "-1 or 0 (off), or a positive number")
    if ask.min_p is not None:
        _check(names("min_p"), ask.min_p, 0.0, 1.0, "0..1")
    if ask.repetition_penalty is not None:
        _check(names("repetition_penalty"), ask.repetition_penalty, 1e-6, 100.0, "above 0, at most 100")
    for name in ("frequency_penalty", "presence_penalty"):
        if (value := getattr(ask, name)) is not None:
            _check(names(name), value, -2.0, 2.0, "-2..2")
    _check_bias(ask.logit_bias, names("logit_bias"), vocab_size)
    if ask.logprobs is not None:
        _check(names(names.logprobs), ask.logprobs, 0, MAX_LOGPROBS, f"0..{MAX_LOGPROBS}")
    if len(ask.stop) > MAX_STOPS:
        raise InvalidArgument(
            "has too many entries", field=names("stop"), value=len(ask.stop), allowed=f"at most {MAX_STOPS}"
        )
    for stop in ask.stop:
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise InvalidArgument(
                "has an entry of unusable length",
                field=names("stop"),
                value=stop,
                allowed=f"1..{MAX_STOP_CHARS} characters",
            )
    if len(ask.stop_token_ids) > MAX_STOP_IDS:
        raise InvalidArgument(
            "has too many entries",
            field=names("stop_token_ids"),
            value=len(ask.stop_token_ids),
            allowed=f"at most {MAX_STOP_IDS}",
        )
    check_ids(ask.stop_token_ids, names("stop_token_ids"), vocab_size)


def _check_bias(bias: Mapping[int, float], field: str, vocab_size: int) -> None:
    if len(bias) > MAX_BIASES:
        raise InvalidArgument(
            "has too many entries", field=field, value=len(bias), allowed=f"at most {MAX_BIASES}"
        )
    check_ids(list(bias), field, vocab_size)
    for token_id, value in bias.items():
        _check(f"{field}[{token_id}]", value, -100.0, 100.0, "-100..100")


def check_ids(ids: Sequence[int], field: str, vocab_size: int) -> None:
    """Raises InvalidArgument for the first id that is none of the model's."""
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidArgument(
                "is not a token of this model", field=field, value=token_id, allowed=f"0..{vocab_size - 1}"
            )


def resolve(
    ask: Ask,
    names: Names,
    defaults: Defaults,
    *,
    prompt_tokens: int,
    context: int,
    default_max_tokens: int | None = None,
) -> common_pb2.SamplingParams:
    """What an attention worker gets: every field set, the seed fixed, so that another can go on exactly.

    ``default_max_tokens``: the protocol's, where generation_config names none; None: what is left of the
    context. Stop strings stay here. Raises InvalidArgument when prompt or max_tokens do not fit.
    """
    if not 1 <= prompt_tokens < context:
        raise InvalidArgument(
            "is empty"
            if prompt_tokens == 0
            else f"has {prompt_tokens} tokens and leaves no room for an answer",
            field=names.prompt,
            allowed=f"1..{context - 1} tokens",
            reason="CONTEXT_LENGTH_EXCEEDED" if prompt_tokens else "EMPTY_PROMPT",
        )
    room = context - prompt_tokens
    if ask.max_tokens is not None:
        if not 1 <= ask.max_tokens <= room:
            raise InvalidArgument(
                "is out of range",
                field=names(names.max_tokens),
                value=ask.max_tokens,
                allowed=f"1..{room} (context {context}, prompt {prompt_tokens} tokens)",
                reason="CONTEXT_LENGTH_EXCEEDED" if ask.max_tokens > room else "INVALID_ARGUMENT",
            )
        max_tokens = ask.max_tokens
    else:
        max_tokens = min(defaults.max_tokens or default_max_tokens or room, room)
    min_tokens = ask.min_tokens or 0
    if not 0 <= min_tokens <= max_tokens:
        raise InvalidArgument(
            "is out of range",
            field=names("min_tokens"),
            value=min_tokens,
            allowed=f"0..{max_tokens} (max_tokens)",
        )
    temperature = _first(ask.temperature, defaults.temperature, 1.0)
    params = common_pb2.SamplingParams(
        temperature=temperature,
        # Below this only the likeliest token is left anyway, and a float32 holds it.
        top_p=max(_first(ask.top_p, defaults.top_p, 1.0), 1e-6),
        top_k=max(0, int(_first(ask.top_k, defaults.top_k, 0))),
        min_p=_first(ask.min_p, defaults.min_p, 0.0),
        seed=secrets.randbits(63) if ask.seed is None else ask.seed % 2**64,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        ignore_eos=ask.ignore_eos,
        stop_token_ids=ask.stop_token_ids,
        repetition_penalty=_first(ask.repetition_penalty, defaults.repetition_penalty, 1.0),
        frequency_penalty=ask.frequency_penalty or 0.0,
        presence_penalty=ask.presence_penalty or 0.0,
        logit_bias=ask.logit_bias,
        guide=ask.guide,
    )
    if ask.logprobs is not None:
        params.logprobs = ask.logprobs
    return params


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of n choices: the first has the request's own, each other one unrelated to its neighbours.

    Neighbouring seeds must not do: choice 1 of seed 7 would be choice 0 of seed 8.
    """
    if not choice:
        return seed
    digest = hashlib.blake2b(f"{seed}/{choice}".encode(), digest_size=8, person=b"janus.choice")
    return int.from_bytes(digest.digest(), "little")


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
