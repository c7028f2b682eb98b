"""Run a service's main coroutine: signals become cancellation, start-up errors one clear line."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from janus_runtime.errors import JanusError

log = logging.getLogger("janus.service")

STOP_DEADLINE_S = 30.0
"""Seconds a service may take to put things in order after a signal before it is ended."""


def run_service(
    async_main: Callable[[], Coroutine[Any, Any, None]], *, stop_deadline_s: float = STOP_DEADLINE_S
) -> NoReturn:
    """Run ``async_main()`` to its end and exit.

    SIGTERM or SIGINT cancels it: its ``finally`` and ``async with`` blocks clean up, then exit code 0. A
    JanusError that leaves it is printed as one line on stderr, exit code 1; any other exception is printed
    with its traceback, exit code 1. A second signal, or a clean-up that outlasts ``stop_deadline_s``,
    ends the process at once with exit code 1.
    """
    try:
        code = asyncio.run(_main(async_main, stop_deadline_s))
    except Exception as error:
        cause = _janus_error(error)
        if cause is not None:
            print(f"error: {cause}", file=sys.stderr, flush=True)
        else:
            log.exception("the service ended with an unexpected error; please report it")
        code = 1
    sys.exit(code)


def _janus_error(error: Exception) -> JanusError | None:
    """The error itself, or the first of a task group when all of its errors are JanusErrors."""
    if isinstance(error, ExceptionGroup):
        found = [_janus_error(e) for e in error.exceptions]
        return found[0] if all(found) else None
    return error if isinstance(error, JanusError) else None


async def _main(async_main: Callable[[], Coroutine[Any, Any, None]], stop_deadline_s: float) -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(async_main())
    signals = 0

    def on_signal(number: int) -> None:
        nonlocal signals
        signals += 1
        if signals > 1:
            _end_now("second signal")
        log.info("%s: stopping", signal.Signals(number).name)
        timer = threading.Timer(
            stop_deadline_s, _end_now, args=(f"clean-up took over {stop_deadline_s:.0f} s",)
        )
        timer.daemon = True  # a thread, not the loop: the loop may be what hangs
        timer.start()
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        await task
    except asyncio.CancelledError:
        if not signals:
            raise
    return 0


def package_version(name: str) -> str:
    """Version of an installed distribution; empty when run from a source tree."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _end_now(why: str) -> None:
    print(f"error: ended without cleaning up: {why}", file=sys.stderr, flush=True)
    os._exit(1)
