"""sample_rows: a whole batch on the device, each row the token that the other backends draw for it alone."""

from __future__ import annotations

import pytest
import torch
from janus_kernels import triton
from janus_kernels.ops import sample, use_backend

pytestmark = pytest.mark.skipif(triton.unavailable() is not None, reason=str(triton.unavailable()))


@pytest.mark.parametrize("vocabulary", [5, 3000])
def test_rows_draw_what_each_would_alone(vocabulary: int) -> None:
    triton.load()
    from janus_kernels.triton.sampling import sample_rows

    torch.manual_seed(vocabulary)
    rows = 48
    logits = torch.randn(rows, vocabulary) * 3
    logits[::5, 1] = float("-inf")
    logits[3] = logits[3].round()
    temperature = torch.rand(rows) + 0.3
    temperature[::6] = 0.0
    top_k = torch.randint(0, 2 * vocabulary, (rows,), dtype=torch.int32) * (torch.rand(rows) < 0.5)
    top_p = torch.where(torch.rand(rows) < 0.5, torch.rand(rows), 1.0).double()
    min_p = torch.where(torch.rand(rows) < 0.3, torch.rand(rows) * 0.1, 0.0).double()
    seeds, indexes = torch.randint(-(1 << 62), 1 << 62, (2, rows))
    seeds[0], indexes[0] = -1, -1  # the counter overflows
    got = sample_rows(logits, temperature, top_k.int(), top_p, min_p, seeds, indexes)
    with use_backend("torch"):
        expected = [
            sample(
                logits[i], temperature=float(temperature[i]), top_k=int(top_k[i]), top_p=float(top_p[i]),
                min_p=float(min_p[i]), seed=int(seeds[i]), index=int(indexes[i]),
            )
            for i in range(rows)
        ]  # fmt: skip
    assert got.tolist() == expected
