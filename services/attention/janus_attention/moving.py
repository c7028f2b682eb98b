"""KV blocks from the worker that had a stream to the one that goes on with it: the control processes' part.

The receiver asks: its engine first (to expect them), then the other worker, whose engine sends (handover.py). A stream
waits for its blocks no longer than computing them again would take, and then does that.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import logging
import time
from typing import TYPE_CHECKING

import grpc
from janus_runtime.channel import connect
from janus_runtime.errors import JanusError
from janus_runtime.telemetry import tracer
from janus_wire.v1 import attention_pb2, attention_pb2_grpc
from janus_worker.link import ChildGone

from janus_attention.blocks import prefix_names
from janus_attention.handover import MOST_BLOCKS

if TYPE_CHECKING:
    from janus_attention.host import AttentionHost

_LOG = logging.getLogger("janus.attention")

AT_MOST_S = 5.0
"""A stream waits for its blocks no longer, whatever computing them would take."""
WORTH_S = 0.05
"""What can be computed in this time is not asked for."""
LINGER_S = 1.0
"""So long a worker that has handed its streams over waits to be asked for their blocks."""
_CALL_S = 1.0


def patience(tokens: int, rate: float) -> float:
    """Seconds to wait for the blocks of so many tokens, of which ``rate`` per second can be computed (0: not known);
    0: better compute them."""
    if not rate:
        return AT_MOST_S
    seconds = tokens / rate
    return min(seconds, AT_MOST_S) if seconds > WORTH_S else 0.0


class KvMover:
    """Asks for blocks, and answers who asks."""

    def __init__(self, host: AttentionHost, seed: str) -> None:
        """``seed``: as the engine's block pool has it."""
        self._host = host
        self._seed = seed
        self._numbers = itertools.count(1)
        self._expected: dict[int, asyncio.Future[int]] = {}
        self._giving: set[tuple[int, int]] = set()
        self._asked = 0
        self._quiet = asyncio.Event()
        self._quiet.set()

    # Taking -----------------------------------------------------------------------------------

    async def fetch(self, tokens: list[int], member: int) -> None:
        """Have the blocks of ``tokens`` that ``member`` has in the engine's cache, or not: never raises for that."""
        host, settings = self._host, self._host.settings
        limit = patience(len(tokens), float(host.stats.get("prefill_rate", 0.0)))
        names = prefix_names(tokens, settings.block_size, self._seed)[:MOST_BLOCKS]
        if not (limit and names and settings.prefix_cache and member != host.lease.member):
            return
        with tracer().start_as_current_span("kv.fetch") as span:
            blocks = 0
            try:
                async with asyncio.timeout(limit):
                    blocks = await self._fetch(tokens, names, member)
            except (TimeoutError, JanusError, ChildGone, grpc.aio.AioRpcError) as error:
                detail = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
                _LOG.info("member %d: KV blocks not had, computing them: %s", member, detail or "too slow")
            span.set_attribute("janus.member", member)
            span.set_attribute("janus.tokens", blocks * settings.block_size)

    async def _fetch(self, tokens: list[int], names: list[bytes], member: int) -> int:
        host = self._host
        worker = host.peers.get(member)
        if worker is None:
            return 0
        # On one host they are nearer than that.
        names = names[(await host.call({"t": "kv_seek", "tokens": tokens}, _CALL_S))["count"] :]
        if not names:
            return 0
        number = next(self._numbers)
        arrived = self._expected[number] = asyncio.get_running_loop().create_future()
        try:
            ready = await host.call(
                {
                    "t": "kv_expect", "number": number, "member": member, "address": worker.transport_address,
                    "names": [name.hex() for name in names],
                },
                _CALL_S,
            )  # fmt: skip
            if not ready["count"]:
                return 0
            request = attention_pb2.AttentionServiceHandKvRequest(
                number=number, member=host.lease.member, transport_address=host.lease.transport_address,
                block_names=names,
            )  # fmt: skip
            async with connect(worker.grpc_address, host.settings) as channel:
                stub = attention_pb2_grpc.AttentionServiceStub(channel)
                response = await stub.HandKv(request, timeout=_CALL_S)
            return await arrived if response.blocks else 0
        finally:
            del self._expected[number]
            host.engine.post({"t": "kv_forget", "number": number})

    def taken(self, number: int, blocks: int) -> None:
        """The engine says that a transfer is over."""
        future = self._expected.get(number)
        if future is not None and not future.done():
            future.set_result(blocks)

    # Giving -----------------------------------------------------------------------------------

    async def give(self, request: attention_pb2.AttentionServiceHandKvRequest) -> int:
        """Start sending; how many blocks will come."""
        key = (request.member, request.number)
        self._asked += 1
        self._giving.add(key)
        self._quiet.clear()
        try:
            answer = await self._host.call(
                {
                    "t": "kv_give", "number": request.number, "member": request.member,
                    "address": request.transport_address, "names": [n.hex() for n in request.block_names],
                },
                _CALL_S,
            )  # fmt: skip
        except BaseException:
            self.given(*key)
            raise
        if not answer["count"]:
            self.given(*key)
        return int(answer["count"])

    def given(self, member: int, number: int) -> None:
        """The engine has sent a transfer, or given it up."""
        self._giving.discard((member, number))
        if not self._giving:
            self._quiet.set()

    async def linger(self, streams: int) -> None:
        """After so many streams were handed over: until each was asked for, or a second has passed, and all is sent."""
        if not (streams and self._host.settings.prefix_cache):
            return
        until, asked = time.monotonic() + LINGER_S, self._asked + streams
        while self._asked < asked and time.monotonic() < until:
            await asyncio.sleep(0.02)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AT_MOST_S):
                await self._quiet.wait()


def is_address(text: str) -> bool:
    """Whether it may be a transport address as leases have them."""
    try:
        return bool(base64.b64decode(text, validate=True))
    except ValueError:
        return False
