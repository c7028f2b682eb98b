"""The JSON of choices: chat completions and completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

from janus_wire.v1 import common_pb2

from janus_gateway.answer import Piece, Token
from janus_gateway.generation import Job
from janus_gateway.model import ServedModel
from janus_gateway.openai import logprobs

_FINISH: dict[int, str] = {common_pb2.FINISH_REASON_STOP: "stop", common_pb2.FINISH_REASON_LENGTH: "length"}


class Shape(Protocol):
    """How one kind of completion is written."""

    model: ServedModel
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]
    id_prefix: ClassVar[str]

    def choice(self, index: int, text: str, tokens: Sequence[Token], finish: int, job: Job) -> dict[str, Any]:
        """A finished choice."""
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


class ChatShape:
    """``chat.completion`` and its chunks."""

    whole_object: ClassVar[str] = "chat.completion"
    chunk_object: ClassVar[str] = "chat.completion.chunk"
    id_prefix: ClassVar[str] = "chatcmpl"

    def __init__(self, model: ServedModel) -> None:
        self.model = model

    def choice(self, index: int, text: str, tokens: Sequence[Token], finish: int, job: Job) -> dict[str, Any]:
        """A finished choice."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": logprobs.chat(tokens, self.model) if _wants_logprobs(job) else None,
            "finish_reason": _FINISH[finish],
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
        if piece.text or probs:
            delta = {"content": piece.text}
            yield {"index": index, "delta": delta, "logprobs": probs, "finish_reason": None}
        if piece.finish_reason:
            reason = _FINISH[piece.finish_reason]
            yield {"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}


class CompletionShape:
    """``text_completion``, whole and in chunks."""

    whole_object: ClassVar[str] = "text_completion"
    chunk_object: ClassVar[str] = "text_completion"
    id_prefix: ClassVar[str] = "cmpl"

    def __init__(self, model: ServedModel) -> None:
        self.model = model

    def choice(self, index: int, text: str, tokens: Sequence[Token], finish: int, job: Job) -> dict[str, Any]:
        """A finished choice."""
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs.completion(tokens, self.model) if _wants_logprobs(job) else None,
            "finish_reason": _FINISH[finish],
        }

    def opening(self, choices: int) -> Iterator[dict[str, Any]]:
        """Nothing."""
        return iter(())

    def deltas(self, index: int, piece: Piece, job: Job) -> Iterator[dict[str, Any]]:
        """One chunk, unless it would say nothing."""
        probs = None
        if _wants_logprobs(job) and logprobs.visible(piece.tokens):
            probs = logprobs.completion(piece.tokens, self.model)
        if piece.text or probs or piece.finish_reason:
            reason = _FINISH[piece.finish_reason] if piece.finish_reason else None
            yield {"index": index, "text": piece.text, "logprobs": probs, "finish_reason": reason}
