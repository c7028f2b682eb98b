"""Requests in flight on one attention worker: engine messages to gRPC streams."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from typing import Any

from janus_runtime.errors import Internal, InvalidArgument, JanusError, Unavailable
from janus_wire.v1 import attention_pb2, common_pb2
from janus_worker.link import Message

from janus_attention.guide import FIELD

FINISH = {
    "stop": common_pb2.FINISH_REASON_STOP,
    "length": common_pb2.FINISH_REASON_LENGTH,
    "cancelled": common_pb2.FINISH_REASON_CANCELLED,
    "error": common_pb2.FINISH_REASON_ERROR,
}


class Streams:
    """Queues of the requests that the engine works on."""

    def __init__(self) -> None:
        self._queues: dict[int, asyncio.Queue[tuple[dict[str, Any], bytes]]] = {}
        self._ids = itertools.count(1)
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._queues)

    def open(self) -> int:
        """A new stream's id."""
        number = next(self._ids)
        self._queues[number] = asyncio.Queue()
        self._empty.clear()
        return number

    def close(self, number: int) -> None:
        """Forget a stream; the engine's later messages for it are dropped."""
        self._queues.pop(number, None)
        if not self._queues:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Until no stream is open."""
        await self._empty.wait()

    def hand_over(self) -> int:
        """End every stream with Unavailable, for its reader to go on at another worker; how many there were."""
        for queue in self._queues.values():
            queue.put_nowait(({"handover": True}, b""))
        return len(self._queues)

    def deliver(self, message: Message) -> None:
        """Hand a "tokens" message out."""
        offset = 0
        for item in message.body["items"]:
            size = item.get("logits", 0)
            queue = self._queues.get(item["id"])
            if queue is not None:
                queue.put_nowait((item, message.blob[offset : offset + size]))
            offset += size

    async def guided(self, number: int, timeout_s: float) -> None:
        """Until the engine has compiled a stream's guide. Raises InvalidArgument when it cannot, or not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                item, _ = await self._queues[number].get()
        except TimeoutError:
            raise InvalidArgument(
                f"was not compiled within {timeout_s:g} s", field=FIELD, reason="GUIDE_TOO_SLOW",
                next_step="Make it simpler.",
            ) from None  # fmt: skip
        if "ready" not in item:
            raise _failure(item)

    async def responses(self, number: int) -> AsyncIterator[attention_pb2.AttentionServiceGenerateResponse]:
        """One response per token until the stream's last. Raises Internal when this request failed."""
        queue = self._queues[number]
        while True:
            item, logits = await queue.get()
            if "error" in item or "handover" in item:
                raise _failure(item)
            yield response(item, logits)
            if "finish" in item:
                return


def _failure(item: dict[str, Any]) -> JanusError:
    """Of one request, as the engine tells it, or the end of its stay here."""
    if "handover" in item:
        return Unavailable(
            "this worker is leaving; the stream goes on at another", reason="HANDOVER", retry_after_s=0.1
        )
    if "field" in item:
        return InvalidArgument(
            f"cannot be followed: {item['error']}", field=item["field"], reason="BAD_GUIDE"
        )
    return Internal(
        item.get("error", "the engine gave the request up"), reason="BAD_LOGITS",
        next_step="Check the checkpoint's weights.",
    )  # fmt: skip


def response(item: dict[str, Any], logits: bytes) -> attention_pb2.AttentionServiceGenerateResponse:
    """Protobuf of one item of the engine."""
    message = attention_pb2.AttentionServiceGenerateResponse(logits=logits)
    if "token" in item:
        message.token_ids.append(item["token"])
        message.first_index = item["index"]
        message.queue_us = item.get("queue_us", 0)
    if "logprob" in item:
        entry = message.logprobs.add()
        entry.chosen.token_id, entry.chosen.logprob = item["token"], item["logprob"]
        for token, logprob in item["top"]:
            entry.top.add(token_id=token, logprob=logprob)
    if "finish" in item:
        message.finish_reason = FINISH[item["finish"]]
    return message
