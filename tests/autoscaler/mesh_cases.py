"""Reports of workers as a mesh of a known performance model would make them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from janus_runtime.coordination import StatsSample
from janus_scaling import PROFILES, Coefficients, Exchange, ModelShape, PerformanceModel

TINY = ModelShape(
    name="tiny", layers=4, moe_layers=3, hidden=64, num_experts=32, top_k=2, expert_hidden=48,
    attention_weights=10_000, shared_weights=0, dense_weights=0, vocab=512, cached_values=64, score_flops=256.0,
)  # fmt: skip
CPU = PROFILES["cpu"]
TRUE = Coefficients(c_a=0.0, alpha=5e-4, c_kv=1e-6, beta=2e-3, c_e=5e-4, c_step=2e-3, comm_fixed=1e-3)


def truth(shared_cores: float = math.inf) -> PerformanceModel:
    """What the mesh of the reports really takes."""
    exchange = Exchange(row_bytes=TINY.row_bytes, top_k=2, hardware=CPU, phases=1)
    return PerformanceModel(model=TINY, coefficients=TRUE, exchange=exchange, shared_cores=shared_cores)


def uniform_a_max(n_e: int, tokens: float) -> float:
    """Routing without favourites, perfectly balanced."""
    return float(32 * (1 - (1 - 2 / 32) ** tokens) / n_e)


class Reports:
    """Cumulative counters of a mesh; :meth:`run` lets it run."""

    def __init__(self, seed: int = 0, noise: float = 0.03) -> None:
        self.now = 1_000_000.0
        self.samples: dict[str, list[StatsSample]] = defaultdict(list)
        self._counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._rng, self._noise = np.random.default_rng(seed), noise
        self.epoch = 1

    def run(
        self, model: PerformanceModel, n_a: int, n_e: int, batch: float, seconds: int, *, context: float = 60.0,
        arrivals: float = 0.0, length: float = 50.0,
    ) -> None:  # fmt: skip
        """``seconds`` of ``batch`` decoding streams over ``n_a`` x ``n_e`` workers, a report a second each."""
        for _ in range(seconds):
            time = model.step(n_a, n_e, batch, context, uniform_a_max(n_e, batch))
            noisy = lambda value: value * float(np.exp(self._noise * self._rng.standard_normal()))  # noqa: E731
            attention, moe, comm = noisy(time.attention), noisy(time.moe), noisy(time.comm)
            steps = 1.0 / (attention + moe + comm + time.once)
            self.now += 1.0
            for i in range(n_a):
                mine = batch / n_a
                self._grow(
                    f"attention-{i}", steps=steps, attention_seconds=steps * attention, moe_seconds=steps * moe,
                    exchange_seconds=steps * (moe + comm), step_seconds=steps * (attention + moe + comm),
                    prepare_seconds=steps * time.once / 2, deliver_seconds=steps * time.once / 2,
                    step_tokens=steps * mine, context_tokens=steps * mine * context, generated_tokens=steps * mine,
                    prompt_tokens=0.0, requests=arrivals / n_a, resumed_requests=0.0,
                    finished_requests=arrivals / n_a, finished_tokens=arrivals * length / n_a,
                )  # fmt: skip
            for i in range(n_e):
                passes = steps * TINY.moe_layers
                self._grow(
                    f"moe-{i}", steps=steps, layer_passes=passes, tokens=passes * batch, moe_seconds=steps * moe,
                    a_max_sum=passes * uniform_a_max(n_e, batch),
                )  # fmt: skip

    def _grow(self, worker: str, **by: float) -> None:
        counts = self._counts[worker]
        for name, value in by.items():
            counts[name] += value
        self.samples[worker].append(StatsSample(time_s=self.now, values={**counts, "epoch": self.epoch}))

    def side(self, role: str) -> dict[str, Sequence[StatsSample]]:
        """Of the workers of a role."""
        return {name: s for name, s in self.samples.items() if name.startswith(role)}

    def clear(self) -> None:
        """Forget the samples; counters go on."""
        for samples in self.samples.values():
            del samples[:-1]
