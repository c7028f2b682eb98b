"""The paper's published figures (arXiv 2512.13525v3), and a model of its testbed calibrated on four of them.

What is fitted: the time per layer that the four published DeepSeek-V2 configurations imply (TPOT = B / (tokens/s/GPU
x GPUs)), less what the H100 profile predicts of reading experts and of the exchange, as a constant, a time per token
of an attention worker and a time per token of all of them. Three numbers from four points: what they say of these
points is no evidence, what they say of anything else is a prediction.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from janus_scaling import MODELS, PROFILES, Coefficients, Exchange, ModelShape, roofline
from janus_scaling.fit import Fit, fit_linear

CONTEXT = 16 + 256 / 2
"""Mean cached tokens of a stream: the paper's lengths."""

A_MAX = {
    (6, 16): 8.46, (6, 64): 15.66, (6, 256): 19.98, (6, 512): 20.47, (12, 16): 5.84, (12, 64): 10.82,
    (16, 256): 10.78, (16, 512): 10.95,
}  # fmt: skip
"""(n_e, B) -> its estimate of a_max, DeepSeek-V2 on ShareGPT."""


@dataclass(frozen=True, slots=True)
class Published:
    """A configuration that the paper's solver chose."""

    n_a: int
    n_e: int
    batch: int
    tokens_per_s_per_gpu: float
    a_max: float
    """From A_MAX; of 5A10E interpolated in 1 / n_e between 6 and 16."""

    @property
    def tpot_s(self) -> float:
        """What its throughput implies."""
        return self.batch / (self.tokens_per_s_per_gpu * (self.n_a + self.n_e))


CHOSEN = (
    Published(1, 6, 64, 99, 15.66),
    Published(5, 10, 256, 170, 14.09),
    Published(2, 6, 256, 240, 19.98),
    Published(4, 6, 512, 340, 20.47),
)
RATIOS = {"sglang": 4.7, "megascale": 2.2, "xdeepserve": 3.3}
"""Largest per-GPU throughput over each baseline's, TPOT objectives of 150 and 200 ms."""
SAVED = {"sglang": 0.39, "megascale": 0.16}
"""Share of GPU-hours saved over 24 h."""
SCALED_DS_2 = (0.41, 0.50)
"""TPOT below MegaScale-Infer's at 16 MoE instances."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was fitted, in seconds per layer."""

    fit: Fit
    fixed: float
    per_token: float
    """Per token of one attention worker."""
    per_token_of_all: float

    def coefficients(self, model: ModelShape) -> Coefficients:
        """For any model on H100s: attention's time per token scales with the weights it goes through. The constant
        counts for neither side: it is kernel starts and waiting for each other."""
        h100, measured = PROFILES["h100"], MODELS["deepseek-v2"]
        base, of = roofline(model, h100, h100), roofline(measured, h100, h100)
        return dataclasses.replace(
            base, comm_fixed=self.fixed, alpha=max(base.alpha, self.per_token * base.alpha / of.alpha),
            comm_token=self.per_token_of_all * model.hidden / measured.hidden,
        )  # fmt: skip


def unexplained() -> list[tuple[Published, float]]:
    """CHOSEN, and seconds per layer of each that no reading of experts, context or exchange on H100s explains."""
    model, h100 = MODELS["deepseek-v2"], PROFILES["h100"]
    c = roofline(model, h100, h100)
    exchange = Exchange(row_bytes=model.row_bytes, top_k=model.top_k, hardware=h100)
    found = []
    for p in CHOSEN:
        known = model.moe_layers * (c.beta * p.a_max + exchange.seconds(p.n_a, p.n_e, p.batch)) + c.c_step
        known += model.layers * c.c_kv * p.batch / p.n_a * CONTEXT
        found.append((p, (p.tpot_s - known) / model.layers))
    return found


def calibrate() -> Calibration:
    """From CHOSEN."""
    names = ("fixed", "per_token", "per_token_of_all")
    points = unexplained()
    terms = [[1.0, p.batch / p.n_a, float(p.batch)] for p, _ in points]
    fit = fit_linear(names, terms, [seconds for _, seconds in points])
    return Calibration(fit, *(fit.coefficients[name].value for name in names))
