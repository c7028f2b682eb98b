"""The client against a server whose delays are known, and which says itself when it wrote what."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fake_openai import FakeOpenAi
from janus_bench import workload
from janus_bench.load import Run, run
from janus_bench.summary import Slo, summarize
from janus_bench.targets import HttpTarget
from janus_cli.commands.bench import serve
from janus_cli.main import main

FIRST_S, GAP_S = 0.08, 0.02
EARLY_S = 0.002
"""A timer of the event loop may fire this much before its time."""


def questions(count: int, tokens: int) -> list[workload.Ask]:
    return workload.synthetic(count, input_len=5, max_tokens=tokens, spread=0.0, seed=1)


def load(server: FakeOpenAi, count: int, *, chat: bool = False, tokens: int = 8, **how: Any) -> Run:
    timeout_s = how.pop("timeout_s", 30.0)
    asks = questions(count, tokens)

    async def go() -> Run:
        target = HttpTarget(server.url + "/v1/", chat=chat, timeout_s=timeout_s)
        await target.prepare()
        try:
            return await run(target, asks, **how)
        finally:
            await target.close()

    return asyncio.run(go())


@pytest.mark.parametrize("chat", [False, True])
def test_times_are_what_the_server_did(chat: bool) -> None:
    with FakeOpenAi(first_s=FIRST_S, gap_s=GAP_S) as server:
        ran = load(server, 24, chat=chat, concurrency=6)
    assert server.most_in_flight == 6
    by_prompt = {
        s.body["messages"][0]["content"] if chat else s.body["prompt"]: s for s in server.served
    }  # fmt: skip
    pairs = [(r, by_prompt[a.prompt]) for r, a in zip(ran.records, questions(24, 8), strict=True)]
    for record, served in pairs:
        assert not record.error, record.detail
        assert record.output_tokens == 8 and record.prompt_tokens == 5 and record.counted
        assert len(record.marks) == len(served.pieces) == 8
        assert record.due <= record.sent <= served.began <= served.pieces[0] <= record.marks[0]
        assert record.marks[-1] <= record.end
    # How late the client sees a piece bounds the error of everything that it reports.
    late = [
        mark - wrote
        for record, served in pairs
        for mark, wrote in zip(record.marks, served.pieces, strict=True)
    ]
    assert min(late) >= 0 and statistics.median(late) < 0.02
    most = max(late)
    result = summarize(ran.records)
    expected = {
        "ttft_ms": [s.pieces[0] - r.due for r, s in pairs],
        "tpot_ms": [(s.pieces[-1] - s.pieces[0]) / 7 for _, s in pairs],
        "itl_ms": [b - a for _, s in pairs for a, b in itertools.pairwise(s.pieces)],
    }
    for key, seconds in expected.items():
        for name, percent in (("p50", 50), ("p90", 90), ("p99", 99)):
            assert abs(result[key][name] / 1e3 - np.percentile(seconds, percent)) <= most
        assert abs(result[key]["mean"] / 1e3 - statistics.mean(seconds)) <= most
    assert abs(result["tpot_ms"]["mean"] / 1e3 - statistics.mean(expected["tpot_ms"])) <= most / 7
    # What the server was told to take, at least: sleeps are never short.
    assert result["ttft_ms"]["p50"] / 1e3 >= FIRST_S - EARLY_S
    assert result["tpot_ms"]["p50"] / 1e3 >= GAP_S - most / 7 - EARLY_S
    assert result["e2e_ms"]["p50"] / 1e3 >= FIRST_S + 7 * GAP_S - EARLY_S
    span = max(s.end for s in server.served) - min(s.began for s in server.served)
    assert result["failed"] == 0 and result["duration_s"] >= span - EARLY_S
    assert result["output_tokens_per_s"] == pytest.approx(24 * 8 / result["duration_s"])
    assert result["total_tokens_per_s"] == pytest.approx(24 * 13 / result["duration_s"])
    assert result["duration_s"] - span < 0.5


def test_open_loop_sends_when_due_whatever_the_server_does() -> None:
    at = workload.arrivals(40, 100.0, seed=3)
    with FakeOpenAi(first_s=0.5) as server:
        ran = load(server, 40, tokens=1, at=at)
    assert server.most_in_flight > 20, "it does not wait for answers"
    first = ran.records[0].due
    assert [r.due - first for r in ran.records] == pytest.approx(at)
    assert statistics.median(r.sent - r.due for r in ran.records) < 0.1
    assert ran.lag_s == max(r.sent - r.due for r in ran.records)


def test_waiting_for_a_place_counts() -> None:
    with FakeOpenAi(first_s=0.1) as server:
        ran = load(server, 4, tokens=1, at=[0.0] * 4, concurrency=1)
    assert server.most_in_flight == 1
    for waited, answers in zip(sorted(r.ttft for r in ran.records), (1, 2, 3, 4), strict=True):
        assert answers * (0.1 - EARLY_S) < waited < answers * 0.1 + 1.0


def test_failures_are_counted_by_kind_and_left_out() -> None:
    faults = dict(enumerate(["http503", "cut", "error", "garbage", "hang", "reset", "empty", "http503"]))
    with FakeOpenAi(gap_s=0.01, faults=faults) as server:
        ran = load(server, 12, concurrency=1, timeout_s=1.0)
    result = summarize(ran.records, Slo(ttft=10.0))
    assert result["errors"] == {
        "HTTP 503": 2, "connection lost": 2, "error in the stream: worker_lost": 1, "bad event": 1,
        "timeout": 1, "empty answer": 1,
    }  # fmt: skip
    assert result["succeeded"] == 4 and result["failed"] == 8 and result["output_tokens"] == 32
    assert "not now" in result["error_examples"]["HTTP 503"]
    assert result["goodput"]["requests"] == 4 and result["goodput"]["share"] == pytest.approx(1 / 3)


def test_pieces_of_several_tokens_and_a_server_without_usage() -> None:
    with FakeOpenAi(gap_s=0.03, tokens_per_piece=3) as server:
        (record,) = load(server, 1, tokens=9, concurrency=1).records
    assert len(record.marks) == 3 and record.output_tokens == 9
    assert record.tpot == pytest.approx((record.marks[-1] - record.marks[0]) / 8)
    with FakeOpenAi(usage=False) as server:
        ran = load(server, 2, tokens=4, concurrency=1)
    result = summarize(ran.records)
    assert result["output_tokens"] == 8 and result["tokens_counted_by"] == "pieces of the stream"


def test_warmup_is_not_counted() -> None:
    with FakeOpenAi() as server:
        ran = load(server, 3, concurrency=1, warmup=2)
        assert len(server.served) == 5 and len(ran.records) == 3


def test_nobody_there() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    for extra in ([], ["--api", "grpc"]):
        url = f"127.0.0.1:{port}" if extra else f"http://127.0.0.1:{port}"
        result = CliRunner().invoke(main, ["bench", "serve", "--url", url, *extra])
        assert result.exit_code == 1 and str(port) in result.stderr, result.output
    # With a model named nobody is asked before; every request then fails, by kind.
    result = CliRunner().invoke(
        main,
        ["bench", "serve", "--url", f"http://127.0.0.1:{port}", "--model", "m", "--requests", "3", "--json"],
    )
    assert result.exit_code == 1 and json.loads(result.stdout)["errors"] == {"cannot connect": 3}


@pytest.mark.parametrize(
    "wrong",
    [
        ["--url", "ftp://x"],
        ["--requests", "0"],
        ["--rate", "0"],
        ["--rate", "nan"],
        ["--spread", "2"],
        ["--api", "x"],
    ],
)
def test_bad_usage(wrong: list[str]) -> None:
    result = CliRunner().invoke(main, ["bench", "serve", *wrong])
    assert result.exit_code == 2 and wrong[0] in result.stderr


def test_the_command(tmp_path: Path) -> None:
    with FakeOpenAi(first_s=0.02, gap_s=0.01, faults={3: "http503"}) as server:
        common = [
            "--url",
            server.url,
            "--requests",
            "6",
            "--max-tokens",
            "4",
            "--warmup",
            "0",
            "--ignore-eos",
        ]
        png, rows = tmp_path / "x.png", tmp_path / "x.jsonl"
        asked = CliRunner().invoke(
            serve,
            [
                *common,
                "--rate",
                "50",
                "--slo-tpot",
                "1000",
                "--json",
                "--picture",
                str(png),
                "--records",
                str(rows),
            ],
        )
        assert asked.exit_code == 0, asked.output
        assert all(s.body["ignore_eos"] and s.body["model"] == "fake-model" for s in server.served)
        shown = CliRunner().invoke(serve, [*common, "--api", "chat", "--spread", "0"])
    result = json.loads(asked.stdout)
    assert (
        result["succeeded"] == 5 and result["errors"] == {"HTTP 503": 1} and result["load"] == "50 requests/s"
    )
    assert result["goodput"]["requests"] == 5
    assert png.read_bytes().startswith(b"\x89PNG") and len(rows.read_text().splitlines()) == 6
    assert shown.exit_code == 0 and "time to first token" in shown.output and "6 of 6" in shown.output
