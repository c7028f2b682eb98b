"""Loading beside the steps: whatever the order of thread and engine, no job is lost and no wake-up stays behind."""

from __future__ import annotations

import os
import select
import time
from typing import Any

import pytest
import torch
from janus_kernels.ops import ExpertWeights
from janus_moe.loader import ExpertLoader, LoadJob


class Model:
    """Three small matrices an expert; expert 13 is broken."""

    def load(self, layer: int, expert: int) -> ExpertWeights:
        if expert == 13:
            raise OSError("no such page")
        rows = torch.full((2, 3), float(10 * layer + expert))
        return ExpertWeights(gate=rows, up=rows, down=rows)


@pytest.fixture
def loader() -> Any:
    loader = ExpertLoader(Model())  # type: ignore[arg-type]
    yield loader
    loader.close()


def awake(loader: ExpertLoader) -> bool:
    return bool(select.select([loader.fileno()], [], [], 0)[0])


def taken(loader: ExpertLoader, count: int) -> list[LoadJob]:
    jobs: list[LoadJob] = []
    deadline = time.monotonic() + 10
    while len(jobs) < count:
        assert time.monotonic() < deadline
        jobs += loader.take()
    return jobs


def test_jobs_come_back_in_order_with_their_experts(loader: ExpertLoader) -> None:
    assert loader.take() == []
    for number in range(20):
        loader.ask(LoadJob(number, [(number, 1), (number, 2)]))
    jobs = taken(loader, 20)
    assert [job.id for job in jobs] == list(range(20))
    assert all(float(job.loaded[job.id, 2].gate[0, 0]) == 10 * job.id + 2 for job in jobs)


def test_a_failure_is_told_and_the_thread_goes_on(loader: ExpertLoader) -> None:
    loader.ask(LoadJob(1, [(0, 1), (0, 13), (0, 2)]))
    loader.ask(LoadJob(2, [(0, 2)]))
    first, second = taken(loader, 2)
    assert first.error == "OSError: no such page"
    assert list(first.loaded) == [(0, 1)]
    assert not second.error


def test_taken_before_the_thread_has_said_so(loader: ExpertLoader) -> None:
    """The engine was awake for another reason: the late word must not keep it awake for ever."""
    loader._done.append(LoadJob(7, []))
    assert [job.id for job in loader.take()] == [7]
    os.eventfd_write(loader.fileno(), 1)
    assert awake(loader)
    assert loader.take() == []
    assert not awake(loader)


def test_it_rests_twice_as_long_as_it_computes(loader: ExpertLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(model: object, key: tuple[int, int]) -> ExpertWeights:
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return Model().load(*key)

    monkeypatch.setattr("janus_moe.loader.read_in", busy)
    began = time.monotonic()
    loader.ask(LoadJob(1, [(0, 1), (0, 2)]))
    taken(loader, 1)
    assert time.monotonic() - began >= 2 * 3 * 0.02
