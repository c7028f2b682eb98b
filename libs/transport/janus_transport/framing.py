"""Frames: a fixed header, then the payload, in one message. Pure.

The header is 128 bytes, little-endian, so that payloads of aligned buffers are aligned::

    magic "JNS1", version u8, kind u8, flags u16, epoch u64, step u64, layer u16, lane u16, source u32,
    tokens u32, dtype u8, topk u8, scheme u8, payload_bytes u64, digest u64, elapsed_us u32, trace_id 16,
    span_id 8, active 32, end "1SNJ"

Transports do not tell how long a message was: receive buffers are wiped before use (:func:`wipe`), and what is
shorter than a header then lacks the end.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from janus_transport.base import Bytes, TransportError

MAGIC = b"JNS1"
END = MAGIC[::-1]
VERSION = 3
HEADER_BYTES = 128
_LAYOUT = struct.Struct("<4sBBHQQHHIIBBBxQQI4x16s8s4x32s4s")
_NO_ACTIVE = bytes(32)
_NEW = object.__new__
assert _LAYOUT.size == HEADER_BYTES


class FrameError(TransportError):
    """Bytes that are not a frame of this version; says which field is wrong."""


class Kind(enum.IntEnum):
    """What a frame carries."""

    HIDDEN = 1
    """Attention to MoE: hidden states of one layer, or zero tokens."""
    PARTIAL = 2
    """MoE to attention: partial sum of the routed experts."""
    STEP_DONE = 3
    """Coordinator to idle attention workers: the step is over."""
    WAKE = 4
    """Coordinator to sleeping attention workers: a step has begun."""
    PROBE = 5
    """Coordinator to anyone: measures a link; to be echoed when ``tokens`` is not 0. With a member in ``digest``: that
    member is to be sent ``lane`` probes of ``step`` bytes, to be dropped."""
    ECHO = 6
    """The answer, as large."""
    KV = 7
    """Attention to attention, of any epoch: part of a KV block. ``step``: the receiver's number of the transfer;
    ``layer``: its blocks; ``tokens``: the block's place among them; ``digest``: the first byte's place in the block."""


class DType(enum.IntEnum):
    """Element type of the payload."""

    NONE = 0
    FLOAT32 = 1
    FLOAT64 = 2


_KINDS = {kind.value: kind for kind in Kind}
_DTYPES = frozenset(dtype.value for dtype in DType)


@dataclass(slots=True, kw_only=True)
class Header:
    """Header of one frame. Sizes are checked against the buffer by :func:`decode`, meaning by the engines."""

    kind: Kind
    epoch: int
    """Cohort epoch, u64."""
    step: int
    """Step of the epoch, u64."""
    source: int
    """Member number of the sender, u32."""
    flags: int = 0
    layer: int = 0
    """MoE layer, counted from the first."""
    lane: int = 0
    """Micro-batch, where several are in flight."""
    tokens: int = 0
    dtype: int = DType.NONE
    topk: int = 0
    payload_bytes: int = 0
    digest: int = 0
    """u64 over routing and schedule."""
    elapsed_us: int = 0
    """Time the sender computed."""
    trace_id: bytes = bytes(16)
    span_id: bytes = bytes(8)
    scheme: int = 0
    """How this layer is exchanged, topology.Scheme; in the coordinator's answers to a step's first layer, how
    the others will be."""
    active: int = 0
    """Bits of the attention ranks with tokens in this step, in those answers alone; below 2^256."""

    def encode_into(self, buffer: Bytes) -> None:
        """Write to the first 128 bytes. Raises FrameError for a value outside its field's range."""
        try:
            _LAYOUT.pack_into(
                buffer.data, 0, MAGIC, VERSION, self.kind, self.flags, self.epoch, self.step, self.layer,
                self.lane, self.source, self.tokens, self.dtype, self.topk, self.scheme, self.payload_bytes,
                self.digest, min(self.elapsed_us, 0xFFFFFFFF), self.trace_id, self.span_id,
                self.active.to_bytes(32, "little") if self.active else _NO_ACTIVE, END,
            )  # fmt: skip
        except (struct.error, OverflowError) as error:
            raise FrameError(f"header field out of range: {error} in {self}") from error

    @staticmethod
    def decode(buffer: Bytes) -> Header:
        """:func:`decode`."""
        return decode(buffer)


def wipe(buffer: Bytes) -> None:
    """Make sure that what an earlier frame left in a buffer is not taken for the next one."""
    buffer[:HEADER_BYTES] = 0


def decode(buffer: Bytes) -> Header:
    """Header of a received frame. Raises FrameError naming the field, its value and what is allowed."""
    if buffer.nbytes < HEADER_BYTES:
        raise FrameError(f"{buffer.nbytes} bytes are no header of {HEADER_BYTES}")
    (
        magic, version, kind, flags, epoch, step, layer, lane, source, tokens, dtype, topk, scheme, payload_bytes,
        digest, elapsed_us, trace_id, span_id, active, end,
    ) = _LAYOUT.unpack_from(buffer.data)  # fmt: skip
    if magic != MAGIC:
        raise FrameError(f"magic is {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise FrameError(f"frame version {version}; this build speaks {VERSION}")
    if end != END:
        raise FrameError(f"header ends with {end!r}, not {END!r}: cut short")
    known = _KINDS.get(kind)
    if known is None:
        raise FrameError(f"kind {kind}; allowed: {', '.join(f'{k.value} ({k.name})' for k in Kind)}")
    if dtype not in _DTYPES:
        raise FrameError(f"dtype {dtype}; allowed: {sorted(_DTYPES)}")
    if payload_bytes > buffer.nbytes - HEADER_BYTES:
        raise FrameError(f"payload of {payload_bytes} bytes; at most {buffer.nbytes - HEADER_BYTES} fit")
    # Field by field: nineteen keyword arguments take three times as long, in every layer and for every peer.
    header: Header = _NEW(Header)
    header.kind, header.flags, header.epoch, header.step = known, flags, epoch, step
    header.layer, header.lane, header.source, header.tokens = layer, lane, source, tokens
    header.dtype, header.topk, header.scheme, header.payload_bytes = dtype, topk, scheme, payload_bytes
    header.digest, header.elapsed_us, header.trace_id, header.span_id = digest, elapsed_us, trace_id, span_id
    header.active = 0 if active == _NO_ACTIVE else int.from_bytes(active, "little")
    return header
