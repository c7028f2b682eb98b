"""Engines forked from one process that has imported torch: importing takes seconds of a core, forking milliseconds.

``python -m janus_worker.forkserver --socket PATH MODULE...``; a supervisor runs one and names its socket to workers
in ``JANUS_FORK_SERVER``. A request on the socket is JSON (module, arguments, environment) with two descriptors, the
engine's link and its stderr; the answers are lines, ``{"pid": N}`` and at its end ``{"status": N}``. The connection is
the engine's life: when the client goes, however it goes, the engine is killed. Where the server goes, engines stay.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import logging
import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from janus_worker.forked import receive_request
from janus_worker.process import run_engine

_REQUEST_S = 5.0
_BACKLOG = 64

_LOG = logging.getLogger("janus.worker")


@dataclass(frozen=True, slots=True)
class _Engine:
    pid: int
    pidfd: int
    connection: socket.socket


class ForkServer:
    """One thread, no asyncio: what is forked is a clean process."""

    def __init__(self, path: Path, modules: Sequence[str]) -> None:
        """Listens at once; requests wait until the modules are imported."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(_BACKLOG)
        self._builds: dict[str, Callable[..., Any]] = {m: importlib.import_module(m).build for m in modules}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._engines: dict[int, _Engine] = {}
        """By the descriptors of connection and process."""

    def run(self) -> NoReturn:
        """Serve until killed."""
        gc.collect()
        gc.freeze()  # or the children's collections would copy every page
        while True:
            # One event at a time: what it closes may be what the next one is of.
            key, _ = self._selector.select()[0]
            if key.fileobj is self._listener:
                self._accept()
            elif key.fd == (engine := self._engines[key.fd]).pidfd:
                self._ended(engine)
            else:
                self._left(engine)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(_REQUEST_S)
        try:
            request, descriptors = receive_request(connection)
            build = self._builds.get(request["module"])
            if build is None:
                raise ValueError(f"module {request['module']!r} is none of {', '.join(self._builds)}")
        except (OSError, ValueError, KeyError) as error:
            _LOG.warning("a request for an engine was refused: %s", error)
            connection.close()
            return
        pid = os.fork()
        if pid == 0:
            self._become(build, request, *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        engine = _Engine(pid, os.pidfd_open(pid), connection)
        for descriptor in (engine.pidfd, connection.fileno()):
            self._engines[descriptor] = engine
            self._selector.register(descriptor, selectors.EVENT_READ)
        _say(connection, {"pid": pid})

    def _become(self, build: Callable[..., Any], request: dict[str, Any], link: int, stderr: int) -> NoReturn:
        status = 1
        try:
            os.setsid()
            self._selector.close()
            self._listener.close()
            for engine in self._engines.values():
                engine.connection.close()
                with contextlib.suppress(OSError):
                    os.close(engine.pidfd)
            os.dup2(stderr, 1)
            os.dup2(stderr, 2)
            os.environ.clear()
            os.environ.update(request["environment"])
            sys.argv = [request["module"], "--fd", str(link), "--parent", "0", *request["arguments"]]
            logging.getLogger().handlers.clear()
            status = run_engine(build)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            logging.getLogger("janus.worker").exception(
                "the engine ended with an unexpected error; please report it"
            )
        finally:
            sys.stderr.flush()
            # As an exec would have left nothing behind of the server's, neither does this.
            os._exit(status)

    def _left(self, engine: _Engine) -> None:
        """Its control process is gone, or has sent what it must not: the engine goes too, even one that is stopped."""
        self._selector.unregister(engine.connection)
        with contextlib.suppress(ProcessLookupError):
            os.kill(engine.pid, signal.SIGKILL)

    def _ended(self, engine: _Engine) -> None:
        _, status = os.waitpid(engine.pid, 0)
        _say(engine.connection, {"status": os.waitstatus_to_exitcode(status)})
        with contextlib.suppress(KeyError):
            self._selector.unregister(engine.connection)
        self._selector.unregister(engine.pidfd)
        for descriptor in (engine.pidfd, engine.connection.fileno()):
            del self._engines[descriptor]
        engine.connection.close()
        os.close(engine.pidfd)


def _say(connection: socket.socket, body: dict[str, int]) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more: then the engine's end is next
        connection.sendall(json.dumps(body).encode() + b"\n")


def main() -> NoReturn:
    """Entry of the process."""
    parser = argparse.ArgumentParser(description="Forks engines for the workers of one machine.")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to listen at")
    parser.add_argument("modules", nargs="+", help="engine modules to import")
    arguments = parser.parse_args()
    ForkServer(arguments.socket, arguments.modules).run()


if __name__ == "__main__":
    main()
