"""Activation statistics: counted right, sampled fairly, bounded, decayed, and safe to read from strangers."""

from __future__ import annotations

import numpy as np
import pytest
from janus_placement import Recorder, Report, ReportError, RoutingWindow
from placement_cases import skewed_samples


def bytes_of(report: Report) -> dict[bytes, bytes]:
    return {key.encode(): value for key, value in report.to_fields().items()}


def test_counts_are_exact_and_samples_are_real() -> None:
    recorder = Recorder(16, 2, rows=32)
    ids = skewed_samples(16, 2, 500, 1)
    for layer in (0, 3):
        for chunk in np.array_split(ids, 11):
            recorder.observe(layer, chunk)
    recorder.observe(5, ids[:0])
    reports = recorder.take()
    assert [r.layer for r in reports] == [0, 3]
    known = {tuple(row) for row in ids.tolist()}
    for report in reports:
        assert (report.tokens, report.batches) == (500, 11)
        np.testing.assert_array_equal(report.counts, np.bincount(ids.ravel(), minlength=16))
        assert len(report.samples) == 32
        assert {tuple(row) for row in report.samples.tolist()} <= known
    assert recorder.take() == []


def test_every_token_is_equally_likely_to_be_sampled() -> None:
    recorder = Recorder(200, 1, rows=20, seed=1)
    ids = np.arange(200, dtype=np.int32).reshape(-1, 1)
    seen = np.zeros(200)
    for _ in range(2000):
        for chunk in np.split(ids, [3, 50, 51, 140]):
            recorder.observe(0, chunk)
        seen[recorder.take()[0].samples.ravel()] += 1
    # 200 expected each, standard deviation 13.4.
    assert np.abs(seen - 200).max() < 5 * 13.4
    assert np.abs(seen[:20].mean() - seen[-20:].mean()) < 5 * 13.4 * (2 / 20) ** 0.5


def test_reports_there_and_back() -> None:
    recorder = Recorder(300, 4)
    recorder.observe(7, skewed_samples(300, 4, 90, 2))
    (report,) = recorder.take()
    back = Report.from_fields(bytes_of(report))
    assert (back.layer, back.tokens, back.batches) == (7, 90, 1)
    np.testing.assert_array_equal(back.counts, report.counts)
    np.testing.assert_array_equal(back.samples, report.samples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({b"head": b"1 2 3"}, "no routing report"), ({b"head": b"1 2 3 x 4"}, "no routing report"),
        ({b"head": b"-1 2 3 16 2"}, "out of range"), ({b"head": b"4096 2 3 16 2"}, "out of range"),
        ({b"head": b"1 2 3 16 99"}, "out of range"),
        ({b"head": b"1 2 3 17 2"}, "head says 17"), ({b"counts": b"abc"}, "no routing report"),
        ({b"counts": b""}, "counts of 0 experts"), ({b"samples": b"\0\0"}, "rows of 2"),
        ({b"samples": b"\xff\xff\0\0"}, "expert 65535; allowed: 0..15"), ({b"samples": bytes(4 * 4097)}, "at most"),
    ],
)  # fmt: skip
def test_garbage_is_refused(change: dict[bytes, bytes], message: str) -> None:
    recorder = Recorder(16, 2)
    recorder.observe(1, skewed_samples(16, 2, 9, 3))
    with pytest.raises(ReportError, match=message):
        Report.from_fields({**bytes_of(recorder.take()[0]), **change})
    with pytest.raises(ReportError, match="no routing report"):
        Report.from_fields({})


def test_the_window_forgets() -> None:
    now = [0.0]
    window = RoutingWindow(16, 2, half_life_s=10.0, rows=100, clock=lambda: now[0])
    old, new = np.full((80, 2), [1, 2], np.int32), np.full((60, 2), [3, 4], np.int32)
    for ids in (old, new):
        recorder = Recorder(16, 2)
        recorder.observe(0, ids)
        window.add(recorder.take()[0])
        now[0] += 10.0
    assert window.layers == [0]
    routing = window.routing(0)
    assert routing is not None
    np.testing.assert_allclose(routing.counts[[1, 3]], [80 / 4, 60 / 2])
    assert len(routing.samples) == 100
    assert (routing.samples == [3, 4]).all(axis=1).sum() == 60
    assert routing.coactivation[3, 4] == routing.coactivation[4, 3] > routing.coactivation[1, 2] > 0
    assert window.mean_batch(0) == pytest.approx((80 / 2 + 60) / 1.5)
    assert window.routing(1) is None
    assert window.mean_batch(1) == 0.0
    with pytest.raises(ReportError, match="this mesh has 16, top-2"):
        window.add(Report(0, 1, 1, np.zeros(8), np.zeros((1, 2), np.int32)))
