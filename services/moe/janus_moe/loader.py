"""Loading experts beside the steps: a thread maps them and touches their pages, so that a step never waits for disk.

It leaves most of a core to the steps: nobody waits for what is loaded, and everybody for a step.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from janus_kernels.ops import ExpertWeights
from janus_models.experts import ExpertModel

_PAGE = 4096
_REST = 2.0
"""Seconds of rest for each that loading has computed; waiting for the disk is rest itself."""
Key = tuple[int, int]
"""(MoE layer, expert)"""


def read_in(model: ExpertModel, key: Key) -> ExpertWeights:
    """An expert's weights with every page touched."""
    weights = model.load(*key)
    for tensor in (weights.gate, weights.up, weights.down):
        tensor.view(torch.uint8).reshape(-1)[::_PAGE].sum()
    return weights


@dataclass(slots=True)
class LoadJob:
    """Experts asked for together."""

    id: int
    keys: Sequence[Key]
    loaded: dict[Key, ExpertWeights] = field(default_factory=dict)
    error: str = ""


class ExpertLoader:
    """One thread, started with the first job. ``fileno`` is readable when a job is done."""

    def __init__(self, model: ExpertModel) -> None:
        self._model = model
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._jobs: queue.SimpleQueue[LoadJob | None] = queue.SimpleQueue()
        self._done: deque[LoadJob] = deque()
        self._thread: threading.Thread | None = None

    def fileno(self) -> int:
        """For the engine's waits."""
        return self._event

    def ask(self, job: LoadJob) -> None:
        """Queue a job."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="janus-load", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def take(self) -> list[LoadJob]:
        """Jobs that are done, oldest first."""
        with contextlib.suppress(BlockingIOError):  # first, so that a word that comes late is heard next time
            os.eventfd_read(self._event)
        return [self._done.popleft() for _ in range(len(self._done))]

    def close(self) -> None:
        """End the thread after the expert at hand."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(10.0)
            if self._thread.is_alive():
                return  # it has yet to write there: the number must not be another file's by then
        os.close(self._event)

    def _run(self) -> None:
        torch.set_grad_enabled(False)
        while (job := self._jobs.get()) is not None:
            try:
                for key in job.keys:
                    began = time.thread_time()
                    job.loaded[key] = read_in(self._model, key)
                    time.sleep(_REST * (time.thread_time() - began))
            except Exception as error:  # noqa: BLE001 - the asker hears of it, whatever it is
                job.error = f"{type(error).__name__}: {error}"
            self._done.append(job)
            os.eventfd_write(self._event, 1)
