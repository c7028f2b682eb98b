"""`janus plan` and `janus simulate`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from janus_cli.main import main

SMALL = ["--max-attention", "3", "--max-moe", "9"]


def run(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, list(args))
    return result.exit_code, result.stdout, result.stderr


def test_plan() -> None:
    code, out, err = run("plan", "--batch", "64", *SMALL, "--json", "--show", "100")
    assert code == 0, err
    found = json.loads(out)
    assert (found["chosen"]["attention"], found["chosen"]["moe"]) == (1, 6) and found["slots"] == 27
    assert found["chosen"]["why_not"] == "" and len(found["others"]) == found["candidates"] - 1 == 11
    assert all(c["why_not"] for c in found["others"])
    code, text, _ = run("plan", "--rate", "1500", *SMALL)
    assert code == 0 and "1 attention + 6 MoE" in text and "why not" in text and "more" in text


def test_plan_that_cannot_be() -> None:
    code, out, err = run("plan", "--batch", "64", *SMALL, "--tpot-ms", "1", "--json")
    assert code == 1 and "no candidate meets the objective" in err
    assert json.loads(out)["chosen"] is None and "TPOT" in json.loads(out)["others"][0]["why_not"]


def test_measured_coefficients(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"c_e": 0.001}')
    slow = json.loads(run("plan", "--batch", "64", *SMALL, "--coefficients", str(path), "--json")[1])
    quick = json.loads(run("plan", "--batch", "64", *SMALL, "--json")[1])
    assert slow["chosen"]["tpot_ms"] == pytest.approx(quick["chosen"]["tpot_ms"] + 59 * (1 - 0.02), rel=1e-6)


@pytest.mark.parametrize(
    ("args", "code", "match"),
    [
        (["plan"], 2, "--batch or --rate"),
        (["plan", "--batch", "64", "--rate", "2"], 2, "--batch or --rate"),
        (["plan", "--batch", "0"], 2, "--batch"),
        (["plan", "--batch", "64", "--model", "gpt-9"], 1, "model = 'gpt-9'; allowed: deepseek-v2"),
        (["plan", "--batch", "64", "--hardware", "b200"], 1, "allowed: h100"),
        (["plan", "--batch", "64", "--max-moe", "5"], 1, "max_moe = 5; allowed: 6 or more"),
        (["plan", "--batch", "64", "--idle", "1"], 1, "idle = 1.0; allowed: shares that leave 6 of 160"),
        (["plan", "--batch", "nan"], 2, "finite"),
        (["simulate", "--trace", "/nowhere.csv"], 1, "a readable CSV file"),
        (["simulate", "--hours", "240", "--rate", "100"], 1, "rate x duration_s"),
    ],
)
def test_bad_input_is_named(args: list[str], code: int, match: str) -> None:
    got, _, err = run(*args)
    assert got == code and match in err


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[]", "a JSON object"),
        ("{", "a JSON object"),
        ('{"betta": 1}', "betta"),
        ('{"beta": "x"}', "beta = 'x'"),
        ('{"beta": -1}', "beta = -1"),
    ],
)
def test_bad_coefficients_are_named(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    code, _, err = run("plan", "--batch", "64", "--coefficients", str(path))
    assert code == 1 and match in err


def test_simulate(tmp_path: Path) -> None:
    trace, png = tmp_path / "t.csv", tmp_path / "p.png"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},20,30\n" for i in range(40)))
    args = ["simulate", "--trace", str(trace), "--system", "janus", "--system", "xdeepserve", *SMALL]
    code, out, err = run(*args, "--json", "--picture", str(png))
    assert code == 0, err
    found = json.loads(out)["systems"]
    assert list(found) == ["janus", "xdeepserve"] and found["janus"]["output_tokens"] == 1200
    assert found["janus"]["gpus"]["most"] == 7 and found["xdeepserve"]["gpus"]["most"] == 8
    assert png.stat().st_size > 1000
    code, out, _ = run(*args)
    assert code == 0 and "GPU-hours" in out and "xdeepserve" in out
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n1,2,3\n2,x,3\n")
    code, _, err = run("simulate", "--trace", str(trace))
    assert code == 1 and "line 3: prompt_tokens = 'x'" in err
