"""Start a supervisor that outlives this command."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import IO, Any

from janus_runtime.errors import FailedPrecondition

_STOP_S = 30.0


def start_daemon(arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``janus <arguments>`` (``up --daemon --json ...``) in a session of its own until it says it is ready.

    Returns what it printed. Its progress is relayed to stderr; Ctrl-C meanwhile stops it. FailedPrecondition
    when it ends first (it has said why).
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "janus_cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None
    relay = threading.Thread(target=_relay, args=(process.stderr,), daemon=True)
    relay.start()
    with _stopped_on_interrupt(process):
        line = process.stdout.readline()
    if not line:
        status = process.wait(_STOP_S)
        relay.join(5.0)
        raise FailedPrecondition(
            f"the mesh did not start (supervisor's exit status {status})",
            next_step="The lines above say why.",
        )
    mesh: dict[str, Any] = json.loads(line)
    relay.join(5.0)
    process.returncode = 0  # it is not ours to wait for any more
    return mesh


def _relay(stream: IO[str]) -> None:
    for line in stream:
        sys.stderr.write(line)
        sys.stderr.flush()


@contextlib.contextmanager
def _stopped_on_interrupt(process: subprocess.Popen[str]) -> Iterator[None]:
    def on_signal(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, on_signal)
    try:
        yield
    except KeyboardInterrupt:
        process.terminate()
        process.wait(_STOP_S)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
