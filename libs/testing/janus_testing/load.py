"""Streams under load, each compared token by token with an undisturbed run of the same request.

The requests are a function of the seed. They run once while nothing happens, which says what each has to
answer; then as many at once as asked for, over and over, while a test kills, pauses and scales.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
from janus_wire.v1 import common_pb2, generation_pb2, generation_pb2_grpc

_OPTIONS = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500)]
_RETRIED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.INTERNAL)
_RETRY_PAUSE_S = 0.2
PAUSE_WINDOW_S = 10.0


@dataclass(slots=True)
class Stream:
    """One answer as its client saw it."""

    request: int
    """Index among the load's requests."""
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """Monotonic arrival of each of them."""
    attempts: int = 0
    error: str = ""
    done: bool = False
    asked: float = 0.0
    """Monotonic time at which it was asked, where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Seconds from a fault to the next token, over streams that were under way then."""

    count: int
    median_s: float
    p99_s: float
    worst_s: float
    pause_median_s: float = 0.0
    """Longest pause between two tokens of a stream within PAUSE_WINDOW_S of the fault: what was on its way when
    it happened still arrives, and hides it from the time to the next token."""
    pause_worst_s: float = 0.0


def make_requests(count: int, seed: int, *, vocab_size: int = 512, tokens: tuple[int, int] = (60, 200)) -> list[
    generation_pb2.GenerateRequest
]:  # fmt: skip
    """Greedy and sampled requests of different lengths, some with a common prefix."""
    rng = random.Random(seed)
    common = [rng.randrange(3, vocab_size) for _ in range(40)]
    requests = []
    for index in range(count):
        own = [rng.randrange(3, vocab_size) for _ in range(rng.randint(4, 60))]
        sampling = common_pb2.SamplingParams(
            max_tokens=rng.randint(*tokens), ignore_eos=True, temperature=rng.choice((0.0, 0.8, 1.2))
        )
        if sampling.temperature:
            sampling.seed, sampling.top_p = rng.getrandbits(31), 0.95
        if index % 4 == 3:
            sampling.frequency_penalty = 0.5
        prompt = common_pb2.TokenIds(ids=(common if index % 3 == 0 else []) + own)
        requests.append(generation_pb2.GenerateRequest(prompt_tokens=prompt, sampling=sampling))
    return requests


