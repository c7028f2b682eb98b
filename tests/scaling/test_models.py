"""Profiles, shapes, the performance model, the exchange, the fit, and the a_max estimator."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from janus_kernels import ReplicaLayout, schedule
from janus_scaling import (
    MODELS,
    PROFILES,
    AMaxEstimator,
    Coefficients,
    Exchange,
    HardwareProfile,
    PerformanceModel,
    ScalingError,
    bound,
    profile,
    roofline,
    shape,
    synthetic_layers,
)
from janus_scaling.fit import fit_attention, fit_comm, fit_linear, fit_moe
from janus_scaling.search import exchange_seconds
from scaling_cases import DEEPSEEK, H100


def test_published_sizes() -> None:
    """Parameters of whole models, as published: 236 B and 235 B."""
    for name, billions in (("deepseek-v2", 236), ("qwen3-235b", 235)):
        m = MODELS[name]
        total = m.attention_bytes / m.weight_bytes + m.num_experts * m.expert_weights * m.moe_layers
        assert total / 1e9 == pytest.approx(billions, rel=0.01)
    assert DEEPSEEK.slots(H100.usable_bytes) == 27, "the paper's C"


def test_shape_of_a_checkpoint(tmp_path: Path) -> None:
    raw = {
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 94,
        "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 128, "moe_intermediate_size": 1536,
        "intermediate_size": 12288, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(raw))
    found = shape(str(tmp_path))
    assert dataclasses.replace(found, name="qwen3-235b") == MODELS["qwen3-235b"]
    with pytest.raises(ScalingError, match=r"model = 'gpt-9'; allowed: deepseek-v2"):
        shape("gpt-9")


def test_bad_profiles_are_named() -> None:
    with pytest.raises(ScalingError, match=r"h100.flops = 0"):
        dataclasses.replace(H100, flops=0)
    with pytest.raises(ScalingError, match="profile = 'b200'; allowed: h100"):
        profile("b200")


@pytest.mark.parametrize("name", PROFILES)
def test_roofline(name: str) -> None:
    hw = PROFILES[name]
    c = roofline(DEEPSEEK, hw, hw)
    assert c.beta == pytest.approx(DEEPSEEK.expert_bytes / hw.effective_bandwidth)
    # An expert is bound by arithmetic from FLOPs over bandwidth tokens on (two bytes a weight: as many FLOPs).
    assert c.beta / c.kappa == pytest.approx(hw.effective_flops / hw.effective_bandwidth)


@pytest.mark.parametrize("seed", range(20))
def test_a_step_term_by_term(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c = Coefficients(**{f.name: float(rng.uniform(0, 1e-3)) for f in dataclasses.fields(Coefficients)})
    x = Exchange(row_bytes=10240, top_k=6, hardware=H100)
    n_a, n_e, batch, prompt = (int(v) for v in rng.integers(1, 40, 4))
    t = PerformanceModel(model=DEEPSEEK, coefficients=c, exchange=x).step(
        n_a, n_e, batch, 300, 5.5, prompt=prompt
    )
    b = (batch + prompt) / n_a
    assert t.attention == pytest.approx(60 * max(c.c_a, c.alpha * b + c.c_kv * b * 300))
    assert t.moe == pytest.approx(59 * (max(c.beta * 5.5, c.kappa * (batch + prompt) * 6 / n_e) + c.c_e))
    modelled = x.seconds(n_a, n_e, batch + prompt)
    assert t.comm == pytest.approx(
        59 * (c.comm_scale * modelled + c.comm_fixed + c.comm_token * (batch + prompt))
    )
    assert t.total == pytest.approx(t.attention + t.moe + t.comm + c.c_step)


@pytest.mark.parametrize("gating", ["moe", "attention"])
@pytest.mark.parametrize("phases", [1, 2])
def test_exchange(gating: str, phases: int) -> None:
    x = Exchange(row_bytes=10240, top_k=6, hardware=H100, gating=gating, phases=phases)
    for n_a, n_e in ((1, 6), (2, 6), (4, 16), (12, 24)):
        times = [x.seconds(n_a, n_e, tokens) for tokens in (0, 64, 256, 1024)]
        assert times == sorted(times) and times[0] > 0
    assert x.messages(1, 6) == 0, "one node"
    assert x.messages(8, 16) == (128 if phases == 1 else 2)


def test_two_phases_beat_one_across_nodes_and_the_router_there_beats_here() -> None:
    def seconds(**how: object) -> float:
        return Exchange(row_bytes=10240, top_k=6, hardware=H100, **how).seconds(8, 16, 64)  # type: ignore[arg-type]

    assert seconds(phases=2) < seconds(phases=1)
    assert seconds(phases=2, gating="moe") < seconds(phases=2, gating="attention")


@pytest.mark.parametrize("seed", range(8))
def test_fit_finds_the_coefficients_under_outliers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = 120
    noise = rng.normal(1, 0.02, n) * np.where(rng.random(n) < 0.08, rng.uniform(2, 6, n), 1)
    b, s, a = rng.uniform(1, 256, n), rng.uniform(50, 4000, n), rng.uniform(1, 27, n)
    attention = np.maximum(150e-6, 2e-6 * b + 1e-9 * b * s)
    for fit, truth in (
        (fit_attention(b, s, attention * noise), {"c_a": 150e-6, "alpha": 2e-6, "c_kv": 1e-9}),
        (fit_moe(a, (20e-6 * a + 40e-6) * noise), {"beta": 20e-6, "c_e": 40e-6}),
    ):
        for name, value in truth.items():
            got = fit.coefficients[name]
            assert got.value == pytest.approx(value, rel=0.1), name
            assert abs(got.value - value) < 6 * got.std, f"{name}: {got} is no honest uncertainty"
        assert fit.relative_error < 0.05


def test_what_was_not_measured_is_uncertain() -> None:
    fit = fit_moe(np.full(20, 8.0), np.full(20, 3e-4))
    assert all(math.isinf(e.std) for e in fit.coefficients.values())
    fit = fit_attention(np.linspace(1, 4, 20), np.full(20, 100.0), np.full(20, 2e-4))
    assert fit.coefficients["c_a"].value == pytest.approx(2e-4, rel=0.01)
    assert math.isinf(fit.coefficients["alpha"].std)


def test_fit_of_the_exchange_and_any_linear_model() -> None:
    rng = np.random.default_rng(0)
    m, tokens = rng.uniform(1e-5, 1e-3, 60), rng.uniform(1, 512, 60)
    fit = fit_comm(m, tokens, 1.5 * m + 2e-4 + 1e-6 * tokens)
    got = {name: e.value for name, e in fit.coefficients.items()}
    assert got == pytest.approx({"comm_scale": 1.5, "comm_fixed": 2e-4, "comm_token": 1e-6}, rel=0.02)
    line = fit_linear(["a", "b"], np.stack([m, tokens], 1), 3 * m + 1e-5 * tokens)
    assert line.coefficients["a"].value == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize(
    ("seconds", "match"),
    [([1.0, -1.0], r"seconds\[1\] = -1"), ([1.0, math.nan], "nan"), ([1.0], "seconds = 1 values")],
)
def test_bad_measurements_are_named(seconds: list[float], match: str) -> None:
    with pytest.raises(ScalingError, match=match):
        fit_moe([1.0, 2.0], seconds)


@pytest.mark.parametrize("slots", [8, 24])
@pytest.mark.parametrize("policy", ["optimal", "aebs", "token-balanced", "random"])
def test_estimator_is_the_mean_of_schedules(policy: str, slots: int) -> None:
    """Against scheduling tokens of the same samples one batch at a time, on draws of its own."""
    layers = synthetic_layers(24, 3, layers=2, tokens=600, seed=1)
    estimator = AMaxEstimator(layers, slots, policy=policy, batches=256, largest=64)
    rng = np.random.default_rng(9)
    for n_e, batch in ((3, 4), (5, 16)):
        peaks = []
        for i, routing in enumerate(layers):
            layout = ReplicaLayout.from_placement(estimator.placement(i, n_e), 24)
            for seed in range(200):
                ids = routing.samples[rng.integers(0, 600, batch)]
                peaks.append(schedule(ids, layout, policy, seed=seed).a_max)
        assert estimator(n_e, batch) == pytest.approx(np.mean(peaks), abs=0.2)


def test_estimator_is_deterministic_and_ordered() -> None:
    layers = synthetic_layers(32, 4, layers=1, tokens=500)
    one, two = (
        AMaxEstimator(layers, 12, seed=3, strategy="search", batches=16, largest=256) for _ in range(2)
    )
    np.testing.assert_array_equal(one.table(4), two.table(4))
    for n_e in (3, 4, 8):
        values = [one(n_e, tokens) for tokens in (1, 3, 17, 64, 256, 10_000)]
        assert values == sorted(values)
    assert one(3, 64) > one(8, 64)
    assert one(3, 1) <= one(3, 1.5) <= one(3, 2)


@pytest.mark.parametrize("seed", range(6))
def test_appendix_a_bounds_the_estimate(seed: int) -> None:
    routing = synthetic_layers(64, 4, layers=1, skew=0.3 * seed, tokens=1000, seed=seed)
    for policy in ("optimal", "aebs"):
        estimator = AMaxEstimator(routing, 16, policy=policy, batches=64, largest=256)
        for n_e in (4, 6, 9):
            placement = estimator.placement(0, n_e)
            for tokens in (1, 16, 64, 256):
                assert estimator(n_e, tokens) <= bound(routing[0], placement, tokens, 16) + 1e-9


def test_bad_routing_is_named() -> None:
    with pytest.raises(ScalingError, match="layers"):
        AMaxEstimator([], 4)
    with pytest.raises(ScalingError, match=r"policy = 'best'"):
        AMaxEstimator(synthetic_layers(8, 2, layers=1), 4, policy="best")
    with pytest.raises(ScalingError, match="skew = -1"):
        synthetic_layers(8, 2, skew=-1)


@pytest.mark.parametrize("gating", ["moe", "attention"])
@pytest.mark.parametrize("phases", [1, 2])
def test_exchanges_at_once_are_the_single_ones(gating: str, phases: int) -> None:
    rng = np.random.default_rng(phases)
    exchange = Exchange(row_bytes=8192, top_k=6, hardware=H100, gating=gating, phases=phases)
    n_a, n_e = rng.integers(1, 70, 200), rng.integers(1, 70, 200)
    tokens = rng.uniform(1, 4000, 200)
    single = [exchange.seconds(int(a), int(e), float(t)) for a, e, t in zip(n_a, n_e, tokens, strict=True)]
    at_once = exchange_seconds(exchange, n_a.astype(float), n_e.astype(float), tokens)
    np.testing.assert_allclose(at_once, single, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"flops": None}, "bad.json: flops = missing"), ({"watts": 3}, "'watts'"), ({"price": "1"}, "price = '1'"),
        ({"price": -1}, r"bad.json: bad.price = -1"), ({"price": True}, "a number"),
    ],
)  # fmt: skip
def test_profile_files(change: dict[str, object], match: str, tmp_path: Path) -> None:
    fields: dict[str, object] = {
        "flops": 1e12, "memory_bandwidth": 1e11, "memory_bytes": 1e10, "link_bandwidth": 1e10, "network_bandwidth": 1e9,
        "devices_per_node": 4,
    }  # fmt: skip
    path = tmp_path / "own.json"
    path.write_text(json.dumps(fields))
    assert profile(str(path)) == HardwareProfile(name="own", **fields)  # type: ignore[arg-type]
    made = {k: v for k, v in {**fields, **change}.items() if v is not None}
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(made))
    with pytest.raises(ScalingError, match=match):
        profile(str(bad))


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_files_that_are_no_profile(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ScalingError, match="a JSON object"):
        profile(str(path))
    with pytest.raises(ScalingError, match="a JSON object"):
        profile(str(tmp_path / "none.json"))
    with pytest.raises(ScalingError, match=r"the path of a .json file"):
        profile("b200")
