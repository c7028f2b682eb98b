"""The model as the gateway sees it: configuration, tokenizer, sampling defaults. No weights, no torch."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from janus_models.config import ModelConfig, load_config
from janus_models.tokenizer import Tokenizer
from janus_runtime.errors import InvalidArgument

from janus_gateway.config import GatewaySettings
from janus_gateway.tools import FORMATS, ToolFormat, detect

_THREAD_CHARS = 4096
"""Texts longer than this are tokenized in a thread: the event loop has other streams to serve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What generation_config.json says; None where it says nothing."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None

    @classmethod
    def read(cls, directory: Path) -> Defaults:
        """From ``generation_config.json``; values no request could have are left out."""
        path = directory / "generation_config.json"
        raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

        def number(name: str, low: float, high: float) -> float | None:
            value = raw.get(name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                return None
            return float(value)

        top_k, max_new = number("top_k", 0, 2**31 - 1), number("max_new_tokens", 1, 2**31 - 1)
        return cls(
            temperature=number("temperature", 0.0, 1e4),
            top_p=number("top_p", math.ulp(0.0), 1.0),
            top_k=None if top_k is None else int(top_k),
            min_p=number("min_p", 0.0, 1.0),
            repetition_penalty=number("repetition_penalty", 1e-6, 100.0),
            max_tokens=None if max_new is None else int(max_new),
        )


class ServedModel:
    """One per gateway. Raises the errors of janus_models when the directory cannot be used."""

    def __init__(self, settings: GatewaySettings) -> None:
        directory = settings.checked_model()
        self.config: ModelConfig = load_config(directory)
        self.tokenizer = Tokenizer(directory)
        self.defaults = Defaults.read(directory)
        self.name = settings.model_name or directory.resolve().name
        self.context = min(self.config.max_positions, settings.max_context or self.config.max_positions)
        """Most tokens of prompt and answer together."""
        self._tool_format = settings.tool_format
        self._byte_level = _uses_byte_level(directory / "tokenizer.json")

    async def encode(self, text: str, field: str) -> list[int]:
        """Ids of a prompt's text. InvalidArgument when it is no text that UTF-8 can write."""
        _check_text(text, field)
        return await _apart(len(text), lambda: self.tokenizer.encode(text))

    async def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        """Ids of a conversation, ready for the assistant's words. ChatTemplateError when refused."""
        size = 0
        for index, message in enumerate(messages):
            content = str(message.get("content") or "")
            _check_text(content, f"messages[{index}].content")
            calls = json.dumps(message.get("tool_calls") or [], ensure_ascii=False)
            _check_text(calls, f"messages[{index}].tool_calls")
            size += len(content) + len(calls)
        shown = json.dumps(tools or [], ensure_ascii=False)
        _check_text(shown, "tools")
        return await _apart(
            size + len(shown), lambda: self.tokenizer.apply_chat(messages, tools=tools or None)
        )

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the model writes tool calls; None: not at all, as far as is known."""
        if self._tool_format != "auto":
            return FORMATS.get(self._tool_format)
        template = self.tokenizer.chat_template
        return None if template is None else detect(template.source)

    def special_id(self, text: str) -> int | None:
        """Id of a special token by its text."""
        return self._special.get(text)

    @cached_property
    def _special(self) -> dict[str, int]:
        return {self.tokenizer.token_text(number): number for number in self.tokenizer.special_ids}

    def token_text(self, token_id: int) -> str:
        """One token's text by itself; U+FFFD where it is part of a character."""
        return self.tokenizer.decode([token_id], skip_special=False)

    def token_bytes(self, token_id: int) -> list[int]:
        """One token's bytes: exact for byte-level vocabularies and byte-fallback tokens."""
        piece = self.tokenizer.token_text(token_id)
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return [int(piece[3:5], 16)]
        if self._byte_level and token_id not in self.tokenizer.special_ids:
            found = [_BYTE_OF.get(char) for char in piece]
            if None not in found:
                return [byte for byte in found if byte is not None]
        return list(self.token_text(token_id).encode("utf-8"))


async def _apart(size: int, work: Callable[[], list[int]]) -> list[int]:
    return work() if size <= _THREAD_CHARS else await asyncio.to_thread(work)


def _check_text(text: str, field: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgument(
            "holds half a surrogate pair, which no text can",
            field=field,
            value=ascii(text[error.start]),
            allowed="Unicode text",
        ) from error


def _uses_byte_level(path: Path) -> bool:
    decoder = json.loads(path.read_text(encoding="utf-8")).get("decoder") or {}
    parts = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    return any(isinstance(part, dict) and part.get("type") == "ByteLevel" for part in parts)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte, which byte-level vocabularies are written in."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
