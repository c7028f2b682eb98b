"""Problems for the scaling tests: DeepSeek-V2 on H100s, with a_max of a simple kind."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from janus_scaling import (
    MODELS,
    PROFILES,
    Bounds,
    Exchange,
    PerformanceModel,
    Problem,
    Target,
    roofline,
)

H100 = PROFILES["h100"]
DEEPSEEK = MODELS["deepseek-v2"]


def a_max(n_e: int, tokens: float) -> float:
    """As if routing were uniform and balance perfect."""
    return float(160 * (1 - (1 - 6 / 160) ** tokens) / n_e)


def problem(tpot_ms: float = 50.0, **changes: Any) -> Problem:
    """Sizes 1..8 by 6..16."""
    exchange = Exchange(row_bytes=DEEPSEEK.row_bytes, top_k=6, hardware=H100)
    performance = PerformanceModel(
        model=DEEPSEEK, coefficients=roofline(DEEPSEEK, H100, H100), exchange=exchange
    )
    made = Problem(
        performance=performance, a_max=a_max, attention=H100, moe=H100, slots=27,
        target=Target(tpot_s=tpot_ms / 1e3), bounds=Bounds(max_attention=8, max_moe=16),
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def random_problem(rng: np.random.Generator) -> Problem:
    """Random bounds, objective, prices and exchange."""
    low_a, low_e = int(rng.integers(1, 4)), int(rng.integers(1, 12))
    bounds = Bounds(
        min_attention=low_a, max_attention=low_a + int(rng.integers(0, 6)), min_moe=low_e,
        max_moe=max(low_e, 14) + int(rng.integers(0, 6)), spare_attention=int(rng.integers(0, 2)),
        spare_moe=int(rng.integers(0, 2)),
    )  # fmt: skip
    exchange = Exchange(
        row_bytes=DEEPSEEK.row_bytes, top_k=6, hardware=H100, phases=int(rng.integers(1, 3)),
        gating=("moe", "attention")[int(rng.integers(0, 2))],
    )  # fmt: skip
    base = problem(float(rng.uniform(15, 60)))
    return dataclasses.replace(
        base, bounds=bounds, performance=dataclasses.replace(base.performance, exchange=exchange),
        attention=dataclasses.replace(H100, price=float(rng.uniform(0.5, 3))),
        moe=dataclasses.replace(H100, price=float(rng.uniform(0.5, 3))),
    )  # fmt: skip
