"""An open load: requests arrive when they arrive, whatever the mesh does; and how many workers there were meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import psutil

from janus_testing.load import Load, Stream

_LOOK_S = 0.5


def poisson(phases: Sequence[tuple[float, float]], seed: int) -> list[float]:
    """Arrival times of a Poisson process: ``phases`` are (seconds, requests per second), one after the other."""
    rng, arrivals, begin = random.Random(seed), [], 0.0
    for seconds, rate in phases:
        at = begin
        while rate > 0 and (at := at + rng.expovariate(rate)) < begin + seconds:
            arrivals.append(at)
        begin += seconds
    return arrivals


class OpenLoad(Load):
    """Starts a stream at each of ``arrivals`` (seconds after entry), requests in turn; leaving waits for the last."""

    arrivals: Sequence[float] = ()
    began: float = 0.0
    """Monotonic time of entry."""

    async def _keep_going(self) -> None:
        channels = self._channels()
        running = set()
        self.began = time.monotonic()
        try:
            for number, at in enumerate(self.arrivals):
                await asyncio.sleep(max(0.0, self.began + at - time.monotonic()))
                stream = Stream(number % len(self._requests))
                stream.asked = time.monotonic()
                self.streams.append(stream)
                running.add(asyncio.create_task(self._run(channels, stream, "")))
            await asyncio.gather(*running)
        finally:
            for channel in channels:
                await channel.close()

    def tpot(self, begin: float, end: float) -> list[float]:
        """Of each stream with tokens within [begin, end) seconds after entry: its mean time per output token there,
        seconds, ascending. A token's time is the gap before it."""
        found = []
        for stream in self.streams:
            gaps = [b - a for a, b in itertools.pairwise(stream.times) if begin <= b - self.began < end]
            if gaps:
                found.append(sum(gaps) / len(gaps))
        return sorted(found)

    def ttft(self, begin: float, end: float) -> list[float]:
        """Times to first token of the streams that arrived within [begin, end), seconds, ascending."""
        return sorted(
            s.times[0] - s.asked for s in self.streams if s.times and begin <= s.asked - self.began < end
        )


def quantile(ascending: Sequence[float], share: float) -> float:
    """The value that ``share`` of them are at most; NaN of none."""
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))] if ascending else float("nan")


@dataclass(slots=True)
class WorkerCount:
    """``with WorkerCount(supervisor_pid) as count:`` counts worker processes, starting and draining ones too."""

    supervisor_pid: int
    rows: list[tuple[float, int, int]] = field(default_factory=list)
    """(monotonic time, attention, MoE)."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch, name="count", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_S):
            attention = moe = 0
            for child in psutil.Process(self.supervisor_pid).children():
                try:
                    name, command = child.name(), child.cmdline()
                except psutil.Error:
                    continue
                # One that was forked is called by its worker's id; its command is the fork server's, which names all.
                own = [] if "janus_cli.prefork" in command else command
                attention += name.startswith("attention-") or "janus_attention" in own
                moe += name.startswith("moe-") or "janus_moe" in own
            self.rows.append((time.monotonic(), attention, moe))

    def worker_seconds(self, begin: float, end: float) -> float:
        """Of both pools between two monotonic times."""
        return sum(
            (a + e) * (min(later[0], end) - max(t, begin))
            for (t, a, e), later in itertools.pairwise(self.rows)
            if later[0] > begin and t < end
        )
