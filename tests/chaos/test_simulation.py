"""Thousands of histories of the cohort protocol in virtual time; each is its seed."""

from __future__ import annotations

import logging
import os

import pytest
from simulated_mesh import Worker, simulate

SEEDS = int(os.environ.get("SIMULATION_SEEDS", "200"))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="janus")


def test_no_token_is_lost_or_made_twice_and_every_stream_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = 0
    for seed in range(SEEDS):
        epochs += simulate(seed, monkeypatch).redis.last_epoch
    assert epochs > 2 * SEEDS, "something happened"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(10_000, 13_000):
        simulate(seed, monkeypatch)


def test_it_would_notice_frames_of_another_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check checks: engines that take whatever epoch comes are found out."""
    monkeypatch.setattr("simulated_mesh.CohortInbox.peek", lambda self, peer: self.exchange.peek(peer))
    with pytest.raises(AssertionError, match=r"one epoch|lockstep|stuck"):
        for seed in range(200):
            simulate(seed, monkeypatch)


def test_it_would_notice_tokens_made_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Worker.adopt

    def adopt(self: Worker, record: object, layout: object) -> None:
        for stream in self.streams:  # goes back by a token at each new epoch
            self.streams[stream] = max(0, self.streams[stream] - 1)
        real(self, record, layout)  # type: ignore[arg-type]

    monkeypatch.setattr(Worker, "adopt", adopt)
    with pytest.raises(AssertionError, match="no token twice"):
        for seed in range(200):
            simulate(seed, monkeypatch)
