"""What a service waits for while it starts, said at once and again every few seconds: never a silent hang."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO


class Startup:
    """Writes ``[waiting] <worker_id>: <what> (<seconds>s)`` while something lasts, then ``[ready]``.

    A daemon thread repeats the line, so that it appears even when the event loop is blocked; it ends with
    the wait. Safe to call from any thread.
    """

    def __init__(
        self, role: str, worker_id: str, *, stream: TextIO | None = None, every_s: float = 5.0
    ) -> None:
        self.role = role
        self.worker_id = worker_id
        self._stream = stream
        self._every_s = every_s
        self._wake = threading.Condition()
        self._what = ""
        self._since = 0.0
        self._began = time.monotonic()
        self._thread: threading.Thread | None = None

    @property
    def what(self) -> str:
        """What is being waited for; empty when nothing."""
        return self._what

    def waiting(self, what: str) -> None:
        """Say that the service waits for ``what`` from now on (the same text again changes nothing)."""
        with self._wake:
            if what == self._what:
                return
            self._what, self._since = what, time.monotonic()
            self._line(f"[waiting] {self.worker_id}: {what} (0s)")
            self._wake.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._repeat, name="janus-startup", daemon=True)
                self._thread.start()

    def done(self) -> None:
        """Nothing is waited for any more."""
        with self._wake:
            self._what = ""
            self._wake.notify_all()

    def ready(self, what: str) -> None:
        """The service is ready; ``what`` tells where and for what."""
        self.done()
        self._line(f"[ready] {self.worker_id}: {what} ({time.monotonic() - self._began:.1f}s)")

    def _repeat(self) -> None:
        with self._wake:
            while self._what:
                what, since = self._what, self._since
                self._wake.wait(self._every_s)
                if self._what == what and self._since == since:
                    self._line(f"[waiting] {self.worker_id}: {what} ({time.monotonic() - since:.0f}s)")
            self._thread = None

    def _line(self, text: str) -> None:
        print(text, file=self._stream or sys.stderr, flush=True)
