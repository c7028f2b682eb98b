"""An OpenAI-compatible server with known delays, in a thread of its own, that notes when it wrote what."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Served:
    """One request as the server saw it."""

    path: str
    body: dict[str, Any]
    began: float
    pieces: list[float] = field(default_factory=list)
    end: float = 0.0


class FakeOpenAi:
    """``with FakeOpenAi(first_s=0.05, gap_s=0.01) as server: server.url``; the clock is time.perf_counter()."""

    def __init__(
        self,
        *,
        first_s: float = 0.0,
        gap_s: float = 0.0,
        usage: bool = True,
        tokens_per_piece: int = 1,
        faults: dict[int, str] | None = None,
    ) -> None:
        """``faults``: by number of the request: http503, cut, error, garbage, hang, reset, empty."""
        self.first_s, self.gap_s, self.usage, self.tokens_per_piece = first_s, gap_s, usage, tokens_per_piece
        self.faults = faults or {}
        self.served: list[Served] = []
        self.in_flight = self.most_in_flight = 0
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                began = time.perf_counter()
                method, path, _ = head.split(" ", 2)
                size = next(
                    (
                        int(x.split(":")[1])
                        for x in head.split("\r\n")
                        if x.lower().startswith("content-length")
                    ),
                    0,
                )
                body = json.loads(await reader.readexactly(size)) if size else {}
                if method == "GET":
                    self._whole(writer, 200, {"object": "list", "data": [{"id": "fake-model"}]})
                    continue
                number = len(self.served)
                self.served.append(Served(path, body, began))
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    if not await self._answer(writer, self.served[-1], self.faults.get(number, "")):
                        return
                finally:
                    self.in_flight -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._open.discard(task)
            writer.close()

    def _whole(self, writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
        text = json.dumps(body).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (status, len(text), text)
        )

    async def _answer(self, writer: asyncio.StreamWriter, served: Served, fault: str) -> bool:
        """False: the connection is of no use any more."""
        if fault == "http503":
            self._whole(writer, 503, {"error": {"message": "not now", "type": "unavailable"}})
            return True
        if fault == "reset":
            writer.transport.abort()
            return False
        if fault == "hang":
            await asyncio.sleep(60)
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        chat = "chat" in served.path
        if chat:
            self._event(writer, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        pieces = 0 if fault == "empty" else -(-served.body["max_tokens"] // self.tokens_per_piece)
        for i in range(pieces):
            await asyncio.sleep(self.first_s if i == 0 else self.gap_s)
            if fault == "cut" and i == 2:
                writer.transport.abort()
                return False
            if fault == "error" and i == 2:
                self._event(
                    writer, {"error": {"message": "lost", "type": "server_error", "code": "worker_lost"}}
                )
                break
            if fault == "garbage" and i == 2:
                self._event(writer, b"{nonsense")
                break
            choice = {"index": 0, "delta": {"content": "w "}} if chat else {"index": 0, "text": "w "}
            served.pieces.append(time.perf_counter())
            self._event(writer, {"choices": [choice]})
            await writer.drain()
        end = {"index": 0, "delta": {}} if chat else {"index": 0, "text": ""}
        self._event(writer, {"choices": [{**end, "finish_reason": "length"}] if fault != "empty" else []})
        if self.usage:
            words = served.body["messages"][0]["content"] if chat else served.body["prompt"]
            count = {"prompt_tokens": len(words.split()), "completion_tokens": served.body["max_tokens"]}
            self._event(writer, {"choices": [], "usage": count})
        self._event(writer, b"[DONE]")
        writer.write(b"0\r\n\r\n")
        served.end = time.perf_counter()
        return True

    def _event(self, writer: asyncio.StreamWriter, body: dict[str, Any] | bytes) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        text = b"data: " + data + b"\n\n"
        writer.write(b"%x\r\n%s\r\n" % (len(text), text))
