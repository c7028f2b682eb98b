"""What the supervisor says while it starts and watches a mesh: a live table on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from janus_cli.readiness import Waiting

_REPEAT_S = 10.0


def err_console() -> Console:
    """Where progress goes; standard output is for results."""
    return Console(stderr=True, highlight=False)


def out_console() -> Console:
    """For tables on standard output; wide enough to be cut nowhere when it is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    return console


class LineReporter:
    """A line for each change, and again every ten seconds while nothing changes."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float]] = {}
        self._began = time.monotonic()

    def waiting(self, waiting: Sequence[Waiting], ready: int, total: int) -> None:
        now = time.monotonic()
        for each in waiting:
            what, since = self._last.get(each.worker_id, ("", 0.0))
            if each.what != what or now - since > _REPEAT_S:
                self._last[each.worker_id] = (each.what, now)
                self.say(f"[waiting] {each.worker_id}: {each.what} ({now - self._began:.0f}s)")
        there = self._last.keys() - {each.worker_id for each in waiting}
        for worker_id in sorted(there):
            del self._last[worker_id]
            self.say(f"[ready] {worker_id} ({now - self._began:.1f}s)")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class LiveReporter:
    """A table of what each service waits for, redrawn in place, gone when the mesh is whole."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._spinner = Spinner("dots")
        self._began = time.monotonic()

    def waiting(self, waiting: Sequence[Waiting], ready: int, total: int) -> None:
        if not waiting:
            self._end()
            return
        if self._live is None:
            self._live = Live(console=self._console, transient=True, auto_refresh=False)
            self._live.start()
        title = Text(
            f" starting the mesh: {ready} of {total} services ready, {time.monotonic() - self._began:.0f} s"
        )
        self._spinner.text = title
        rows = Table.grid(padding=(0, 2))
        for each in waiting:
            rows.add_row(Text(f"  {each.worker_id}", style="cyan"), Text(each.what))
        self._live.update(Group(self._spinner, rows), refresh=True)

    def say(self, text: str) -> None:
        self._console.print(Text(text))

    def _end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()


def reporter() -> LineReporter | LiveReporter:
    """The one that suits standard error."""
    console = err_console()
    return LiveReporter(console) if console.is_terminal else LineReporter()
