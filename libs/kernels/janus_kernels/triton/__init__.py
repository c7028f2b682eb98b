"""The ops in Triton, for GPUs. On CPU tensors its interpreter runs the same kernels, for tests.

Importing this package imports neither torch nor Triton; :func:`load` imports both.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

KERNELS = ("tiles", "dense", "attention", "experts", "routing", "sampling", "scheduling")
"""Modules with kernels."""


class _State:
    loaded = False
    interpreted = False


def _wants_interpreter() -> bool:
    """Whether kernels are to be interpreted: asked for, or there is no GPU to compile for."""
    asked = os.environ.get("TRITON_INTERPRET")
    if asked is not None:
        return asked.lower() in ("1", "true", "on", "yes", "y")
    import torch

    return not torch.cuda.is_available()


def unavailable() -> str | None:
    """Why the Triton backend cannot run in this process; None when it can."""
    if _State.loaded:
        return None
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'janus-mesh-kernels[triton]'; torch for CUDA brings it along)"
    standard = sys.modules.get("triton.language.standard")
    if standard is not None and hasattr(standard.sum, "rewriter") != _wants_interpreter():
        return (
            "something imported triton before, for compiling where it must be interpreted, or the reverse; "
            "set TRITON_INTERPRET to 1 (no GPU) or 0 before the process starts"
        )
    return None


def interpreted() -> bool:
    """Whether :func:`load` made the kernels for the interpreter: then they take CPU tensors."""
    return _State.interpreted


def load() -> None:
    """Import Triton and the kernels, to be compiled or to be interpreted.

    Triton decides when its functions and ours are defined, by TRITON_INTERPRET: it is set for that moment and
    put back, so that nothing else in the process, nor a child, inherits it. Raises RuntimeError.
    """
    if _State.loaded:
        return
    reason = unavailable()
    if reason is not None:
        raise RuntimeError(f"the Triton backend cannot run here: {reason}")
    before, interpreted = os.environ.get("TRITON_INTERPRET"), _wants_interpreter()
    os.environ["TRITON_INTERPRET"] = "1" if interpreted else "0"
    try:
        for name in KERNELS:
            importlib.import_module(f"janus_kernels.triton.{name}")
        if interpreted:
            importlib.import_module("triton.experimental.gluon")  # else imported at the first call
            importlib.import_module("janus_kernels.triton.interpreter").correct()
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
    _State.loaded, _State.interpreted = True, interpreted
