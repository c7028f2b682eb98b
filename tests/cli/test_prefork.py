"""Services forked from one process: as good as started, in all that their supervisor and their log see of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux alone")

SERVICE = """
import json, os, sys, time
import heavy
def main():
    said = {"argv": sys.argv, "env": dict(os.environ), "imported": heavy.BY, "stdin": sys.stdin.read(),
            "session": os.getsid(0), "group": os.getpgid(0), "comm": open("/proc/self/comm").read().strip()}
    print(json.dumps(said), flush=True)
    what = sys.argv[1]
    if what == "sleep":
        time.sleep(60)
    if what == "raise":
        raise ValueError("a fault of the service")
    sys.exit(int(what))
if __name__ == "__main__":
    main()
"""
OWNER = """
import asyncio, json, sys
from pathlib import Path
from janus_cli.child import Child
from janus_cli.engines import ServiceServer
folder = Path(sys.argv[1])
env = {"PYTHONPATH": str(folder), "PATH": "/bin"}
async def main():
    server = ServiceServer(folder / "services.log", env, ["service", "broken"])
    await server.start()
    children, keeper = {}, asyncio.create_task(server.keep())
    print(json.dumps({"server": server._child.pid}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, do, *arguments = json.loads(line)
        if do == "start":
            command = (sys.executable, "-m", *arguments)
            children[name] = Child(name, command, {**env, "NAME": name}, folder / f"{name}.log", forks=server)
            print(json.dumps({"pid": children[name].pid}), flush=True)
        elif do == "wait":
            print(json.dumps({"status": await children[name].wait()}), flush=True)
        else:
            await children[name].stop(5.0)
            print(json.dumps({"ending": children[name].ending()}), flush=True)
    keeper.cancel()
    await server.stop()
asyncio.run(main())
"""


class Owner:
    """A supervisor's stand-in, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "heavy.py").write_text("import os\nBY = os.getpid()\n")
        for name, text in (("service", SERVICE), ("broken", "import no_such_module\n")):
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text("")
            (folder / name / "__main__.py").write_text(text)
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.server = int(self.answer()["server"])

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def __call__(self, *request: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def said(self, name: str) -> dict[str, Any]:
        until(lambda: (self.folder / f"{name}.log").read_text().count("\n") > 0)
        found: dict[str, Any] = json.loads((self.folder / f"{name}.log").read_text().splitlines()[0])
        return found


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    owner = Owner(tmp_path)
    yield owner
    owner.process.kill()
    owner.process.communicate()


def test_it_is_the_supervisors_child_and_knows_nothing_of_the_server(owner: Owner) -> None:
    pid = owner("a", "start", "service", "3", "--x")["pid"]
    assert owner("a", "wait") == {"status": 3}
    said = owner.said("a")
    assert said["argv"] == ["service", "3", "--x"] and said["imported"] == owner.server != pid
    assert said["env"]["NAME"] == "a" and "HOME" not in said["env"]
    assert (said["stdin"], said["session"], said["group"], said["comm"]) == ("", pid, pid, "a")
    pid = owner("b", "start", "service", "sleep")["pid"]
    owner.said("b")
    assert psutil.Process(pid).ppid() == owner.process.pid
    descriptors = os.listdir(f"/proc/{pid}/fd")
    assert sorted(descriptors, key=int)[:3] == ["0", "1", "2"] and len(descriptors) == 3
    assert owner("b", "stop") == {"ending": "was ended by SIGTERM"}
    owner("c", "start", "service", "raise")
    assert owner("c", "wait") == {"status": 1}
    assert "a fault of the service" in (owner.folder / "c.log").read_text()


def test_it_dies_with_the_supervisor_and_outlives_the_server(owner: Owner) -> None:
    pid = owner("a", "start", "service", "sleep")["pid"]
    owner.said("a")
    os.kill(owner.server, signal.SIGKILL)
    other = owner("b", "start", "service", "sleep")["pid"]  # the plain way, while there is none
    assert owner.said("b")["imported"] == other
    assert psutil.pid_exists(pid)
    owner.process.kill()
    owner.process.wait()
    until(lambda: not any(psutil.pid_exists(p) for p in (pid, other)))


def test_a_server_that_died_comes_back(owner: Owner) -> None:
    os.kill(owner.server, signal.SIGKILL)
    numbers = (f"n{i}" for i in range(1000))

    def forked() -> bool:
        name = next(numbers)
        pid = owner(name, "start", "service", "0")["pid"]
        owner(name, "wait")
        return bool(owner.said(name)["imported"] != pid)

    until(forked)


def test_what_cannot_be_imported_says_so_in_its_own_log(owner: Owner) -> None:
    owner("a", "start", "broken")
    assert owner("a", "wait") == {"status": 1}
    assert "no_such_module" in (owner.folder / "a.log").read_text()
