"""The exchange's measurement, at sizes that take no time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from janus_bench.errors import BenchError
from janus_bench.exchange import Plan, measure, picture
from janus_bench.exchange.measure import _samples
from janus_bench.exchange.parties import Part
from janus_cli.main import main

pytestmark = pytest.mark.timeout(120)


def test_in_process() -> None:
    rows = measure(("inproc",), Plan(sizes=(0, 512, 5000), grid=(2, 3), grid_most=600, rounds=2, count=20))
    assert [(r["pattern"], r["payload"]) for r in rows] == [
        ("1x1", 0), ("1x1", 512), ("1x1", 5000), ("2x3", 0), ("2x3", 512),
    ]  # fmt: skip
    assert all(0 < r["exchange_us"] <= r["p90_us"] and r["bare_us"] is None for r in rows)


def test_over_ucx_beside_bare_ucxx(tmp_path: Path) -> None:
    png = tmp_path / "x.png"
    ran = CliRunner().invoke(
        main,
        [
            "bench", "exchange", "--transport", "tcp", "--sizes", "64,70000", "--grid", "2x1", "--rounds", "2",
            "--count", "20", "--json", "--picture", str(png),
        ],
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    rows = json.loads(ran.stdout)["rows"]
    assert [(r["pattern"], r["bare_us"] is not None) for r in rows] == [("1x1", True)] * 2 + [
        ("2x1", False)
    ] * 2
    assert all(r["ratio"] == pytest.approx(r["exchange_us"] / r["bare_us"]) for r in rows[:2])
    assert png.read_bytes().startswith(b"\x89PNG")


def test_the_grpc_baseline() -> None:
    rows = measure(("grpc",), Plan(sizes=(0, 5_000_000), rounds=2, count=10))
    assert [(r["pattern"], r["payload"], r["bare_us"]) for r in rows] == [
        ("1x1", 0, None),
        ("1x1", 5_000_000, None),
    ]
    assert all(0 < r["exchange_us"] <= r["p90_us"] for r in rows)


def test_first_tenth_is_left_out_and_turns_are_all_there() -> None:
    part = Part(
        member=0, transport="inproc", tls="", attention=1, moe=1, sizes=(8,), rounds=3, count=20, bare=False
    )
    assert len(_samples(part, 30)["exchange", 8]) == 3 * 18


@pytest.mark.parametrize("transport", ["inproc", "ucx"])
def test_a_party_that_fails_says_why(transport: str) -> None:
    part: Any = Part(
        member=0, transport=transport, tls="", attention=1, moe=1, sizes=(-1,), rounds=1, count=1, bare=False
    )
    with pytest.raises(BenchError, match="member 1 failed:"):
        _samples(part, 60)


@pytest.mark.parametrize(
    "wrong",
    [["--sizes", "1,x"], ["--sizes", "-4"], ["--grid", "3"], ["--grid", "0x1"], ["--transport", "udp"]],
)
def test_bad_usage(wrong: list[str]) -> None:
    ran = CliRunner().invoke(main, ["bench", "exchange", *wrong])
    assert ran.exit_code == 2 and wrong[0] in ran.stderr


def test_a_picture_of_no_bare_times(tmp_path: Path) -> None:
    row = {
        "transport": "inproc",
        "pattern": "1x1",
        "payload": 8,
        "exchange_us": 1.0,
        "p90_us": 2.0,
        "bare_us": None,
    }
    picture([row], tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()
