"""Reading an OpenAI-compatible stream after the fact: what came when. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from janus_bench.summary import Record

Arrivals = Iterable[tuple[float, bytes]]


class BadStream(Exception):
    """What came is not such a stream, or an error in it; ``kind`` is what failures are counted by."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def events(arrivals: Arrivals) -> Iterator[tuple[float, bytes]]:
    """(when it was complete, data) of each server-sent event; comments and other fields are passed over."""
    buffer = b""
    for when, raw in arrivals:
        buffer = (buffer + raw).replace(b"\r\n", b"\n")
        while (end := buffer.find(b"\n\n")) >= 0:
            event, buffer = buffer[:end], buffer[end + 2 :]
            data = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            if data:
                yield when, b"\n".join(data)


def read_into(record: Record, arrivals: Arrivals) -> None:
    """Fill ``record`` with the answer that came. Raises BadStream, the record then holding what came before."""
    pieces, usage, finished = 0, None, False
    for when, data in events(arrivals):
        if data == b"[DONE]":
            finished = True
            break
        try:
            body = json.loads(data)
        except ValueError:
            raise BadStream("bad event", f"not JSON: {data[:200]!r}") from None
        if not isinstance(body, dict):
            raise BadStream("bad event", f"not an object: {data[:200]!r}")
        if (error := body.get("error")) is not None:
            kind = error.get("code") or error.get("type") if isinstance(error, dict) else None
            raise BadStream(f"error in the stream: {kind or 'unnamed'}", str(error)[:300])
        usage = body.get("usage") or usage
        for choice in body.get("choices") or ():
            if _said(choice):
                record.marks.append(when)
                pieces += 1
            elif choice.get("finish_reason") and not record.marks:
                record.marks.append(when)  # an answer without a word is an answer
    if not finished:
        raise BadStream("stream cut", "the stream ended without [DONE]")
    if not record.marks:
        raise BadStream("empty answer", "the stream had no piece of an answer")
    record.counted = isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int)
    record.output_tokens = usage["completion_tokens"] if usage and record.counted else pieces
    record.prompt_tokens = int(usage.get("prompt_tokens") or 0) if isinstance(usage, dict) else 0


def _said(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta") or {}
    texts = (
        choice.get("text"),
        delta.get("content"),
        delta.get("reasoning_content"),
        delta.get("tool_calls"),
    )
    return any(texts)
