"""Sealed addresses: what was not sealed here never reaches UCX."""

from __future__ import annotations

import numpy as np
import pytest
from janus_transport import create_transport
from janus_transport.address import MAX_BYTES, seal, unseal


def test_there_and_back() -> None:
    for size in (1, 217, MAX_BYTES):
        raw = np.random.default_rng(size).bytes(size)
        assert unseal("ucx", seal("ucx", raw)) == raw


@pytest.mark.parametrize("size", [0, MAX_BYTES + 1])
def test_sizes_that_no_address_has(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes; allowed: 1 to"):
        seal("ucx", bytes(size))


def test_every_flipped_bit_and_every_cut_is_told() -> None:
    good = seal("ucx", np.random.default_rng(1).bytes(40))
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="address"):
            unseal("ucx", bytes(bad))
    for length in range(len(good)):
        with pytest.raises(ValueError, match="address"):
            unseal("ucx", good[:length])
    with pytest.raises(ValueError, match="says 40 bytes and has 41"):
        unseal("ucx", good + b"\0")


def test_another_transport_s_address() -> None:
    with pytest.raises(ValueError, match="of transport 'inproc'; this worker uses 'ucx'"):
        unseal("ucx", seal("inproc", b"x"))


def test_the_ucx_transport_s_own_is_sealed() -> None:
    transport = create_transport("ucx", member=1)
    assert len(unseal("ucx", transport.address)) > 50
    transport.close()
