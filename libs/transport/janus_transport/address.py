"""Addresses as peers pass them on: sealed, because UCX reads whatever it is given as an address and may crash. Pure.

::

    magic "JNSA", version u8, transport's name 11 bytes zero-padded, length u32, crc32 u32 of all the rest, raw address

Little-endian. This tells damage and mix-ups, not malice: who may write to Redis is the operator's business.
"""

from __future__ import annotations

import struct
import zlib

MAGIC = b"JNSA"
VERSION = 1
MAX_BYTES = 64 << 10
_HEAD = struct.Struct("<4sB11sI")
_CRC = struct.Struct("<I")
_RAW = _HEAD.size + _CRC.size


def seal(transport: str, raw: bytes) -> bytes:
    """The address to publish for a transport's own ``raw`` one, 1..65536 bytes."""
    if not 1 <= len(raw) <= MAX_BYTES:
        raise ValueError(f"an address of {len(raw)} bytes; allowed: 1 to {MAX_BYTES}")
    head = _HEAD.pack(MAGIC, VERSION, transport.encode("ascii"), len(raw))
    return head + _CRC.pack(zlib.crc32(raw, zlib.crc32(head))) + raw


def unseal(transport: str, address: bytes) -> bytes:
    """The raw address. Raises ValueError naming the field, its value and what is allowed."""
    if len(address) <= _RAW:
        raise ValueError(f"address of {len(address)} bytes; at least {_RAW + 1} are needed")
    magic, version, name, length = _HEAD.unpack_from(address)
    raw = address[_RAW:]
    if magic != MAGIC:
        raise ValueError(f"address begins with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise ValueError(f"address version {version}; this build speaks {VERSION}")
    if length != len(raw):
        raise ValueError(f"address says {length} bytes and has {len(raw)}")
    if _CRC.unpack_from(address, _HEAD.size)[0] != zlib.crc32(raw, zlib.crc32(address[: _HEAD.size])):
        raise ValueError("address is damaged: its checksum is wrong")
    told = name.rstrip(b"\0").decode("ascii", "replace")
    if told != transport:
        raise ValueError(f"address of transport {told!r}; this worker uses {transport!r}")
    return raw
