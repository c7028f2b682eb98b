"""The chaos report's arithmetic, on times made up by hand."""

from __future__ import annotations

import pytest
from chaos_report import Fault, shown, table, wait


def test_a_wait_is_divided_at_the_epoch_and_the_meshs_first_token() -> None:
    mine = [0.0, 0.9, 1.05, 4.0, 4.1]
    others = [0.5, 1.02, 3.0, 3.9]
    found = wait(1.0, mine, sorted(mine + others), [0.2, 2.5, 3.5])
    assert found is not None
    assert found.next_s == pytest.approx(0.05)  # it was on its way
    assert found.stall_s == pytest.approx(2.95)
    assert (found.epoch_s, found.mesh_s, found.own_s) == pytest.approx((1.45, 0.5, 1.0))


def test_without_an_epoch_there_is_none_to_wait_for() -> None:
    found = wait(1.0, [0.9, 2.0], [0.9, 1.5, 2.0], [])
    assert found is not None
    assert (found.stall_s, found.epoch_s, found.mesh_s, found.own_s) == pytest.approx((1.0, 0.0, 0.5, 0.5))


@pytest.mark.parametrize("times", [[], [1.5, 2.0], [0.1, 0.9]])
def test_a_stream_that_was_not_under_way_notices_nothing(times: list[float]) -> None:
    assert wait(1.0, times, times, []) is None


def test_what_else_was_the_case() -> None:
    tokens = [1.0, 2.0]
    assert Fault(at=2.1, kind="kill", role="moe").under(tokens) == "plain"
    assert Fault(at=2.6, kind="kill", role="moe").under(tokens) == "on top"
    assert Fault(at=2.6, kind="kill", role="moe", enough=False).under(tokens) == "none left"
    assert Fault(at=2.1, kind="kill", role="moe", enough=None).under(tokens) == "redis away"
    assert Fault(at=2.1, kind="kill", role="redis", enough=None).under(tokens) == "plain"


def test_kills_are_summed_whatever_else_was_the_case() -> None:
    faults = [
        Fault(at=1.0, kind="kill", role="moe"),
        Fault(at=5.0, kind="kill", role="attention", enough=False),
        Fault(at=8.0, kind="scale", role=""),
    ]
    rows = table(faults, [[0.0, 1.5, 4.9, 7.0, 7.9, 8.2]], [1.2])
    kills = next(r for r in rows if (r["kind"], r["role"], r["under"]) == ("kill", "any", ""))
    assert (kills["faults"], kills["streams"]) == (2, 2)
    assert kills["next_s"] == pytest.approx((1.25, 0.5, 2.0))
    assert next(r for r in rows if r["kind"] == "all")["faults"] == 3
    assert "| kill attention | none left | 1 |" in shown(rows)
