"""FlashInfer's and flash-attn's calls, run against stand-ins that compute what their documentation says.

They show that pages, lengths and windows are handed over rightly; the libraries themselves need a GPU.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from janus_kernels import triton
from janus_kernels.ops import paged_attention, use_backend

pytestmark = pytest.mark.skipif(triton.unavailable() is not None, reason=str(triton.unavailable()))


@pytest.fixture
def libraries() -> Any:
    triton.load()
    from janus_kernels.triton import libraries

    libraries._plans.clear()
    libraries.library.cache_clear()
    yield libraries
    libraries._plans.clear()
    libraries.library.cache_clear()


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, left: int) -> torch.Tensor:
    """Causal, the last query sees the last key; ``left`` positions before its own (-1: all)."""
    group = q.shape[1] // k.shape[1]
    scores = torch.einsum("qhd,khd->hqk", q.float(), k.float().repeat_interleave(group, 1)) * scale
    own = torch.arange(len(q))[:, None] + len(k) - len(q)
    seen = torch.arange(len(k))[None] <= own
    if left >= 0:
        seen &= torch.arange(len(k))[None] >= own - left
    shares = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", shares, v.float().repeat_interleave(group, 1)).to(q.dtype)


class FlashInfer:
    """Of flashinfer.BatchPrefillWithPagedKVCacheWrapper, the arguments that are used."""

    plans = 0

    def __init__(self, float_workspace_buffer: torch.Tensor, kv_layout: str) -> None:
        assert float_workspace_buffer.dtype == torch.uint8 and kv_layout == "NHD"

    def plan(
        self, *, qo_indptr: torch.Tensor, paged_kv_indptr: torch.Tensor, paged_kv_indices: torch.Tensor,
        paged_kv_last_page_len: torch.Tensor, num_qo_heads: int, num_kv_heads: int, head_dim_qk: int, page_size: int,
        causal: bool, sm_scale: float, window_left: int, q_data_type: torch.dtype, kv_data_type: torch.dtype,
        disable_split_kv: bool,
    ) -> None:  # fmt: skip
        assert causal and disable_split_kv and q_data_type == kv_data_type == torch.bfloat16
        assert all(t.dtype == torch.int32 for t in (qo_indptr, paged_kv_indptr, paged_kv_indices))
        FlashInfer.plans += 1
        self._shape = (num_qo_heads, num_kv_heads, head_dim_qk, page_size)
        self._plan = (
            qo_indptr,
            paged_kv_indptr,
            paged_kv_indices,
            paged_kv_last_page_len,
            sm_scale,
            window_left,
        )

    def run(self, q: torch.Tensor, paged_kv_cache: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        keys, values = paged_kv_cache
        starts, pages, indices, last, scale, left = self._plan
        assert self._shape == (q.shape[1], keys.shape[2], q.shape[2], keys.shape[1])
        out = torch.empty_like(q)
        for i in range(len(last)):
            mine = indices[pages[i] : pages[i + 1]].long()
            length = (len(mine) - 1) * keys.shape[1] + int(last[i])
            k, v = (cache[mine].flatten(0, 1)[:length] for cache in (keys, values))
            out[starts[i] : starts[i + 1]] = attend(q[starts[i] : starts[i + 1]], k, v, scale, left)
        return out


def flash_attn_varlen_func(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int, max_seqlen_k: int, softmax_scale: float, causal: bool, window_size: tuple[int, int],
    block_table: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    assert causal and k.shape[1] % 256 == 0 and q.dtype == k.dtype and max_seqlen_q >= 2
    out = torch.empty_like(q)
    for i in range(len(block_table)):
        first, last = int(cu_seqlens_q[i]), int(cu_seqlens_q[i + 1])
        length = int(cu_seqlens_k[i + 1] - cu_seqlens_k[i])
        assert last - first <= max_seqlen_q and length <= max_seqlen_k
        mine = block_table[i, : -(-length // k.shape[1])].long()
        keys, values = (cache[mine].flatten(0, 1)[:length] for cache in (k, v))
        out[first:last] = attend(q[first:last], keys, values, softmax_scale, window_size[0])
    return out


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(("name", "size"), [("flashinfer", 16), ("flash-attn", 256)])
def test_what_is_handed_over(
    libraries: Any, monkeypatch: pytest.MonkeyPatch, name: str, size: int, window: int | None
) -> None:
    monkeypatch.setitem(
        sys.modules, "flashinfer", SimpleNamespace(BatchPrefillWithPagedKVCacheWrapper=FlashInfer)
    )
    monkeypatch.setitem(
        sys.modules, "flash_attn", SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)
    )
    torch.manual_seed(size)
    keys, values = (torch.randn(12, size, 2, 64).bfloat16() for _ in range(2))
    counts, lens = torch.tensor([1, 7, 1, 3]), torch.tensor([37, 16, 1, 40], dtype=torch.int32)
    starts = torch.cat((torch.zeros(1), counts.cumsum(0))).int()
    tables = torch.randperm(12, dtype=torch.int32).view(4, 3)
    query = torch.randn(12, 6, 64).bfloat16().float()
    rest = {"query_starts": starts, "context_lens": lens, "block_tables": tables, "scale": 0.125}
    with use_backend("torch"):
        expected = paged_attention(query, keys, values, window=window, **rest)
    assert libraries.takes(name, query, keys, values, None)
    call, before = libraries._CALLS[name], FlashInfer.plans
    for _ in range(2):  # two layers of one step share a plan
        got = call(query, keys, values, starts, lens, tables, 0.125, window or 0)
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2)
    if name == "flashinfer":
        assert FlashInfer.plans == before + 1
        lens -= 1  # the next step, in the same memory
        starts[2:] -= 1
        call(query, keys, values, starts, lens.clamp_(min=1), tables, 0.125, window or 0)
        assert FlashInfer.plans == before + 2


def test_what_libraries_do_not_take_is_ours(libraries: Any) -> None:
    query, pages = torch.zeros(1, 4, 64), torch.zeros(2, 16, 2, 64, dtype=torch.bfloat16)
    assert libraries.takes("flashinfer", query, pages, pages, None)
    assert not libraries.takes("flashinfer", query, pages, pages, torch.zeros(4))
    assert not libraries.takes("flashinfer", query, pages.float(), pages.float(), None)
    assert not libraries.takes("flashinfer", query, pages, pages[..., :32], None)
    assert not libraries.takes("flash-attn", query, pages, pages, None)


def test_the_choice(libraries: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    present: set[str] = set()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in present else None)
    for asked, there, expected in [
        ("auto", set(), "triton"), ("auto", {"flash_attn"}, "flash-attn"), ("triton", {"flashinfer"}, "triton"),
        ("auto", {"flashinfer", "flash_attn"}, "flashinfer"), ("flash-attn", {"flash_attn"}, "flash-attn"),
    ]:  # fmt: skip
        present.clear()
        present.update(there)
        monkeypatch.setenv("JANUS_ATTENTION_LIBRARY", asked)
        libraries.library.cache_clear()
        assert libraries.library() == expected
    present.clear()
    for asked, match in [("flashinfer", "not installed"), ("xformers", "allowed: auto")]:
        monkeypatch.setenv("JANUS_ATTENTION_LIBRARY", asked)
        libraries.library.cache_clear()
        with pytest.raises(RuntimeError, match=match):
            libraries.library()