class Load:
    """``with Load(address, requests, at_once=50) as load: ...``; the streams run in a thread of their own.

    ``address``: host:port of the gateway's gRPC, or several, taken in turn by attempts. ``resume``: give each
    stream an idempotency key, and try again when the gateway goes away; else that is an error.
    """

    def __init__(
        self,
        addresses: str | Sequence[str],
        requests: Sequence[generation_pb2.GenerateRequest],
        *,
        at_once: int = 50,
        resume: bool = False,
        timeout_s: float = 300.0,
    ) -> None:
        self._addresses = [addresses] if isinstance(addresses, str) else list(addresses)
        self._requests = list(requests)
        self._at_once = at_once
        self._resume = resume
        self._timeout_s = timeout_s
        self.streams: list[Stream] = []
        self.expected: list[list[int]] = []
        """Of each request, once :meth:`reference` has run."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- life -----------------------------------------------------------------------------------------

    def reference(self) -> None:
        """Run each request once, undisturbed, and keep what it answers."""
        streams = asyncio.run(self._all_once())
        failed = [s.error for s in streams if s.error]
        if failed:
            raise RuntimeError(f"{len(failed)} streams failed while nothing was disturbed: {failed[0]}")
        self.expected = [s.tokens for s in streams]

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._keep_going()), name="load")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """No new streams; those under way run to their end."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self._timeout_s + 30)

    def wait_tokens(self, count: int, timeout_s: float = 60.0) -> None:
        """Until ``count`` further tokens have arrived."""
        deadline, before = time.monotonic() + timeout_s, self.tokens()
        while self.tokens() < before + count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.tokens() - before} of {count} tokens in {timeout_s:g} s")
            time.sleep(0.02)

    # -- what was found -------------------------------------------------------------------------------

    def tokens(self) -> int:
        """Tokens that have arrived."""
        return sum(len(s.tokens) for s in list(self.streams))

    def problems(self) -> Iterator[str]:
        """A line for each stream that failed, or is not what the undisturbed run had."""
        for number, stream in enumerate(self.streams):
            want = self.expected[stream.request]
            if stream.error or not stream.done:
                yield f"stream {number}: {stream.error or 'did not end'} after {len(stream.tokens)} tokens"
            elif stream.tokens != want:
                place = next(
                    (i for i, (a, b) in enumerate(zip(stream.tokens, want, strict=False)) if a != b), -1
                )
                yield f"stream {number} (request {stream.request}): differs from token {place} on"

    def recovery(self, faults: Sequence[float]) -> Recovery:
        """How long after each fault (monotonic times) the streams under way had their next token."""
        waits, pauses = [], []
        for at in faults:
            for stream in self.streams:
                if not stream.times or stream.times[0] > at or stream.times[-1] <= at:
                    continue
                waits.append(next(t for t in stream.times if t > at) - at)
                pairs = itertools.pairwise(stream.times)
                pauses.append(max(b - a for a, b in pairs if b > at and a < at + PAUSE_WINDOW_S))
        waits.sort()
        pauses.sort()
        if not waits:
            return Recovery(count=0, median_s=0.0, p99_s=0.0, worst_s=0.0)
        return Recovery(
            count=len(waits), median_s=waits[len(waits) // 2], p99_s=waits[int(0.99 * (len(waits) - 1))],
            worst_s=waits[-1], pause_median_s=pauses[len(pauses) // 2], pause_worst_s=pauses[-1],
        )  # fmt: skip

    # -- streams --------------------------------------------------------------------------------------

    async def _all_once(self) -> list[Stream]:
        channels = self._channels()
        gate = asyncio.Semaphore(self._at_once)

        async def one(index: int) -> Stream:
            async with gate:
                stream = Stream(index)
                await self._run(channels, stream, "")
                return stream

        try:
            return list(await asyncio.gather(*(one(i) for i in range(len(self._requests)))))
        finally:
            for channel in channels:
                await channel.close()

    async def _keep_going(self) -> None:
        channels = self._channels()
        numbers = iter(range(1 << 30))

        async def client() -> None:
            while not self._stop.is_set():
                number = next(numbers)
                stream = Stream(number % len(self._requests))
                self.streams.append(stream)
                await self._run(channels, stream, f"load-{id(self)}-{number}" if self._resume else "")

        try:
            await asyncio.gather(*(client() for _ in range(self._at_once)))
        finally:
            for channel in channels:
                await channel.close()

    def _channels(self) -> list[grpc.aio.Channel]:
        return [grpc.aio.insecure_channel(address, options=_OPTIONS) for address in self._addresses]

    async def _run(self, channels: Sequence[grpc.aio.Channel], stream: Stream, key: str) -> None:
        request = self._requests[stream.request]
        metadata = (("idempotency-key", key),) if key else ()
        deadline = time.monotonic() + self._timeout_s
        while True:
            # From the start again, for what came must come again; what follows is timed as new.
            again = 0
            stub: Any = generation_pb2_grpc.GenerationServiceStub(channels[stream.attempts % len(channels)])
            stream.attempts += 1
            try:
                async for response in stub.Generate(
                    request, timeout=deadline - time.monotonic(), metadata=metadata
                ):
                    for token in response.token_ids:
                        if again < len(stream.tokens):
                            if stream.tokens[again] != token:
                                stream.error = (
                                    f"token {again} came again as {token}, not {stream.tokens[again]}"
                                )
                                return
                        else:
                            stream.tokens.append(token)
                            stream.times.append(time.monotonic())
                        again += 1
                    stream.done = bool(response.finish_reason)
                if not stream.done:
                    stream.error = "the stream ended without a finish reason"
                return
            except grpc.aio.AioRpcError as error:
                if not key or error.code() not in _RETRIED or time.monotonic() > deadline - 1:
                    stream.error = f"{error.code().name}: {error.details()}"
                    return
                await asyncio.sleep(_RETRY_PAUSE_S)
