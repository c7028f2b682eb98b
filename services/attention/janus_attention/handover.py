"""KV blocks from the worker that had a stream to the one that goes on with it: the engines' part.

Blocks are asked for and stored by name (blocks.py): what arrives is a prefix that the cache has from then on, and
what does not is computed. So nothing depends on a transfer: it may fail, stop half-way, or come too late.

Frames (Kind.KV) are sent and taken whenever the engine waits, never waited for: neither side holds up a step.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from janus_models.kvcache import KvCache
from janus_transport import Exchange, Frame, Header, Kind, PeerLost, TransportError

from janus_attention.blocks import BlockPool

_LOG = logging.getLogger("janus.attention")
_Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]
_BUFFERS = 4
MOST_BLOCKS = (1 << 16) - 1
"""Of one transfer: what a frame's header can count."""
GIVE_UP_S = 10.0
"""A transfer that takes longer is over: its stream has long been computed anew."""


@dataclass(slots=True)
class _Giving:
    """Blocks on their way out."""

    member: int
    number: int
    blocks: list[int]
    until: float
    sent: int = 0
    data: _Bytes | None = None
    """Of the block that is next; sent up to ``offset``."""
    offset: int = 0


@dataclass(slots=True)
class _Taking:
    """Blocks that are expected of ``member``, in the order of their names."""

    member: int
    names: list[bytes]
    until: float
    staged: _Bytes
    got: int = 0
    """Blocks that have come whole."""
    offset: int = 0
    """Bytes of the next one."""
    stored: int = 0
    """Of them: there was room for."""


class KvHandover:
    """Gives and takes blocks of one engine's cache."""

    def __init__(
        self,
        exchange: Exchange,
        pool: BlockPool,
        kv: KvCache,
        *,
        taken: Callable[[int, int], None],
        given: Callable[[int, int], None],
    ) -> None:
        """``taken`` hears of a transfer that was expected and is over, by its number, and how many blocks it brought;
        ``given`` of one that was sent or given up, by its receiver and number."""
        self._exchange = exchange
        self._pool = pool
        self._kv = kv
        self._taken, self._given = taken, given
        self._giving: deque[_Giving] = deque()
        self._taking: dict[int, _Taking] = {}
        self._buffers = [exchange.allocate() for _ in range(_BUFFERS)]
        self.taken_blocks = 0

    @property
    def busy(self) -> bool:
        """Whether any transfer is under way."""
        return bool(self._giving or self._taking)

    def give(self, number: int, member: int, address: bytes, names: Sequence[bytes]) -> int:
        """Start sending what the cache has of ``names``; blocks that will come, 0 where none can.

        ``number`` is the receiver's.
        """
        blocks = self._pool.hold(names[:MOST_BLOCKS])
        if not blocks:
            return 0
        try:
            self._exchange.invite(member, address)
        except TransportError as error:
            _LOG.warning("no KV blocks for member %d: %s", member, error)
            self._pool.let_go(blocks)
            return 0
        self._giving.append(_Giving(member, number, blocks, time.monotonic() + GIVE_UP_S))
        return len(blocks)

    def expect(self, number: int, member: int, address: bytes, names: Sequence[bytes]) -> bool:
        """Take what ``member`` sends under this number; whether it can be reached."""
        try:
            self._exchange.invite(member, address)
        except TransportError as error:
            _LOG.warning("no KV blocks of member %d: %s", member, error)
            return False
        staged = np.empty(self._kv.block_bytes, np.uint8)
        self._taking[number] = _Taking(member, list(names), time.monotonic() + GIVE_UP_S, staged)
        return True

    def forget(self, number: int) -> None:
        """A transfer is not waited for any more; what has come of it stays."""
        taking = self._taking.pop(number, None)
        if taking is not None:
            self._dismiss(taking.member)

    def work(self, peek: Callable[[int], Any]) -> None:
        """Send what can be sent and take what has come. ``peek`` is the inbox's, which calls :meth:`take`."""
        now = time.monotonic()
        for number, taking in list(self._taking.items()):
            peek(taking.member)
            if number in self._taking and (now > taking.until or self._exchange.lost(taking.member)):
                _LOG.warning("member %d sent %d KV blocks, then nothing", taking.member, taking.got)
                self._finish(number, taking)
        while self._giving and self._push(self._giving[0], now):
            giving = self._giving.popleft()
            self._pool.let_go(giving.blocks)
            self._dismiss(giving.member)
            self._given(giving.member, giving.number)

    def _push(self, giving: _Giving, now: float) -> bool:
        """Send until no buffer is free; whether the transfer is over."""
        if now > giving.until:
            return True
        while giving.sent < len(giving.blocks):
            buffer = next((b for b in self._buffers if not b.busy()), None)
            if buffer is None:
                return False
            if giving.data is None:
                giving.data, giving.offset = self._kv.read_block(giving.blocks[giving.sent]), 0
            self._exchange.reclaim(buffer)
            piece = giving.data[giving.offset : giving.offset + buffer.payload.nbytes]
            buffer.payload[: piece.nbytes] = piece
            header = Header(
                kind=Kind.KV, epoch=0, step=giving.number, source=self._exchange.member,
                layer=len(giving.blocks), tokens=giving.sent, digest=giving.offset,
                payload_bytes=piece.nbytes,
            )  # fmt: skip
            try:
                self._exchange.send([giving.member], header, buffer)
            except PeerLost as lost:
                _LOG.warning("KV blocks for member %d: %s", giving.member, lost)
                return True
            giving.offset += piece.nbytes
            if giving.offset == giving.data.nbytes:
                giving.sent, giving.data = giving.sent + 1, None
        # Who has given everything may end at once: what is still under way would be lost.
        return not any(b.busy() for b in self._buffers)

    def take(self, member: int, frame: Frame) -> None:
        """A frame of a transfer; dropped, and counted as rejected, when it is not what comes next."""
        header, taking = frame.header, self._taking.get(frame.header.step)
        if taking is None or taking.member != member:
            return  # given up, or forgotten
        fits = header.digest + header.payload_bytes <= taking.staged.nbytes
        count = header.layer
        if (
            (header.tokens, header.digest) != (taking.got, taking.offset)
            or not fits
            or not (taking.got < count <= len(taking.names))
        ):
            self._exchange.rejected += 1
            self._finish(header.step, taking)
            return
        taking.staged[taking.offset : taking.offset + header.payload_bytes] = frame.payload
        taking.offset += header.payload_bytes
        if taking.offset == taking.staged.nbytes:
            self._store(taking)
            if taking.got == count:
                self._finish(header.step, taking)

    def _store(self, taking: _Taking) -> None:
        name = taking.names[taking.got]
        taking.got, taking.offset = taking.got + 1, 0
        block = self._pool.place(name)
        if block is not None:
            self._kv.write_block(block, taking.staged)
            taking.stored += 1

    def _finish(self, number: int, taking: _Taking) -> None:
        del self._taking[number]
        self._dismiss(taking.member)
        self.taken_blocks += taking.stored
        self._taken(number, taking.got)

    def _dismiss(self, member: int) -> None:
        others = [t.member for t in self._taking.values()] + [g.member for g in self._giving]
        if member not in others:
            self._exchange.dismiss(member)
