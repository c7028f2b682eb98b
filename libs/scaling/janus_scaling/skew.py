"""Synthetic routing, where none was recorded: popular experts, and topics that favour experts of their own.

An expert's popularity is a power law of its rank with exponent ``skew``; a topic multiplies it by a log-normal
factor of width ``topic``; a share ``idle`` of the experts is hardly ever chosen.
Tokens pick k experts without replacement (Gumbel top-k of the log weights).
"""

from __future__ import annotations

import numpy as np
from janus_placement import LayerRouting

from janus_scaling.checks import ScalingError, number, whole

TOPICS = 6
IDLE = 8.0
"""Log weight that idle experts lack."""


def synthetic_layers(
    num_experts: int, top_k: int, *, layers: int = 2, skew: float = 0.7, topic: float = 1.0, idle: float = 0.0,
    tokens: int = 4096, seed: int = 0,
) -> list[LayerRouting]:  # fmt: skip
    """Routing of some layers; each has popular experts of its own. Raises ScalingError."""
    whole("num_experts", num_experts, 1, 1024)
    whole("top_k", top_k, 1, num_experts)
    whole("layers", layers, 1, 1024)
    whole("tokens", tokens, 1, 1 << 20)
    number("skew", skew, 0, 10)
    number("topic", topic, 0, 10)
    number("idle", idle, 0, 1)
    if num_experts - int(idle * num_experts) < top_k:
        raise ScalingError("idle", idle, f"shares that leave {top_k} of {num_experts} experts")
    made = []
    for layer in range(layers):
        rng = np.random.default_rng([seed, layer])
        rank = rng.permutation(num_experts)
        popular = -skew * np.log(rank + 1.0)
        popular[rank >= num_experts - int(idle * num_experts)] -= IDLE
        taste = popular + topic * rng.standard_normal((TOPICS, num_experts))
        scores = taste[rng.integers(0, TOPICS, tokens)] + rng.gumbel(size=(tokens, num_experts))
        chosen = np.argpartition(-scores, top_k - 1, axis=1)[:, :top_k]
        made.append(LayerRouting(chosen.astype(np.int32), num_experts))
    return made
