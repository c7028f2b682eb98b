"""The command line itself: help, usage, exit statuses. What needs a mesh is in tests/deploy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from janus_cli.main import main

COMMANDS = [
    "scale",
    "drain",
    "up",
    "down",
    "status",
    "layout",
    "top",
    "generate",
    "chat",
    "model",
    "trace",
    "bench",
    "plan",
    "simulate",
    "autoscale",
]


def janus(*arguments: str, run_dir: Path | None = None) -> tuple[int, str]:
    env = {"JANUS_RUN_DIR": str(run_dir)} if run_dir else {}
    result = CliRunner().invoke(main, list(arguments), env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_every_command_is_listed_and_helps() -> None:
    code, text = janus("--help")
    assert code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in text
        assert janus(command, "--help")[0] == 0
    assert janus("--version")[0] == 0


@pytest.mark.parametrize("command", ["nonsense"])
def test_what_this_release_has_not_does_not_exist(command: str) -> None:
    code, text = janus(command)
    assert code == 2 and "No such command" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ("up", "--attention", "0"), ("up", "--experts", "many"), ("up", "--http-port", "70000"),
        ("up", "--gating", "both"), ("up", "--model", "/nowhere/at/all"), ("up", "--start-deadline", "nan"),
        ("generate",), ("generate", "x", "--temperature", "-1"), ("generate", "x", "--top-p", "0"),
        ("trace", "not-hex"), ("trace", "0" * 33), ("model", "inspect"), ("top", "--every", "0"),
    ],
)  # fmt: skip
def test_bad_usage_is_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code, text = janus(*arguments, run_dir=tmp_path)
    assert code == 2, text
    assert "Usage:" in text and "Traceback" not in text


@pytest.mark.parametrize("arguments", [("down",), ("status",), ("top",), ("generate", "hello"), ("chat",)])
def test_without_a_mesh_it_is_1_and_says_what_to_do(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code, text = janus(*arguments, run_dir=tmp_path)
    assert code == 1
    assert text.startswith(f"error: no mesh runs in {tmp_path}") and "janus up" in text


def test_an_unreachable_gateway_is_1() -> None:
    code, text = janus("generate", "hello", "--address", "127.0.0.1:1", "--deadline", "3")
    assert code == 1 and text.startswith("error: ") and "Traceback" not in text


def test_traces_are_listed_and_shown(tmp_path: Path) -> None:
    line = {
        "trace_id": "a" * 32, "span_id": "b" * 16, "parent_span_id": "", "name": "POST /v1/x", "kind": "server",
        "service": "janus-gateway", "worker": "gateway-0", "start_ns": 10**18, "end_ns": 10**18 + 5_000_000,
        "status": "unset", "message": "", "attributes": {}, "events": [],
    }  # fmt: skip
    (tmp_path / "gateway-0-1.jsonl").write_text(json.dumps(line, separators=(",", ":")) + "\n{broken")
    code, text = janus("trace", "--dir", str(tmp_path))
    assert code == 0 and "a" * 32 in text and "POST /v1/x" in text
    code, text = janus("trace", "a" * 32, "--dir", str(tmp_path))
    assert code == 0 and "1 spans, 5.0 ms" in text
    code, text = janus("trace", "a" * 32, "--dir", str(tmp_path), "--json")
    assert json.loads(text) == [line]
    code, text = janus("trace", "c" * 32, "--dir", str(tmp_path))
    assert code == 1 and "no span of trace" in text
