"""The compiled kernels, or None where they were not built: then everything runs in plain torch and numpy."""

from __future__ import annotations

import importlib
import logging
import os
from types import ModuleType

log = logging.getLogger("janus.kernels")


def _load() -> ModuleType | None:
    chosen = os.environ.get("JANUS_KERNELS", "").lower()
    if chosen in ("torch", "off"):
        return None
    try:
        native = importlib.import_module("janus_kernels._native")
    except ImportError as error:
        log.warning(
            "compiled kernels are not available (%s): using plain torch, many times slower. "
            "Build them with `pip install libs/kernels` (needs a C++17 compiler).", error,
        )  # fmt: skip
        return None
    if chosen not in ("", "triton"):
        native.use_instruction_set(chosen)
    return native


NATIVE = _load()
"""The extension module. ``JANUS_KERNELS=torch`` leaves it out; ``avx512``, ``avx2`` or ``portable`` choose an
instruction set; ``triton`` (see :mod:`janus_kernels.ops.table`) keeps it for schedules."""


def set_num_threads(threads: int) -> None:
    """Threads of one process's kernels, the caller's included; 1..1024. Idle ones sleep."""
    if NATIVE is not None:
        NATIVE.set_num_threads(threads)


def describe() -> str:
    """What computes here, for start-up messages."""
    return "torch" if NATIVE is None else f"{NATIVE.instruction_set()}, {NATIVE.num_threads()} threads"
