"""Traces: rates, bursts, the course of a day, and CSV files with all that can be wrong in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from janus_scaling import ScalingError
from janus_simulator import SHAPES, Trace, TraceError, load_csv, parse_csv, synthetic
from janus_simulator.traces import day_course


@settings(deadline=None, max_examples=40)
@given(
    shape=st.sampled_from(SHAPES), rate=st.floats(0.01, 20), duration=st.floats(10, 2000), seed=st.integers(0, 99),
    sigma=st.floats(0, 2), burst=st.floats(0.2, 20),
)  # fmt: skip
def test_a_trace_is_valid_and_a_function_of_its_seed(
    shape: str, rate: float, duration: float, seed: int, sigma: float, burst: float
) -> None:
    one, two = (
        synthetic(shape, rate=rate, duration_s=duration, seed=seed, sigma=sigma, burstiness=burst)
        for _ in range(2)
    )
    np.testing.assert_array_equal(one.arrival_s, two.arrival_s)
    np.testing.assert_array_equal(one.output, two.output)
    assert one.arrival_s[-1] <= duration and len(one) >= 1


def test_rates_lengths_and_bursts() -> None:
    for shape, cv2 in (("steady", 1.0), ("bursty", 4.0)):
        t = synthetic(shape, rate=10, duration_s=20_000, seed=1)
        assert len(t) == pytest.approx(200_000, rel=0.03)
        assert t.output.mean() == pytest.approx(256, rel=0.03) and t.prompt.mean() == pytest.approx(
            16, rel=0.03
        )
        gaps = np.diff(t.arrival_s)
        assert gaps.var() / gaps.mean() ** 2 == pytest.approx(cv2, rel=0.1)


@pytest.mark.parametrize("peak", [2.0, 4.0, 7.5])
def test_a_day_peaks_as_asked(peak: float) -> None:
    course = day_course(peak)
    assert course.mean() == pytest.approx(1) and course.max() == pytest.approx(peak, rel=1e-3)
    t = synthetic("diurnal", rate=3, duration_s=86_400, peak=peak, burstiness=1.0)
    output, prompt = t.rates(900)
    assert output.max() / (t.output.sum() / 86_400) == pytest.approx(peak, rel=0.1)
    assert output.sum() * 900 == pytest.approx(t.output.sum()) and prompt.sum() * 900 == pytest.approx(
        t.prompt.sum()
    )


def test_the_rate_of_a_trace_shorter_than_a_bin() -> None:
    t = synthetic("steady", rate=5, duration_s=100)
    assert t.rates(900)[0][0] == pytest.approx(t.output.sum() / t.arrival_s[-1])


def test_a_window() -> None:
    t = synthetic("steady", rate=5, duration_s=100)
    w = t.window(20, 30)
    assert w.arrival_s[0] >= 0 and w.arrival_s[-1] < 10
    assert len(w) == int(((t.arrival_s >= 20) & (t.arrival_s < 30)).sum())


BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
PLAIN = "arrival_s,prompt_tokens,output_tokens\n"


def test_csv_of_each_kind(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        BURST + "45,ChatGPT,472,18,490,API log\n5,GPT-4,1087,230,1317,API log\n50,GPT-4,10,0,10,API log\n"
    )
    t = load_csv(path)
    assert (
        t.arrival_s.tolist() == [0, 40]
        and t.prompt.tolist() == [1087, 472]
        and t.output.tolist() == [230, 18]
    )
    path.write_text(AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n")
    t = load_csv(path)
    assert t.arrival_s.tolist() == pytest.approx([0, 4.314579]) and t.output.tolist() == [44, 109]
    path.write_text("\ufeff" + AZURE + "2024-05-10 00:00:00+00:00,1,2\n2024-05-10 00:00:01.5+00:00,3,4\n\n")
    assert load_csv(path).arrival_s.tolist() == [0, 1.5]
    assert parse_csv([PLAIN, "1,0,5\n"], "t").prompt.tolist() == [1], "a prompt of nothing is one token"


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        f"{t:.3f},{p},{o}\n"
        for t, p, o in zip(rng.uniform(0, 9e4, 50), range(1, 51), range(2, 52), strict=True)
    ]
    found = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.csv"
        path.write_text(PLAIN + "".join(rows))
        rng.shuffle(rows)  # type: ignore[arg-type]
        found.append(load_csv(path))
    first, second = found
    assert (first.arrival_s == second.arrival_s).all() and (first.prompt == second.prompt).all()
    assert (np.diff(first.arrival_s) >= 0).all() and first.arrival_s[0] == 0
    assert first.arrival_s[-1] > 3600, "gaps of hours stay what they are"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "line 1: columns = none"),
        ("a,b\n1,2\n", r"columns = a, b; allowed: timestamp, request tokens"),
        (PLAIN + "1,2,3\nx,2,3\n", r"line 3: arrival_s = 'x'; allowed: seconds, 0 or more"),
        (PLAIN + "1,2,3\n\n2,2.5,3\n", r"line 4: prompt_tokens = '2.5'; allowed: a whole number"),
        (PLAIN + "1,2\n", r"line 2: output_tokens = missing"),
        (PLAIN + "1,2,-3\n", r"output_tokens = '-3'"),
        (PLAIN + "nan,2,3\n", "arrival_s = 'nan'"),
        (PLAIN + "inf,2,3\n", "arrival_s = 'inf'"),
        (PLAIN, r"requests = 0; allowed: 1\.\."),
        (AZURE + "yesterday,2,3\n", "line 2: timestamp = 'yesterday'; allowed: a date and time"),
    ],
)
def test_bad_rows_are_named(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match=match):
        load_csv(path)


def test_bad_rows_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(PLAIN + "1,2,3\nx,2,3\n9,2,3\n")
    assert len(load_csv(path, skip_bad=True)) == 2
    path.write_text(PLAIN + "x,2,3\n")
    with pytest.raises(TraceError, match="line 2"):
        load_csv(path, skip_bad=True)
    with pytest.raises(TraceError, match="a readable CSV file"):
        load_csv(tmp_path / "none.csv")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceError, match="UTF-8"):
        load_csv(path)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"rate": 0}, "rate"), ({"duration_s": -1}, "duration_s"), ({"peak": 0.5}, "peak"),
        ({"rate": 1e6}, "rate x duration_s"),
     ({"shape": "odd"}, "shape"), ({"mean_output": 0}, "mean_output"), ({"rate": float("nan")}, "rate")],
)  # fmt: skip
def test_bad_settings_are_named(change: dict[str, float], field: str) -> None:
    values = {"shape": "steady", "rate": 1.0, "duration_s": 1e5, **change}
    with pytest.raises(ScalingError) as caught:
        synthetic(**values)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_no_trace() -> None:
    with pytest.raises(ScalingError, match="ascending"):
        Trace(np.array([2.0, 1.0]), np.array([1, 1]), np.array([1, 1]))
    with pytest.raises(ScalingError, match="output = 0"):
        Trace(np.array([1.0]), np.array([1]), np.array([0]))
