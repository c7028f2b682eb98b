"""``janus`` as a person uses it: up --detach, status, generate, chat, trace, top, down."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from janus_runtime.metrics import BY_NAME
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.timeout(300)


def janus(*arguments: str, run_dir: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "janus_cli", *arguments], env={**os.environ, "JANUS_RUN_DIR": str(run_dir)},
        input=stdin, capture_output=True, text=True, timeout=200,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("run")
    up = janus("up", "--model", str(tiny), "--experts", "2", "--detach", "--json", run_dir=folder)
    assert up.returncode == 0, up.stderr
    mesh = json.loads(up.stdout)
    assert set(mesh) == {"http", "grpc", "gateways", "redis", "services"}
    assert all({"role", "pid", "address"} <= s.keys() for s in mesh["services"])
    yield folder
    down = janus("down", run_dir=folder)
    assert down.returncode == 0, down.stderr
    assert not any(psutil.pid_exists(s["pid"]) for s in mesh["services"])
    assert not (folder / "redis").exists()
    assert janus("status", run_dir=folder).returncode == 1


def test_status(run_dir: Path) -> None:
    status = janus("status", "--json", run_dir=run_dir)
    seen = json.loads(status.stdout)
    assert seen["epoch"] >= 1 and seen["layout_version"] >= 1
    assert seen["attention"] == ["attention-0"] and sorted(seen["moe"]) == ["moe-0", "moe-1"]
    table = janus("status", run_dir=run_dir).stdout
    assert "cohort epoch" in table and "moe-1" in table and "autoscaler-0" in table


@pytest.mark.parametrize("api", ["completions", "chat", "grpc"])
def test_bench_serve(run_dir: Path, tmp_path: Path, api: str) -> None:
    png = tmp_path / "run.png"
    measured = janus(
        "bench", "serve", "--api", api, "--requests", "8", "--concurrency", "4", "--max-tokens", "6", "--spread", "0",
        "--input-len", "8", "--ignore-eos", "--slo-ttft", "100000", "--picture", str(png), "--json", run_dir=run_dir,
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    result = json.loads(measured.stdout)
    assert result["succeeded"] == result["goodput"]["requests"] == 8 and result["errors"] == {}
    assert result["output_tokens"] == 48 and result["tokens_counted_by"] == "server"
    assert result["prompt_tokens"] >= 64 and 0 < result["ttft_ms"]["p50"] <= result["e2e_ms"]["p50"]
    assert result["duration_s"] * result["output_tokens_per_s"] == pytest.approx(48)
    assert png.exists()


def test_metrics_of_the_whole_mesh(run_dir: Path) -> None:
    mesh = json.loads((run_dir / "mesh.json").read_text())
    janus("generate", "hello", "--max-tokens", "5", run_dir=run_dir)
    time.sleep(1.5)  # workers report once a second
    text = httpx.get(f"http://{mesh['http']}/metrics").raise_for_status().text
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    families = list(text_string_to_metric_families(text))
    for sample in (sample for family in families for sample in family.samples):
        found.setdefault(sample.name, []).append((sample.labels, sample.value))
    assert {family.name for family in families} == set(BY_NAME)
    assert {labels["worker"]: up for labels, up in found["janus_worker_up"]} == dict.fromkeys(
        ("attention-0", "moe-0", "moe-1", "autoscaler-0"), 1.0
    )

    def total(name: str, **wanted: str) -> float:
        return sum(value for labels, value in found[name] if wanted.items() <= labels.items())

    for worker in ("moe-0", "moe-1"):
        assert total("janus_moe_expert_activations_total", worker=worker) == total(
            "janus_moe_expert_tokens_total", worker=worker
        )
        passes = total("janus_moe_layer_passes_total", worker=worker)
        assert passes == total("janus_moe_group_layer_passes_total", worker=worker) > 0
        assert passes == total("janus_moe_schedule_seconds_count", worker=worker)
        a_max = total("janus_moe_a_max_total", worker=worker)
        assert a_max == total("janus_moe_group_a_max_total", worker=worker)
        assert passes <= total("janus_moe_group_a_max_bound_total", worker=worker) <= a_max
    steps, step_s = total("janus_attention_steps_total"), total("janus_attention_step_seconds_total")
    exchange_s = total("janus_attention_exchange_seconds_total")
    assert total("janus_attention_layer_exchange_seconds_count") == passes > steps > 0
    assert total("janus_attention_layer_exchange_seconds_sum") == pytest.approx(exchange_s)
    assert 0 < total("janus_attention_moe_seconds_total") < exchange_s < step_s
    assert total("janus_attention_attention_seconds_total") + exchange_s == pytest.approx(step_s)


def test_generate_and_trace(run_dir: Path) -> None:
    asked = janus("generate", "hello", "--max-tokens", "5", "--temperature", "0", "--json", run_dir=run_dir)
    answer = json.loads(asked.stdout)
    assert 1 <= len(answer["token_ids"]) <= 5
    assert answer["usage"]["completion_tokens"] == len(answer["token_ids"])
    deadline = time.monotonic() + 20
    shown = janus("trace", answer["trace_id"], run_dir=run_dir)
    while not all(part in shown.stdout for part in ("moe.layer", "gateway-0", "attention-0")):
        assert time.monotonic() < deadline, shown.stdout + shown.stderr
        time.sleep(0.3)
        shown = janus("trace", answer["trace_id"], run_dir=run_dir)
    spans = json.loads(janus("trace", answer["trace_id"], "--json", run_dir=run_dir).stdout)
    assert {span["trace_id"] for span in spans} == {answer["trace_id"]}
    assert answer["trace_id"] in janus("trace", run_dir=run_dir).stdout
    missing = janus("trace", "abc123", run_dir=run_dir)
    assert missing.returncode == 1 and "no span of trace abc123" in missing.stderr


def test_bad_requests(run_dir: Path) -> None:
    refused = janus("generate", "hello", "--max-tokens", "10000000", run_dir=run_dir)
    assert refused.returncode == 1 and "max_tokens" in refused.stderr and "Traceback" not in refused.stderr
    usage = janus("generate", "hello", "--max-tokens", "0", run_dir=run_dir)
    assert usage.returncode == 2


def test_chat(run_dir: Path) -> None:
    talk = janus("chat", "--max-tokens", "4", run_dir=run_dir, stdin="hello\n/trace\nmore\n/exit\n")
    assert talk.returncode == 0, talk.stderr
    assert "janus trace " in talk.stdout and talk.stdout.count("> ") >= 4


def test_top(run_dir: Path) -> None:
    seen = janus("top", "--rounds", "2", "--every", "0.3", run_dir=run_dir)
    assert seen.returncode == 0, seen.stderr
    assert "moe-1" in seen.stdout and "a_max" in seen.stdout


def test_ctrl_c_in_the_foreground(tiny: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "janus_cli", "up", "--model", str(tiny), "--run-dir", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "OpenAI-compatible API" in process.stdout.readline()
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive


def test_a_model_that_cannot_be_served(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "parrot"}))
    up = janus("up", "--model", str(tmp_path), run_dir=tmp_path / "run")
    assert up.returncode == 1 and "parrot" in up.stderr and "mixtral" in up.stderr
    assert janus("up", "--model", str(tmp_path / "none"), run_dir=tmp_path / "run").returncode == 2


def test_model_inspect(tiny: Path, tmp_path: Path) -> None:
    facts = json.loads(janus("model", "inspect", str(tiny), "--json", run_dir=tmp_path).stdout)
    assert facts["model_type"] == "mixtral"
    assert facts["expert_bytes"] == facts["bytes_per_expert"] * facts["experts"] * facts["moe_layers"]
    assert facts["bytes"] == facts["expert_bytes"] + facts["attention_worker_bytes"]
