"""Services forked from one process that has imported them all: a start costs milliseconds, not a second of a core.

``python -m janus_cli.prefork --socket PATH --ready FD MODULE...``, run by the supervisor. A request is one message on
a SOCK_SEQPACKET socket, JSON (module, arguments, environment, name) with two descriptors, for stdin and for stdout and
stderr; the answer is the new process's id, or empty. What is forked is the *supervisor's* child, not the server's: it
is forked twice, and the supervisor adopts orphans (PR_SET_CHILD_SUBREAPER). So it waits for it, and it dies with it, as
if it had started it itself, and services outlive the server. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from janus_runtime.logs import setup_logging

_REQUEST_MAX = 192 * 1024
_ADOPTED_S = 5.0
_BACKLOG = 64
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36

_LOG = logging.getLogger("janus.prefork")


def adopt_orphans(yes: bool) -> bool:
    """Whether descendants whose parent ends become this process's children from now on; False where that cannot be."""
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0) == 0)


def ask(path: str, body: dict[str, Any], descriptors: Sequence[int], timeout_s: float) -> int:
    """The supervisor's side: id of the new process. Raises OSError (TimeoutError is one) when there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(timeout_s)
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(body).encode()], list(descriptors))
        answer = connection.recv(64)
    if not answer:
        raise ConnectionError("the request was refused; services.log says why")
    return int(answer)


class Server:
    """One thread, nothing but imports done: what is forked is a clean process."""

    def __init__(self, path: Path, modules: Sequence[str]) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(_BACKLOG)
        self._parent = os.getppid()
        self._mains: dict[str, Callable[[], Any]] = {}
        for module in modules:
            with contextlib.suppress(ImportError):  # it would not start either: that is for its own log
                self._mains[module] = importlib.import_module(f"{module}.__main__").main

    def run(self) -> NoReturn:
        """Serve until killed."""
        gc.collect()
        gc.freeze()  # or the children's collections would copy every page
        while True:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(_ADOPTED_S)
                try:
                    self._serve(connection)
                except (OSError, ValueError, KeyError) as error:
                    _LOG.warning("a request was refused: %s", error)

    def _serve(self, connection: socket.socket) -> None:
        text, descriptors, _, _ = socket.recv_fds(connection, _REQUEST_MAX, 2)
        try:
            request = json.loads(text)
            if len(descriptors) != 2 or request["module"] not in self._mains:
                raise ValueError(f"{len(descriptors)} descriptors for module {request['module']!r}")
            between = os.fork()
            if between == 0:
                # Its end makes its child an orphan, whom the supervisor adopts.
                if os.fork() == 0:
                    self._become(connection, request, descriptors)
                os._exit(0)
            os.waitpid(between, 0)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _become(
        self, connection: socket.socket, request: dict[str, Any], descriptors: Sequence[int]
    ) -> NoReturn:
        status = 1
        try:
            deadline = time.monotonic() + _ADOPTED_S
            while os.getppid() != self._parent:
                if time.monotonic() > deadline:
                    os._exit(1)
                time.sleep(0.001)
            libc = ctypes.CDLL(None)
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != self._parent:  # it died before prctl took hold
                os._exit(1)
            libc.prctl(_PR_SET_NAME, request["name"].encode()[:15], 0, 0, 0)
            os.setsid()
            connection.send(str(os.getpid()).encode())
            connection.close()
            self._listener.close()
            for target, source in ((0, descriptors[0]), (1, descriptors[1]), (2, descriptors[1])):
                os.dup2(source, target)
            for descriptor in descriptors:
                os.close(descriptor)
            os.environ.clear()
            os.environ.update(request["environment"])
            sys.argv = [request["module"], *request["arguments"]]
            logging.getLogger().handlers.clear()
            self._mains[request["module"]]()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            logging.getLogger("janus.service").exception("ended with an unexpected error; please report it")
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            # As an exec would have left nothing behind of the server's, neither does this.
            os._exit(status)


def main() -> NoReturn:
    """Entry of the process."""
    parser = argparse.ArgumentParser(description="Forks the services of one local mesh.")
    parser.add_argument("--socket", type=Path, required=True, help="unix socket to listen at")
    parser.add_argument(
        "--ready", type=int, required=True, help="descriptor that is told when all is imported"
    )
    parser.add_argument("modules", nargs="+", help="packages with a __main__ to import")
    arguments = parser.parse_args()
    setup_logging("info")
    server = Server(arguments.socket, arguments.modules)
    os.write(arguments.ready, b"1")
    os.close(arguments.ready)
    server.run()


if __name__ == "__main__":
    main()
