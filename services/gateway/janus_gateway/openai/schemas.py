"""Request bodies of the OpenAI-compatible API, checked; InvalidArgument names a wrong field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Self, TypeVar

from janus_runtime.errors import InvalidArgument
from janus_wire.v1 import common_pb2
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from janus_gateway.openai.errors import from_validation
from janus_gateway.openai.guides import guide_of
from janus_gateway.sampling import MAX_LOGPROBS, Ask
from janus_gateway.tools import Function, ToolFormat
from janus_gateway.tools.plan import ToolAsk, arguments_of

B = TypeVar("B", bound="_Body")

MAX_MESSAGES = 4096
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning_effort": (),
    "suffix": ("",),
    "verbosity": (),
    "web_search_options": (),
}
"""Fields that this release does not act on, and the values that ask for nothing."""


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Body(BaseModel):
    """What both kinds of completions have."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str
    max_tokens: int | None = None
    n: int | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # Extensions.
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    response_format: Any = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: list[str] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    # Accepted; they change nothing that is generated.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    parallel_tool_calls: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            raise InvalidArgument("must be a JSON object", field="body", value=type(raw).__name__)
        for name, neutral in _NEUTRAL.items():
            value = raw.get(name)
            if (
                name in cls.model_fields
                and value is not None
                and not any(_same(value, good) for good in neutral)
            ):
                allowed = ", ".join(["absent", *(repr(v) for v in neutral)])
                raise InvalidArgument(
                    "is not supported",
                    field=name,
                    value=value,
                    allowed=allowed,
                    reason="UNSUPPORTED_FIELD",
                )
        return raw

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        if value is None or isinstance(value, list):
            return value
        if isinstance(value, str):
            return [value]
        raise InvalidArgument(
            "cannot be used", field="stop", value=value, allowed="a string, or a list of strings"
        )

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidArgument(
                "is only allowed with stream",
                field="stream_options",
                allowed='absent, or together with "stream": true',
            )
        return self

    @property
    def choices(self) -> int:
        """n, at least 1."""
        return 1 if self.n is None else self.n

    @cached_property
    def guide(self) -> tuple[common_pb2.Guide | None, str]:
        """What the output must be, and the field that says so."""
        return guide_of(dict(self))

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _ask(self, max_tokens: int | None, logprobs: int | None) -> Ask:
        return Ask(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            ignore_eos=bool(self.ignore_eos),
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            logprobs=logprobs,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=_bias(self.logit_bias or {}),
            guide=self.guide[0],
        )

    @classmethod
    def parse(cls: type[B], raw: bytes) -> B:
        """From a request's bytes. Raises InvalidArgument or Unimplemented naming the field."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise from_validation(error) from error


class FunctionBody(BaseModel):
    """``tools[].function``."""

    model_config = ConfigDict(strict=True, extra="forbid")
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """``tools[]``."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["function"]
    function: FunctionBody


class CalledFunction(BaseModel):
    """``messages[].tool_calls[].function``."""

    model_config = ConfigDict(strict=True, extra="forbid")
    name: str
    arguments: str


