"""Where a worker computes: `cpu` or `cuda[:index]`, checked before anything is loaded."""

from __future__ import annotations

import re

import torch

from janus_models.errors import ConfigError

_NAME = re.compile(r"cpu|cuda(:\d{1,3})?")


def checked_device(name: str, *, member: int, quantize: str | None = None) -> str:
    """The device's full name, ``cpu`` or ``cuda:index``, once torch can compute on it; a GPU is the current one then.

    ``cuda`` alone deals out the GPUs that this process sees by ``member``, the worker's number: workers that start
    together have consecutive ones.

    Raises ConfigError, with what torch says, for a name of another form, where torch or the driver has no CUDA,
    for an index that this process does not see, and for weights that no kernel for GPUs takes.
    """
    if not _NAME.fullmatch(name):
        raise _error(name, "unknown device", "cpu, cuda or cuda:INDEX")
    if name == "cpu":
        return name
    if torch.version.cuda is None:
        raise _error(
            name,
            f"torch {torch.__version__} is built without CUDA",
            "cpu",
            "Install torch for CUDA (docs/gpu.md).",
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise _error(
            name, "torch finds no GPU", "cpu",
            "Look whether `nvidia-smi` lists one, and whether this process may see it (CUDA_VISIBLE_DEVICES).",
        )  # fmt: skip
    index = int(name.partition(":")[2] or member % count)
    if index >= count:
        raise _error(name, f"torch sees {count} GPUs", f"cuda:0..cuda:{count - 1}")
    if quantize:
        raise ConfigError(
            "no kernel for GPUs takes it", field="--expert-dtype or --attention-dtype", value=quantize,
            allowed="float32, bfloat16, float16", next_step="Leave them out, or compute on cpu.",
        )  # fmt: skip
    torch.cuda.set_device(index)
    return f"cuda:{index}"


def _error(name: str, why: str, allowed: str, next_step: str = "") -> ConfigError:
    return ConfigError(
        why, field="--device", value=name, allowed=allowed, next_step=next_step or f"Use {allowed}."
    )
