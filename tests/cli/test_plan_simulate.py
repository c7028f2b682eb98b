"""`janus plan` and `janus simulate`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from janus_cli.main import main
from janus_placement import Recorder
from janus_runtime.coordination import Coordination
from janus_runtime.records import CohortRecord, LayoutRecord
from janus_runtime.redis_server import RedisServer
from janus_runtime.settings import ServiceSettings
from janus_scaling import shape

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


def test_what_if() -> None:
    args = ["plan", "--batch", "64", *SMALL, "--what-if", "1x6", "--what-if", "2X8", "--show", "0"]
    code, out, err = run(*args, "--json")
    assert code == 0, err
    first, second = json.loads(out)["what_if"]
    assert (first["attention"], first["moe"], first["why_not"]) == (1, 6, "")
    assert (second["attention"], second["moe"]) == (2, 8) and "costs" in second["why_not"]
    for found in (first, second):
        search, robin = found["a_max"]["search"], found["a_max"]["round-robin"]
        assert found["bound"] <= search["optimal"] <= robin["optimal"]
        assert all(v["optimal"] <= v["aebs"] for v in found["a_max"].values())
    assert second["bound"] < first["bound"], "more instances, fewer experts on each"
    code, text, _ = run(*args)
    assert code == 0 and "would be chosen" in text and "coactivation" in text and "2 x 8" in text


@pytest.fixture
def reported() -> Iterator[str]:
    """A mesh of two MoE workers in Redis, whose tokens go to 16 of the experts."""
    model = shape("qwen3-235b")
    with RedisServer.start() as server:

        async def tell() -> None:
            coordination = await Coordination.connect(ServiceSettings(redis_url=server.url, worker_id="s"))
            token = await coordination.acquire_leader("s", 60)
            assert token
            layout = LayoutRecord(version=1, num_experts=model.num_experts, slots=22, placement=())
            record = CohortRecord(epoch=1, attention=(), moe=(), layout_version=1)
            await coordination.publish_cohort(record, layout, token)
            recorder = Recorder(model.num_experts, model.top_k)
            rng = np.random.default_rng(0)
            for _ in range(50):
                recorder.observe(0, np.array([rng.permutation(16)[: model.top_k] for _ in range(8)]))
            await coordination.report_routing(recorder.take()[0].to_fields())
            await coordination.close()

        asyncio.run(tell())
        yield server.url


def test_of_a_mesh_that_runs(reported: str) -> None:
    """Its routing: 16 experts at most are ever active, so that six instances have to compute 3 at most."""
    args = ["plan", "--batch", "64", "--model", "qwen3-235b", "--hardware", "h200", "--max-moe", "9"]
    code, out, err = run(*args, "--from-mesh", "--redis-url", reported, "--what-if", "1x6", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["slots"] == 22 and found["what_if"][0]["bound"] == 3
    assert found["what_if"][0]["a_max"]["search"]["optimal"] == pytest.approx(3, abs=0.1)
    code, _, err = run("plan", "--batch", "64", "--from-mesh", "--redis-url", reported)
    assert code == 1 and "no routing of 160 experts was reported" in err


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
        (
            ["plan", "--batch", "64", "--what-if", "2"],
            2,
            "'2' is no size; expected attention x MoE workers, e.g. 2x8",
        ),
        (["plan", "--batch", "64", "--what-if", "0x8"], 2, "is no size"),
        (
            ["plan", "--batch", "64", *SMALL, "--what-if", "2x5"],
            1,
            "2x5; allowed: 1..3 attention and 6..9 MoE",
        ),
        (["plan", "--batch", "64", "--what-if", "2x8", "--system", "sglang"], 2, "sglang has one"),
        (["plan", "--batch", "64", "--from-mesh", "--run-dir", "/nowhere"], 1, "/nowhere"),
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
