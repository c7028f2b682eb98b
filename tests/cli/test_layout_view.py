"""What `janus layout` shows: shares, a_max, text and picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from janus_cli.layout_view import LayoutView, picture, summary, table
from janus_placement import LayerRouting
from rich.console import Console

SAMPLES = np.array([[0, 1]] * 60 + [[0, 2]] * 30 + [[3, 2]] * 10, np.int32)


def view(*, known: bool = True) -> LayoutView:
    return LayoutView(
        version=7, experts=4, slots=3, workers=["moe-0", "moe-1"], layers=[[[0, 1], [0, 2, 3]]] * 2,
        routing={1: LayerRouting(SAMPLES, 4)} if known else {}, batch={1: 8.0} if known else {},
    )  # fmt: skip


def text(*parts: Any) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(*parts)
    return console.export_text()


def test_replicas_share_their_expert_s_tokens() -> None:
    share = view().share(1, view().layers[1])
    np.testing.assert_allclose(share[:, 0], [0.45, 0.6, np.nan, np.nan])
    np.testing.assert_allclose(share[:, 1], [0.45, np.nan, 0.4, 0.1])
    assert np.nansum(share) == pytest.approx(2.0), "two experts a token"


def test_a_max_is_what_the_schedule_would_have() -> None:
    found = view().a_max(1, [[0, 1], [2, 3]])
    assert found is not None
    assert found[0] >= found[1] >= 1.0
    assert view().a_max(0, view().layers[0]) is None


def test_text_says_which_expert_is_where() -> None:
    shown = text(summary(view()), table(view(), 1, view().layers[1]))
    assert "layout 7: 4 experts in each of 2 MoE layers, on 2 workers with 3 slots" in " ".join(shown.split())
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert "moe-0 1 0 52%" in rows and "moe-1 0 2 3 48%" in rows, "the busiest first"
    assert "no routing was reported" in text(summary(view(known=False)))
    assert "idle to busy" not in text(table(view(), 0, view().layers[0]))


def test_the_picture_is_one(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture(view(), [0, 1], {1: [[0, 2], [1, 3]]}, tmp_path / "layout.png")
    assert (tmp_path / "layout.png").read_bytes().startswith(b"\x89PNG")
