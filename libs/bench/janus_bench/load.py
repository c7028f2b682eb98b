"""Making the load: requests at given times, or as many at once as allowed."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from janus_bench.summary import Record
from janus_bench.targets import Target
from janus_bench.workload import Ask

_LEAD_S = 0.05
"""The first request is due this long after the start, so that starting up is not part of its latency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of it."""

    records: list[Record]
    """In the order of the requests."""
    client_cpu: float
    """Share of one core that this process used."""
    lag_s: float
    """The longest that a request was sent after it was due."""


async def run(
    target: Target,
    asks: Sequence[Ask],
    *,
    at: Sequence[float] | None = None,
    concurrency: int | None = None,
    warmup: int = 0,
    on_end: Callable[[Record], None] = lambda record: None,
) -> Run:
    """Ask everything and wait for every answer.

    ``at``: seconds from the start at which each request is due (open loop); without it, each is due when one of
    ``concurrency`` places is free (closed loop). With both, requests that find no place wait, and their waiting
    counts. ``warmup`` copies of the first request are answered before, one after the other, and not counted.
    """
    for _ in range(warmup):
        await target.ask(asks[0], Record(due=time.perf_counter()))
    places = asyncio.Semaphore(concurrency) if concurrency else None
    records = [Record() for _ in asks]
    start = time.perf_counter() + _LEAD_S
    cpu, began = time.process_time(), time.perf_counter()

    async def one(ask: Ask, record: Record) -> None:
        async with places or contextlib.nullcontext():
            record.due = record.due or time.perf_counter()
            await target.ask(ask, record)
        on_end(record)

    async with asyncio.TaskGroup() as tasks:
        for i, (ask, record) in enumerate(zip(asks, records, strict=True)):
            if at is not None:
                record.due = start + at[i]
                await asyncio.sleep(max(0.0, record.due - time.perf_counter()))
            tasks.create_task(one(ask, record))
    took = time.perf_counter() - began
    lag = max((r.sent - r.due for r in records), default=0.0) if places is None else 0.0
    return Run(records=records, client_cpu=(time.process_time() - cpu) / took, lag_s=lag)
