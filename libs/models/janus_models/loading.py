"""Weights of the attention side as they are served: in one dtype, on one device, matrices quantised where asked for."""

from __future__ import annotations

import torch
from janus_kernels.ops import quantize

from janus_models.errors import ConfigError
from janus_models.layers.base import Matrix
from janus_models.weights import Weights

_GROUP = 32  # int4 weights that share a scale


class Loader:
    """See :class:`janus_models.layers.base.Load`."""

    def __init__(self, weights: Weights, dtype: torch.dtype, device: str, kind: str | None) -> None:
        """``kind``: ``int8``, ``int4`` (in groups of 32) or None, of matrices."""
        self._weights, self._dtype, self._device, self._kind = weights, dtype, device, kind

    def __call__(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A view on the file where it has the dtype."""
        return self._weights.tensor(name, shape).to(device=self._device, dtype=self._dtype)

    def matrix(self, name: str, shape: tuple[int, ...]) -> Matrix:
        """Raises ConfigError for rows that int4 cannot group."""
        if self._kind is None:
            return self(name, shape)
        if self._kind == "int4" and shape[1] % _GROUP:
            raise ConfigError(
                f"int4 needs rows that are a multiple of {_GROUP} long; those of {name} are {shape[1]}",
                field="--attention-dtype", value="int4", allowed="same, int8",
                next_step="Use int8.",
            )  # fmt: skip
        return quantize(self._weights.tensor(name, shape), self._kind, _GROUP)
