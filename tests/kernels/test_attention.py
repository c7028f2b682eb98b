"""paged_attention: close to float64, and a query's bits are the same in any chunk, step and company."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from janus_kernels import set_num_threads
from janus_kernels.native import NATIVE
from janus_kernels.ops import new_pages, paged_attention, store_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@dataclass(slots=True, kw_only=True)
class Case:
    """A mix of prefill chunks and decodes over a shuffled cache whose unused places hold NaN."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    starts: list[int]
    contexts: list[int]
    tables: torch.Tensor
    window: int | None
    sinks: torch.Tensor | None = None

    def laid_out_as_new_pages(self) -> Case:
        """The same numbers in the layout that the compiled kernel likes."""
        for name in ("keys", "values"):
            plain = getattr(self, name)
            if plain.device.type == "cpu":
                pages = new_pages((1, *plain.shape), plain.dtype, "cpu", columns=name == "keys")[0]
            else:  # where pages are plain: this is a view like any other
                pages = torch.empty_like(plain.permute(2, 3, 1, 0).contiguous()).permute(3, 2, 0, 1)
            assert name == "values" or not pages.is_contiguous()
            setattr(self, name, pages.copy_(plain))
        return self

    def run(
        self, query: torch.Tensor, starts: list[int], contexts: list[int], tables: torch.Tensor
    ) -> torch.Tensor:
        return paged_attention(
            query, self.keys, self.values, query_starts=torch.tensor(starts, dtype=torch.int32),
            context_lens=torch.tensor(contexts, dtype=torch.int32), block_tables=tables,
            scale=query.shape[2] ** -0.5, window=self.window, sinks=self.sinks,
        )  # fmt: skip

    def result(self) -> torch.Tensor:
        return self.run(self.query, self.starts, self.contexts, self.tables)

    def exact(self) -> torch.Tensor:
        """Softmax over what each query sees, in float64."""
        size, group = self.keys.shape[1], self.query.shape[1] // self.keys.shape[2]
        out = torch.empty(self.query.shape[0], self.query.shape[1], self.values.shape[3], dtype=torch.float64)
        for i, context in enumerate(self.contexts):
            for t in range(self.starts[i], self.starts[i + 1]):
                end = context - (self.starts[i + 1] - 1 - t)
                seen = range(max(0, end - self.window) if self.window else 0, end)
                places = [(int(self.tables[i, j // size]), j % size) for j in seen]
                k = torch.stack([self.keys[p] for p in places]).double()
                v = torch.stack([self.values[p] for p in places]).double()
                for h in range(self.query.shape[1]):
                    scores = k[:, h // group] @ self.query[t, h].double() * self.query.shape[2] ** -0.5
                    shares = scores.exp() / scores.exp().sum()
                    if self.sinks is not None:
                        shares = scores.exp() / (scores.exp().sum() + self.sinks[h].double().exp())
                    out[t, h] = shares @ v[:, h // group]
        return out


def make_case(
    seed: int, dtype: torch.dtype, *, window: int | None = None, heads: int = 6, kv_heads: int = 2, width: int = 24,
    values: int = 24, size: int = 4, longest: int = 40, shared: bool = False, sinks: bool = False,
) -> Case:  # fmt: skip
    torch.manual_seed(seed)
    draw = np.random.default_rng(seed)
    contexts = [int(n) for n in draw.integers(1, longest, 5)]
    counts = [int(draw.integers(1, c + 1)) if i % 2 else 1 for i, c in enumerate(contexts)]
    need = [-(-c // size) for c in contexts]
    order = draw.permutation(sum(need) + 3)
    keys, held = (
        torch.full((len(order), size, kv_heads, w), float("nan"), dtype=dtype) for w in (width, values)
    )
    tables = np.full((5, max(need)), 1 << 30, np.int32)
    for i, context in enumerate(contexts):
        mine = order[sum(need[:i]) : sum(need[: i + 1])]
        tables[i, : need[i]] = mine
        for j in range(context):
            keys[mine[j // size], j % size] = torch.randn(kv_heads, width).to(dtype)
            held[mine[j // size], j % size] = torch.randn(kv_heads, values).to(dtype)
    query = torch.randn(sum(counts), heads, width)
    starts = [0, *(int(n) for n in np.cumsum(counts))]
    return Case(query=query, keys=keys, values=keys[..., :values] if shared else held, starts=starts,
                contexts=contexts, tables=torch.from_numpy(tables), window=window,
                sinks=torch.randn(heads) * 3 if sinks else None)  # fmt: skip


def check(case: Case, threads: list[int], tolerance: float = 2e-6) -> None:
    got = case.result()
    torch.testing.assert_close(got.double(), case.exact(), rtol=10 * tolerance, atol=tolerance)
    for i, context in enumerate(case.contexts):
        if not threads and i not in (0, 3):
            continue
        first, last = case.starts[i], case.starts[i + 1]
        # The sequence alone; its tokens one step at a time; and in two chunks.
        mine = case.tables[i : i + 1].contiguous()
        alone = case.run(case.query[first:last], [0, last - first], [context], mine)
        assert torch.equal(alone, got[first:last])
        few = last - first < 16 if threads else last - first == 1  # Triton's interpreter is slow
        pieces = [(t, t + 1) for t in range(first, last)] if few else [(last - 1, last)]
        middle = (first + last) // 2
        for t0, t1 in [*pieces, (first, middle), (middle, last)]:
            if t0 < t1:
                piece = case.run(case.query[t0:t1], [0, t1 - t0], [context - (last - t1)], mine)
                assert torch.equal(piece, got[t0:t1])
    for count in threads:
        set_num_threads(count)
        assert torch.equal(case.result(), got)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 1, 7])
def test_mixed_batches(compute: str, threads: list[int], window: int | None, dtype: torch.dtype) -> None:
    for seed in range(2):
        check(make_case(seed, dtype, window=window), threads)


@pytest.mark.parametrize("window", [None, 100, 300])
def test_contexts_longer_than_a_chunk(compute: str, threads: list[int], window: int | None) -> None:
    check(
        make_case(
            11, torch.float32, window=window, heads=4, kv_heads=2, width=16, values=16, size=16, longest=700
        ),
        threads,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 5])
def test_attention_sinks(compute: str, threads: list[int], window: int | None, dtype: torch.dtype) -> None:
    check(make_case(17, dtype, window=window, sinks=True), threads)


def test_attention_sinks_over_several_chunks(compute: str, threads: list[int]) -> None:
    check(
        make_case(18, torch.float32, heads=2, width=16, values=16, longest=400, size=16, sinks=True), threads
    )


def test_a_sink_of_minus_infinity_is_none_and_a_great_one_takes_all(compute: str) -> None:
    case = make_case(19, torch.float32)
    plain = case.result()
    case.sinks = torch.full((6,), -torch.inf)
    torch.testing.assert_close(case.result(), plain, rtol=1e-6, atol=1e-7)
    case.sinks = torch.full((6,), 1e4)
    assert not case.result().any()


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (8, 1), (40, 1), (9, 3)])
def test_any_grouping_of_heads(compute: str, threads: list[int], heads: int, kv_heads: int) -> None:
    check(
        make_case(heads, torch.bfloat16, heads=heads, kv_heads=kv_heads, width=33, values=33, size=5), threads
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_latent_attention_reads_values_from_keys(
    compute: str, threads: list[int], dtype: torch.dtype
) -> None:
    check(make_case(3, dtype, heads=36, kv_heads=1, width=40, values=32, size=8, shared=True), threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("window", "size", "heads", "kv_heads", "width", "values"), [
    (None, 16, 6, 2, 24, 24), (7, 16, 8, 2, 33, 40), (None, 32, 9, 1, 16, 7), (90, 16, 3, 3, 20, 16),
    (None, 64, 12, 2, 16, 16)])  # fmt: skip
def test_pages_by_column(
    compute: str, threads: list[int], dtype: torch.dtype, window: int | None, size: int, heads: int, kv_heads: int,
    width: int, values: int,
) -> None:  # fmt: skip
    case = make_case(heads, dtype, window=window, heads=heads, kv_heads=kv_heads, width=width, values=values, size=size,
                     longest=70, sinks=heads == 8)  # fmt: skip
    check(case.laid_out_as_new_pages(), threads)


@pytest.mark.parametrize("window", [None, 270])
def test_pages_by_column_over_several_chunks(compute: str, threads: list[int], window: int | None) -> None:
    case = make_case(
        11, torch.bfloat16, window=window, heads=4, width=16, values=16, size=16, longest=700, sinks=True
    )
    check(case.laid_out_as_new_pages(), threads)


def test_avx2_and_avx512_agree_in_every_bit(instruction_sets: list[str]) -> None:
    if NATIVE is None or "avx512" not in instruction_sets:
        pytest.skip("this processor lacks AVX-512")
    for seed, dtype in enumerate(DTYPES):
        plain = make_case(seed, dtype, longest=600, size=16)
        pages = make_case(seed, dtype, longest=600, size=16).laid_out_as_new_pages()
        results = {}
        for name in ("avx2", "avx512"):
            NATIVE.use_instruction_set(name)
            results[name] = plain.result(), pages.result()
        assert all(torch.equal(a, b) for a, b in zip(*results.values(), strict=True))


def test_rows_are_stored_where_attention_finds_them() -> None:
    torch.manual_seed(0)
    for columns, size in ((True, 16), (False, 16), (True, 5)):
        pages = new_pages((2, 6, size, 3, 8), torch.bfloat16, "cpu", columns=columns)
        slots, rows = torch.randperm(6 * size)[:28], torch.randn(28, 3, 8)
        store_rows(pages[1], rows[:20], slots[:20])
        store_rows(pages[1], rows[20:], slots[20:])
        for slot, row in zip(slots.tolist(), rows, strict=True):
            assert torch.equal(pages[1, slot // size, slot % size], row.bfloat16())


def test_sequences_without_queries_and_none_at_all(compute: str) -> None:
    case = make_case(5, torch.float32)
    t0, t1 = case.starts[1], case.starts[2]
    tables = case.tables[[0, 1, 2]].contiguous()
    got = case.run(case.query[t0:t1], [0, 0, t1 - t0, t1 - t0], case.contexts[:3], tables)
    assert torch.equal(got, case.result()[t0:t1])
    assert case.run(case.query[:0], [0], [], case.tables[:0]).shape == (0, 6, 24)


def test_bad_arguments_are_refused(compute: str) -> None:
    case = make_case(6, torch.float32)
    good = {"query_starts": torch.tensor(case.starts, dtype=torch.int32), "block_tables": case.tables,
            "context_lens": torch.tensor(case.contexts, dtype=torch.int32), "scale": 1.0}  # fmt: skip
    for change, match in [
        ({"query_starts": torch.tensor(case.starts)}, "query_starts is torch.int64"),
        ({"context_lens": torch.tensor([1], dtype=torch.int32)}, "query_starts"),
        ({"window": 0}, "window = 0"),
        ({"sinks": torch.zeros(2)}, "sinks is"),
    ]:
        with pytest.raises(ValueError, match=match):
            paged_attention(case.query, case.keys, case.values, **{**good, **change})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiple of Hkv"):
        paged_attention(case.query[:, :5].contiguous(), case.keys, case.values, **good)  # type: ignore[arg-type]
