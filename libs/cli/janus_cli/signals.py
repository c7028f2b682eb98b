"""Signals as an event: the first asks for an orderly end, the second for a quick one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


@contextlib.asynccontextmanager
async def stop_signals(*, with_stdin: bool = False) -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT, SIGTERM and SIGHUP set; a second signal cancels the calling task.

    ``with_stdin``: the end of standard input sets it too, so that a mesh ends with the process that holds
    the other end of the pipe, however that ended.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    event = asyncio.Event()

    def on_signal() -> None:
        if event.is_set() and task is not None:
            task.cancel()
        event.set()

    def on_stdin() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            loop.remove_reader(sys.stdin)
            event.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    if with_stdin:
        loop.add_reader(sys.stdin, on_stdin)
    try:
        yield event
    finally:
        if with_stdin:
            loop.remove_reader(sys.stdin)
        for number in numbers:
            loop.remove_signal_handler(number)


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of ``work``, or None, and ``work`` cancelled, when ``stop`` is set first."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, stopped):
            each.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
