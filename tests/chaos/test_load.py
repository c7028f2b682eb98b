"""What the load reports: differences are found, and times are those of the streams under way."""

from __future__ import annotations

import pytest
from janus_testing.load import Load, Stream, make_requests


def test_requests_follow_from_the_seed() -> None:
    one, two, other = (make_requests(6, seed=s) for s in (3, 3, 4))
    assert one == two and one != other


def test_a_stream_that_differs_fails_or_stops_is_named() -> None:
    load = Load("x:1", [])
    load.expected = [[1, 2, 3]]
    load.streams = [
        Stream(0, tokens=[1, 2, 3], done=True), Stream(0, tokens=[1, 9, 3], done=True),
        Stream(0, tokens=[1, 2], done=True), Stream(0, tokens=[1, 2, 3]), Stream(0, error="UNAVAILABLE: x"),
    ]  # fmt: skip
    problems = list(load.problems())
    assert len(problems) == 4
    assert "stream 1 (request 0): differs from token 1 on" in problems[0]


def test_recovery_counts_streams_under_way_and_their_longest_pause() -> None:
    load = Load("x:1", [])
    load.streams = [Stream(0, times=[1.0, 2.0, 2.1, 5.0, 5.1]), Stream(0, times=[3.0, 4.0]), Stream(0)]
    found = load.recovery([2.05])
    assert (found.count, found.worst_s, found.pause_worst_s) == (1, pytest.approx(0.05), pytest.approx(2.9))
    assert load.recovery([9.0]).count == 0
