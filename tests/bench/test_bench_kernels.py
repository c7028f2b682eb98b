"""The kernels' measurement: one case of it, once; the rest is the same code on other shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from janus_bench.kernels import CASES, goals, markdown, measure, picture
from janus_cli.main import main
from janus_kernels import POLICIES
from janus_kernels.native import NATIVE

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(NATIVE is None, reason="the compiled kernels are not built"),
]


def test_the_command_on_one_case() -> None:
    ran = CliRunner().invoke(
        main,
        [
            "bench", "kernels", "--only", "linear", "--rounds", "1", "--threads", "1", "--clock", "cpu", "--json"
        ],
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    results = json.loads(ran.stdout)
    assert {(row["weights"], row["tokens"]) for row in results["linear"]} == {
        (weights, tokens) for weights in ("fp32", "bf16") for tokens in (1, 4, 16, 64)
    }
    assert all(row["us"] > 0 for row in results["linear"]) and "experts" not in results
    assert results["read GB/s"] > 0 and results["FMA GFLOP/s"] > 0
    shown = markdown({k: v for k, v in results.items() if k != "machine"})
    assert (
        "goals met" in shown
        and "## Linear" in shown
        and "## Attention" not in shown
        and "| bf16 | 64 |" in shown
    )


def test_goals_are_met_at_their_bounds_and_missed_past_them() -> None:
    def schedule_row(tokens: int, core: float, python: float) -> dict[str, object]:
        return {
            "routing": "uniform",
            "instances": 16,
            "tokens": tokens,
            "core us": core,
            "optimal us": python,
        }

    def expert(
        weights: str, tokens: int, share: float, peak: float, ms: float, torch: float | None = None
    ) -> dict[str, object]:
        return {"weights": weights, "tokens per expert": tokens, "of read bandwidth": share, "of FMA peak": peak,
                "ms": ms, "torch ms": torch, "torch bmm ms": torch}  # fmt: skip

    rows = goals({
        "schedule": [schedule_row(64, 5.0, 8.0), schedule_row(256, 10.1, 14.0), schedule_row(16, 99.0, 99.0)],
        "experts": [
            *(expert("fp32", n, 0.85, 0.1, 4.0, torch=4.0) for n in (1, 2, 4)),
            expert("fp32", 8, 0.1, 0.45, 5.0, torch=9.0), expert("fp32", 64, 0.1, 0.64, 5.0, torch=9.0),
            *(expert("bf16", n, 0.84, 0.42, 2.0) for n in (1, 2, 4)), expert("int8", 1, 0.5, 0.1, 1.1),
            expert("int4", 1, 0.5, 0.1, 1.1),
        ],
        "attention": [{"cache": "fp32", "context": 1024, "of read bandwidth": 0.8},
                      {"cache": "bf16", "context": 1024, "of read bandwidth": 0.79}],
    })  # fmt: skip
    assert [row["met"] for row in rows] == [
        "yes", "yes", "no", "no",  # schedule
        "yes", "yes", "yes", "no", "no", "no", "yes", "no",  # experts: bandwidth, then peak
        "yes", "no", "yes", "no",  # one kind of weights against another, torch
        "yes", "no",  # attention
    ]  # fmt: skip
    assert "50% of the FMA peak" in rows[7]["measured"] and "16 instances, 256 tokens" in rows[2]["goal"]


def test_the_picture(tmp_path: Path) -> None:
    layer = {
        "distinct": [{"weights": w, "experts": n, "ms": 1.0} for w in ("fp32", "bf16") for n in (8, 16)],
        "tokens": [{"weights": w, "tokens": n, "ms": 1.0} for w in ("fp32", "bf16") for n in (8, 16)],
    }
    rows = [
        {"routing": "uniform", "instances": 16, "tokens": n, **dict.fromkeys(POLICIES, 9)} for n in (16, 64)
    ]
    picture(layer, rows, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wrong", "code"),
    [(["--only", "all"], 2), (["--only", "linear", "--picture", "x.png"], 2), (["--clock", "cpu"], 1)],
)
def test_bad_usage(wrong: list[str], code: int) -> None:
    assert CliRunner().invoke(main, ["bench", "kernels", *wrong]).exit_code == code


def test_the_commands_choices_are_the_cases() -> None:
    from janus_cli.commands.bench import kernels

    (only,) = [p for p in kernels.params if p.name == "only"]
    assert tuple(only.type.choices) == tuple(CASES)  # type: ignore[attr-defined]
    assert callable(measure)
