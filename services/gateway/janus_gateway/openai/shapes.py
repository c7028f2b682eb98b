"""The JSON of choices: chat completions and completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

from janus_wire.v1 import common_pb2

from janus_gateway.answer import Piece, Token
from janus_gateway.generation import Job
from janus_gateway.model import ServedModel
from janus_gateway.openai import logprobs
from janus_gateway.tools import CallPart

_FINISH: dict[int, str] = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    common_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


class Shape(Protocol):
    """How one kind of completion is written."""

    model: ServedModel
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]
    id_prefix: ClassVar[str]

    def choice(self, index: int, pieces: Sequence[Piece], job: Job) -> dict[str, Any]:
        """A finished choice, from all of its pieces."""
        ...

    def opening(self, choices: int) -> Iterator[dict[str, Any]]:
        """What a stream begins with."""
        ...

    def deltas(self, index: int, piece: Piece, job: Job) -> Iterator[dict[str, Any]]:
        """A stream's next chunks."""
        ...


def usage(jobs: Sequence[Job], completion: Sequence[int], prompts: int) -> dict[str, int]:
    """``usage``: each prompt counts once, however many choices it has."""
    per_prompt = len(jobs) // prompts
    prompt = sum(len(job.prompt) for job in jobs[::per_prompt])
    return {
        "prompt_tokens": prompt,
        "completion_tokens": sum(completion),
        "total_tokens": prompt + sum(completion),
    }


def _wants_logprobs(job: Job) -> bool:
    return job.sampling.HasField("logprobs")


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _tokens(pieces: Sequence[Piece]) -> list[Token]:
    return [token for piece in pieces for token in piece.tokens]


def _calls(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """Whole calls from their parts."""
    found: dict[int, dict[str, Any]] = {}
    for part in (part for piece in pieces for part in piece.calls):
        function = found.setdefault(part.index, _call(part, {"name": part.name, "arguments": ""}))["function"]
        function["arguments"] += part.arguments
    return list(found.values())


def _call(part: CallPart, function: dict[str, str]) -> dict[str, Any]:
    return {"id": part.id, "type": "function", "function": function}


def _call_delta(part: CallPart) -> dict[str, Any]:
    if not part.id:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    return {"index": part.index, **_call(part, {"name": part.name, "arguments": part.arguments})}


class ChatShape:
    """``chat.completion`` and its chunks."""

    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"
    id_prefix: ClassVar[str] = "chatcmpl"

    def __init__(self, model: ServedModel) -> None:
        self.model = model

    def choice(self, index: int, pieces: Sequence[Piece], job: Job) -> dict[str, Any]:
        """A finished choice. With calls of tools, blank text is no content."""
        text, tokens = _text(pieces), _tokens(pieces)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls := _calls(pieces):
            message["content"] = text if text.strip() else None
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs.chat(tokens, self.model) if _wants_logprobs(job) else None,
            "finish_reason": _FINISH[pieces[-1].finish_reason],
        }

    def opening(self, choices: int) -> Iterator[dict[str, Any]]:
        """The role comes first, as clients expect."""
        for index in range(choices):
            delta = {"role": "assistant", "content": ""}
            yield {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def deltas(self, index: int, piece: Piece, job: Job) -> Iterator[dict[str, Any]]:
        """Text, then the finish reason in a chunk of its own."""
        probs = None
        if _wants_logprobs(job) and logprobs.visible(piece.tokens):
            probs = logprobs.chat(piece.tokens, self.model)
        if piece.text or probs or piece.calls:
            delta: dict[str, Any] = {"content": piece.text} if piece.text or not piece.calls else {}
            if piece.calls:
                delta["tool_calls"] = [_call_delta(part) for part in piece.calls]
            yield {"index": index, "delta": delta, "logprobs": probs, "finish_reason": None}
        if piece.finish_reason:
            reason = _FINISH[piece.finish_reason]
            yield {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}


class CompletionShape:
    """``text_completion``, whole and in chunks."""

    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"
    id_prefix: ClassVar[str] = "cmpl"

    def __init__(self, model: ServedModel, echoes: Sequence[str] = ()) -> None:
        """``echoes``: each choice's prompt, to stand before its text; empty: none."""
        self.model = model
        self._echoes = echoes

    def choice(self, index: int, pieces: Sequence[Piece], job: Job) -> dict[str, Any]:
        """A finished choice."""
        probs = logprobs.completion(_tokens(pieces), self.model) if _wants_logprobs(job) else None
        return {
            "index": index,
            "text": (self._echoes[index] if self._echoes else "") + _text(pieces),
            "logprobs": probs,
            "finish_reason": _FINISH[pieces[-1].finish_reason],
        }

    def opening(self, choices: int) -> Iterator[dict[str, Any]]:
        """The prompts, where they are to be echoed."""
        for index, text in enumerate(self._echoes):
            yield {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def deltas(self, index: int, piece: Piece, job: Job) -> Iterator[dict[str, Any]]:
        """One chunk, unless it would say nothing."""
        probs = None
        if _wants_logprobs(job) and logprobs.visible(piece.tokens):
            probs = logprobs.completion(piece.tokens, self.model)
        if piece.text or probs or piece.finish_reason:
            reason = _FINISH[piece.finish_reason] if piece.finish_reason else None
            yield {"index": index, "text": piece.text, "logprobs": probs, "finish_reason": reason}
