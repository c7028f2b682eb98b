"""run_service in real processes: exit codes, lines, deadlines."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

PROLOGUE = """
import asyncio, logging, sys
from janus_runtime.errors import FailedPrecondition
from janus_runtime.service import run_service
"""


def start(body: str) -> subprocess.Popen[str]:
    code = PROLOGUE + textwrap.dedent(body)
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    return process.returncode, out, err


SLEEPER = """
async def main():
    try:
        print("up", flush=True)
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep({cleanup})
        print("clean", flush=True)
run_service(main, stop_deadline_s={deadline})
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_cleans_up_and_exits_0(number: signal.Signals) -> None:
    process = start(SLEEPER.format(cleanup=0.05, deadline=10))
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, out, err) == (0, "clean\n", "")


def test_cleanup_that_hangs_is_ended_with_a_line() -> None:
    process = start(SLEEPER.format(cleanup=60, deadline=0.2))
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.terminate()
    code, _, err = finish(process)
    assert code == 1 and "ended without cleaning up" in err


def test_second_signal_ends_at_once() -> None:
    process = start(SLEEPER.format(cleanup=60, deadline=60))
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    process.terminate()
    try:
        process.wait(0.3)
    except subprocess.TimeoutExpired:
        process.terminate()
    code, _, err = finish(process)
    assert code == 1 and "second signal" in err


def test_janus_error_is_one_line() -> None:
    code, _, err = finish(
        start("async def main(): raise FailedPrecondition('port 1 is in use')\nrun_service(main)")
    )
    assert (code, err) == (1, "error: port 1 is in use\n")


def test_janus_error_in_a_task_group_is_one_line() -> None:
    body = """
    async def fail(): raise FailedPrecondition("taken")
    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(asyncio.sleep(60))
    run_service(main)
    """
    code, _, err = finish(start(body))
    assert (code, err) == (1, "error: taken\n")


def test_unexpected_error_has_a_traceback() -> None:
    code, _, err = finish(start("async def main(): raise ValueError('boom')\nrun_service(main)"))
    assert code == 1 and "Traceback" in err and "boom" in err


def test_a_main_that_returns_exits_0() -> None:
    assert finish(start("async def main(): pass\nrun_service(main)")) == (0, "", "")
