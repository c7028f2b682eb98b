"""The calibrated model says of the published configurations what was published, nearly, and keeps their shape."""

from __future__ import annotations

import pytest
from janus_scaling import MODELS, PROFILES, Exchange, PerformanceModel
from janus_simulator.paper import CHOSEN, CONTEXT, Published, calibrate


@pytest.mark.parametrize("point", CHOSEN, ids=lambda p: f"{p.n_a}A{p.n_e}E-{p.batch}")
def test_published_configurations(point: Published) -> None:
    model = MODELS["deepseek-v2"]
    performance = PerformanceModel(
        model=model, coefficients=calibrate().coefficients(model),
        exchange=Exchange(row_bytes=model.row_bytes, top_k=model.top_k, hardware=PROFILES["h100"]),
    )  # fmt: skip
    tpot = performance.step(point.n_a, point.n_e, point.batch, CONTEXT, point.a_max).total
    assert tpot == pytest.approx(point.tpot_s, rel=0.05)


def test_what_was_fitted_is_uncertain_but_no_less_than_the_hardware_needs() -> None:
    made = calibrate()
    assert all(e.std > 0 for e in made.fit.coefficients.values())
    for model in MODELS.values():
        c = made.coefficients(model)
        assert c.alpha > 0 and c.beta == pytest.approx(
            model.expert_bytes / PROFILES["h100"].effective_bandwidth
        )
