"""The frame header: round trip, and anything else refused with the field named."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from janus_transport import HEADER_BYTES, DType, FrameError, Header, Kind, decode
from janus_transport.framing import wipe

U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
HEADERS = st.builds(
    Header, kind=st.sampled_from(Kind), epoch=U64, step=U64, source=U32, flags=U16, layer=U16, lane=U16, tokens=U32,
    dtype=st.sampled_from(DType), topk=st.integers(0, 255), payload_bytes=st.integers(0, 500), digest=U64,
    elapsed_us=U32, trace_id=st.binary(min_size=16, max_size=16), span_id=st.binary(min_size=8, max_size=8),
    scheme=st.integers(0, 255), active=st.integers(0, 2**256 - 1),
)  # fmt: skip


@given(HEADERS)
def test_round_trip(header: Header) -> None:
    buffer = np.zeros(HEADER_BYTES + 500, np.uint8)
    header.encode_into(buffer)
    assert decode(buffer) == header == Header.decode(buffer)


@given(HEADERS, HEADERS, st.integers(0, HEADER_BYTES - 1))
def test_a_message_shorter_than_a_header_is_no_frame(old: Header, new: Header, length: int) -> None:
    buffer = np.zeros(HEADER_BYTES + 500, np.uint8)
    old.encode_into(buffer)
    wipe(buffer)
    message = np.zeros(HEADER_BYTES, np.uint8)
    new.encode_into(message)
    buffer[:length] = message[:length]
    with pytest.raises(FrameError):
        decode(buffer)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_header_or_an_error(data: bytes) -> None:
    buffer = np.frombuffer(data, np.uint8)
    try:
        header = decode(buffer)
    except FrameError as error:
        assert str(error)
    else:
        assert header.payload_bytes <= max(0, len(data) - HEADER_BYTES)


@given(HEADERS, st.integers(0, HEADER_BYTES - 1), st.integers(1, 255))
def test_a_flipped_byte_never_crashes(header: Header, place: int, change: int) -> None:
    buffer = np.zeros(HEADER_BYTES + 500, np.uint8)
    header.encode_into(buffer)
    buffer[place] ^= change
    with contextlib.suppress(FrameError):
        decode(buffer)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ((0, 1), "magic"),
        ((4, 1), "version 1"),
        ((5, 99), "kind 99"),
        ((36, 9), "dtype 9"),
        ((40, 255), "payload"),
        ((127, 0), "cut short"),
    ],
)
def test_errors_name_the_field(change: tuple[int, int], match: str) -> None:
    buffer = np.zeros(HEADER_BYTES, np.uint8)
    Header(kind=Kind.HIDDEN, epoch=1, step=1, source=1).encode_into(buffer)
    buffer[change[0]] = change[1]
    with pytest.raises(FrameError, match=match):
        decode(buffer)


def test_values_out_of_range_are_refused_before_sending() -> None:
    with pytest.raises(FrameError, match="out of range"):
        Header(kind=Kind.HIDDEN, epoch=-1, step=0, source=1).encode_into(np.zeros(HEADER_BYTES, np.uint8))
