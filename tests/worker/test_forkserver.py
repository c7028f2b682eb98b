"""Engines from the fork server: as if started by their control process, and gone with it, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from janus_worker.forked import FORK_SERVER, ForkedProcess
from janus_worker.link import ChildGone, EngineProcess

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the fork server needs Linux' pidfd_open"),
]
ARGUMENTS = ["--options", '{"name": "echo"}']


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    path = tmp_path / "socket"
    command = [sys.executable, "-m", "janus_worker.forkserver", "--socket", str(path), "forked_engine"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(command, env=environment)
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.02)
    monkeypatch.setenv(FORK_SERVER, str(path))
    yield process
    process.kill()
    process.wait()


async def start() -> tuple[EngineProcess, dict[str, Any]]:
    engine = await EngineProcess.start("forked_engine", ARGUMENTS)
    assert isinstance(engine._process, ForkedProcess)
    return engine, (await engine.receive()).body


async def ended(pid: int, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while psutil.pid_exists(pid) and time.monotonic() < until:
        await asyncio.sleep(0.02)
    return not psutil.pid_exists(pid)


async def test_it_is_a_process_of_its_own_with_our_environment(
    server: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ECHO", "echo")
    engine, hello = await start()
    other, _ = await start()
    assert hello == {"t": "hello", "pid": engine.pid, "variable": "echo", "arguments": ["forked_engine"]}
    assert len({engine.pid, other.pid, server.pid, os.getpid()}) == 4
    await engine.send({"t": "echo", "n": 1}, b"blob")
    assert (await engine.receive()).body == {"t": "echo", "n": 1}
    await engine.send({"t": "exit", "status": 7})
    with pytest.raises(ChildGone, match="exit status 7"):
        await engine.receive()
    await engine.stop()
    await other.send({"t": "echo", "n": 2})
    assert (await other.receive()).body["n"] == 2
    await other.stop()
    assert await ended(other.pid)
    assert "building echo" in capfd.readouterr().err


async def test_a_killed_one_says_by_what(server: subprocess.Popen[bytes]) -> None:
    engine, _ = await start()
    os.kill(engine.pid, signal.SIGSEGV)
    with pytest.raises(ChildGone, match="SIGSEGV"):
        await engine.receive()
    await engine.stop()


async def test_one_that_does_not_stop_says_where_it_stands_and_is_killed(
    server: subprocess.Popen[bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    engine, _ = await start()
    await engine.send({"t": "sleep"})
    await engine.stop(grace_s=0.2)
    assert await ended(engine.pid)
    assert "forked_engine.py" in (said := capfd.readouterr().err) and " in run" in said


async def test_it_goes_with_its_client_even_when_stopped(server: subprocess.Popen[bytes]) -> None:
    engine, _ = await start()
    os.kill(engine.pid, signal.SIGSTOP)
    assert isinstance(engine._process, ForkedProcess)
    engine._process._writer.close()  # as when the control process dies
    assert await ended(engine.pid)
    assert server.poll() is None
    await engine.stop()


async def test_engines_outlive_the_server(server: subprocess.Popen[bytes]) -> None:
    engine, _ = await start()
    server.kill()
    server.wait()
    await engine.send({"t": "echo", "n": 1})
    assert (await engine.receive()).body["n"] == 1
    later = await EngineProcess.start("forked_engine", ARGUMENTS)  # by itself: nobody listens any more
    assert not isinstance(later._process, ForkedProcess)
    await later.stop()
    await engine.stop()
    assert await ended(engine.pid)


async def test_garbage_is_refused_and_the_server_goes_on(server: subprocess.Popen[bytes]) -> None:
    for noise in (b"", b"\x01", b"\xff\xff\xff\xff", b"\x02\x00\x00\x00[]", os.urandom(64)):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(os.environ[FORK_SERVER])
            client.sendall(noise)
            client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(100) == b""
    with pytest.raises(ConnectionError, match="refused"):
        await ForkedProcess.start(os.environ[FORK_SERVER], "os", [], 2)
    engine, _ = await start()
    await engine.stop()