class ToolCall(BaseModel):
    """``messages[].tool_calls[]``."""

    model_config = ConfigDict(strict=True, extra="ignore")
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    """One message; a list of text parts counts as their concatenation."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        texts = []
        for part in value:
            if (
                not isinstance(part, dict)
                or part.get("type") != "text"
                or not isinstance(part.get("text"), str)
            ):
                kind = part.get("type") if isinstance(part, dict) else part
                raise InvalidArgument(
                    "has a part that is no text",
                    field="messages.content",
                    value=kind,
                    allowed='a string, or parts {"type": "text", "text": ...}',
                )
            texts.append(part["text"])
        return "".join(texts)


def plain_messages(messages: Sequence[ChatMessage], form: ToolFormat | None) -> list[dict[str, Any]]:
    """For the chat template, which knows no developers, and wants arguments as ``form`` does.

    Raises InvalidArgument for arguments that are no JSON object.
    """
    plain = []
    for index, message in enumerate(messages):
        fields = message.model_dump(exclude_none=True)
        fields.setdefault("content", "")
        if message.role == "developer":
            fields["role"] = "system"
        for place, call in enumerate(fields.get("tool_calls", ())):
            field = f"messages[{index}].tool_calls[{place}].function.arguments"
            call["function"]["arguments"] = arguments_of(call["function"]["arguments"], field, form)
        plain.append(fields)
    return plain


class ChatRequest(_Body):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    modalities: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    tool_choice: Any = None
    tools: list[Tool] | None = None
    verbosity: Any = None
    web_search_options: Any = None

    @property
    def max_tokens_name(self) -> str:
        """The spelling that the client used."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def tool_ask(self) -> ToolAsk:
        """The tools, and what is said of calling them."""
        functions = tuple(
            Function(
                name=tool.function.name,
                description=tool.function.description or "",
                parameters=tool.function.parameters,
                strict=bool(tool.function.strict),
            )
            for tool in self.tools or ()
        )
        choice, name = self.tool_choice, ""
        if isinstance(choice, dict):
            inner = choice.get("function")
            name = (
                inner.get("name", "") if isinstance(inner, dict) and choice.get("type") == "function" else ""
            )
            choice = "required" if isinstance(name, str) and name else choice
        if choice not in (None, "auto", "none", "required"):
            raise InvalidArgument(
                "cannot be used",
                field="tool_choice",
                value=choice,
                allowed='"none", "auto", "required" or {"type": "function", "function": {"name": ...}}',
            )
        return ToolAsk(
            functions=functions,
            mode=choice or "auto",
            name=name,
            parallel=self.parallel_tool_calls is not False,
            fields={"name": "tools[{}].function.name"},
        )

    def ask(self) -> Ask:
        """The sampling fields."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidArgument(
                "is only allowed with logprobs",
                field="top_logprobs",
                value=self.top_logprobs,
                allowed='absent, or together with "logprobs": true',
            )
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_LOGPROBS:
            raise InvalidArgument(
                "is out of range", field="top_logprobs", value=self.top_logprobs, allowed=f"0..{MAX_LOGPROBS}"
            )
        if (
            None not in (self.max_tokens, self.max_completion_tokens)
            and self.max_tokens != self.max_completion_tokens
        ):
            raise InvalidArgument(
                "contradicts max_completion_tokens",
                field="max_tokens",
                value=self.max_tokens,
                allowed="one of the two",
            )
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self._ask(limit, (self.top_logprobs or 0) if self.logprobs else None)


class CompletionRequest(_Body):
    """``POST /v1/completions``."""

    prompt: list[str | list[int]]
    logprobs: int | None = None
    best_of: Any = None
    echo: bool | None = None
    suffix: Any = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _many(cls, value: Any) -> Any:
        """A string, strings, token ids or lists of them; one becomes a list of one."""
        if isinstance(value, str):
            return [value]
        if isinstance(value, list) and value:
            if all(isinstance(v, str) for v in value) or all(_is_ids(v) for v in value):
                return value
            if _is_ids(value):
                return [value]
        raise InvalidArgument(
            "cannot be used",
            field="prompt",
            value=value,
            allowed="a string, a list of strings, "
            "a list of token ids, or a list of lists of token ids; not empty",
        )

    def ask(self) -> Ask:
        """The sampling fields."""
        if self.echo and self.logprobs is not None:
            raise InvalidArgument(
                "is not supported together with logprobs: prompt tokens have none here",
                field="echo",
                value=True,
                allowed="absent or false with logprobs",
            )
        return self._ask(self.max_tokens, self.logprobs)


def _bias(raw: Mapping[str, float]) -> dict[int, float]:
    """JSON's keys are strings."""
    found: dict[int, float] = {}
    for key, value in raw.items():
        if not (key.isascii() and key.isdigit() and len(key) < 16) or int(key) in found:
            raise InvalidArgument(
                "has a key that is no token id, or names one twice",
                field="logit_bias",
                value=key,
                allowed='token ids as decimal numbers, e.g. {"50256": -100}',
            )
        found[int(key)] = value
    return found


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)


def _same(value: Any, neutral: Any) -> bool:
    # 0 == False in Python, not in JSON.
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
