"""A GPU as far as it can be had without one: tensors that say `cuda:0`, compute on the CPU, and refuse what CUDA does.

::

    with use_backend("torch"), PretendedGpu():
        x = torch.ones(3, device="cuda:0")      # x.device is cuda:0
        x + torch.ones(3)                       # RuntimeError: on two devices
        x.numpy()                               # TypeError: copy it to the host first

It shows that code moves every tensor where it must be, and back. It shows nothing of kernels, speed or memory. One
thread at a time, like every mode of torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
_MOVES = {"to", "cpu", "cuda", "copy_", "__get__", "__set__", "type"}
_HOST_ONLY = {"numpy", "__array__", "data_ptr", "as_subclass", "share_memory_"}


class GpuTensor(torch.Tensor):
    """A tensor of :class:`PretendedGpu`."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class PretendedGpu(TorchFunctionMode):
    """While it is entered, `cuda` and `cuda:0` are devices in this thread."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = any(isinstance(tensor, GpuTensor) for tensor in tensors)
    if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
        return DEVICE if ours else _plain(func, args, kwargs)
    if func is torch.device:
        return func(*args, **kwargs)
    name = func.__name__
    if ours and name in _HOST_ONLY:
        raise TypeError(f"{name} of a tensor on {DEVICE}: copy it to the host first")
    if ours and name not in _MOVES and any(type(t) is torch.Tensor and t.dim() for t in tensors):
        raise RuntimeError(f"{name}: expected all tensors on one device, found {DEVICE} and cpu")
    if name in ("cpu", "cuda"):
        target: bool | None = name == "cuda"
    else:
        target, args, kwargs = _target(args, kwargs)
    result = _plain(func, args, kwargs)
    if target is None:
        target = isinstance(args[0], GpuTensor) if name in ("to", "copy_") else ours
    return tree_map(_to_gpu, result) if target else result


def _target(args: Any, kwargs: dict[str, Any]) -> tuple[bool | None, Any, dict[str, Any]]:
    """Whether the arguments ask for the GPU (None: they name no device), and the arguments with the host instead."""
    named = list(_devices((*args, *kwargs.values())))
    if not named:
        return None, args, kwargs
    on_gpu = torch.device(named[0]).type == "cuda"

    def host(value: Any) -> Any:
        return "cpu" if list(_devices((value,))) else value

    return on_gpu, tuple(host(a) for a in args), {k: host(v) for k, v in kwargs.items()}


def _devices(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, torch.device) or (
            isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda")
        ):
            yield value


def _plain(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        args, kwargs = tree_map(_to_host, (args, kwargs))
        return func(*args, **kwargs)


def _to_host(value: Any) -> Any:
    return value.as_subclass(torch.Tensor) if isinstance(value, GpuTensor) else value


def _to_gpu(value: Any) -> Any:
    return value.as_subclass(GpuTensor) if isinstance(value, torch.Tensor) else value
