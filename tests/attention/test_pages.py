"""Memory of the KV cache: ready before it is written, what is there stays, nobody waits."""

from __future__ import annotations

import resource
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch
from janus_attention.blocks import BlockPool
from janus_attention.pages import PagesAhead
from janus_attention.sequence import Sequence
from janus_kernels import ops
from janus_models.kvcache import KvCache


def cache(layers: int, blocks: int, **more: Any) -> KvCache:
    return KvCache(num_layers=layers, num_blocks=blocks, block_size=16, num_kv_heads=4, head_dim=64, **more)


class Noted:
    """In the place of a cache: notes what is made ready."""

    def __init__(self, blocks: int, large: int, layers: int = 3) -> None:
        self.num_blocks, self.large_blocks = blocks, large
        self.layers = [None] * layers
        self.made: list[list[int]] = [[] for _ in range(layers)]
        self.go = threading.Event()
        self.go.set()

    def back(self, layer: int, first: int, last: int) -> None:
        assert self.go.wait(10)
        self.made[layer] += range(first, last)


@pytest.mark.parametrize(("blocks", "large"), [(1, 1), (7, 1), (64, 8), (65, 8), (5, 100)])
def test_every_block_is_made_ready_once_before_its_use(blocks: int, large: int) -> None:
    kv = Noted(blocks, large)
    pages = PagesAhead(kv)  # type: ignore[arg-type]
    for used in range(blocks + 1):
        pages.reach(used)
        assert pages.join(10)
        assert pages.ready >= min(blocks, used + (large + 1) // 2)
        assert pages.ready <= used + large
    assert kv.made == [list(range(blocks))] * 3


def test_nobody_waits_and_what_was_missed_is_caught_up_with() -> None:
    kv = Noted(100, 10)
    pages = PagesAhead(kv)  # type: ignore[arg-type]
    assert pages.join(10)
    kv.go.clear()
    for used in range(40):  # a burst while the system is slow
        pages.reach(used)
    kv.go.set()
    assert pages.join(10)
    pages.reach(41)
    assert pages.join(10)
    assert pages.ready == 51
    assert kv.made == [list(range(51))] * 3


def test_what_was_written_stays() -> None:
    kv = cache(2, 40)
    rows = torch.from_numpy(np.random.default_rng().normal(size=(640, 4, 64)).astype(np.float32))
    slots = torch.arange(640)
    for layer in range(2):
        kv.write(layer, rows, -rows, slots)
        kv.back(layer, 0, 40)
        kv.back(layer, 17, 18)
    for keys, values in kv.layers:
        torch.testing.assert_close(keys.flatten(0, 1), rows, rtol=0, atol=0)
        torch.testing.assert_close(values.flatten(0, 1), -rows, rtol=0, atol=0)


@pytest.mark.skipif(sys.platform != "linux", reason="page faults are counted as Linux does")
def test_the_first_write_finds_memory() -> None:
    faults = {}
    for made_ready in (False, True):
        kv = cache(1, 4096)  # 64 MiB each of keys and values
        if made_ready:
            assert ops.back_pages(kv.layers[0][0], 0, 4096) == 64 << 20
            assert ops.back_pages(kv.layers[0][1], 0, 4096) == 64 << 20
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for part in kv.layers[0]:
            part[:, 0, 0, 0] = 1.0
        faults[made_ready] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults[False] >= 64  # large pages; many more with small ones
    assert faults[True] < faults[False] / 4


def test_a_latent_cache_has_one_part() -> None:
    kv = KvCache(
        num_layers=1, num_blocks=8, block_size=16, num_kv_heads=1, head_dim=96, latent_dim=64
    )  # fmt: skip
    pages = PagesAhead(kv)
    assert pages.join(10)
    assert pages.ready == 8


def test_a_pool_says_how_far_it_ever_went() -> None:
    pool = BlockPool(8, 16)
    first, second = (Sequence.__new__(Sequence) for _ in range(2))
    for seq in (first, second):
        seq.blocks, seq.tokens, seq.computed = [], [1] * 40, 0
    assert pool.reached == 0
    assert pool.grow(first, 40)
    assert pool.reached == 3
    assert pool.grow(second, 20)
    assert pool.reached == 5
    pool.release(first)
    pool.release(second)
    assert pool.grow(first, 48)
    assert pool.reached == 5
