"""Coefficients from measured steps, by robust regression, with their uncertainty.

Each part is fitted alone, since workers measure the parts alone. Residuals are relative and pass through a soft L1
loss, so that a step which something else disturbed counts little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from janus_scaling.checks import ScalingError

Vector = np.ndarray[Any, np.dtype[np.float64]]
ATTENTION = ("c_a", "alpha", "c_kv")
MOE = ("beta", "c_e")
MOE_PAIRS = ("beta", "c_e", "kappa")
COMM = ("comm_scale", "comm_fixed", "comm_token")


@dataclass(frozen=True, slots=True)
class Estimate:
    """A coefficient; ``std`` is infinite where the measurements do not determine it."""

    value: float
    std: float


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients by name, and how well they explain what was measured."""

    coefficients: dict[str, Estimate]
    relative_error: float
    """Median of |predicted / measured - 1|."""
    samples: int


def fit_attention(tokens: Any, context: Any, seconds: Any) -> Fit:
    """c_a, alpha, c_kv from per-layer times: float [N] each; tokens of one worker, mean context, seconds."""
    b, s, t = _columns(3, tokens=tokens, context=context, seconds=seconds)
    terms = np.stack([b, b * s])

    def predict(x: Vector) -> Vector:
        return np.maximum(x[0], x[1:] @ terms)

    # The maximum has a kink: begin with the floor at the least, the middle and none of the times.
    slope = float(np.median(t / np.maximum(b, 1e-9)))
    starts = [
        np.array([float(np.quantile(t, q)), slope * share, slope * (1 - share) / max(1.0, float(s.mean()))])
        for q in (0.05, 0.5)
        for share in (0.9, 0.1)
    ]
    return _fit(ATTENTION, predict, t, starts)


def fit_moe(a_max: Any, seconds: Any, pairs: Any = None) -> Fit:
    """beta, c_e from per-layer times: float [N] each; with ``pairs``, (token, expert) pairs of an instance, kappa."""
    if pairs is None:
        a, t = _columns(2, a_max=a_max, seconds=seconds)
        return _fit(MOE, lambda x: x[0] * a + x[1], t, _line_starts(a, t))
    a, p, t = _columns(3, a_max=a_max, tokens=pairs, seconds=seconds)
    line = _line_starts(a, t)[0]
    slope = float(np.median(t / np.maximum(p, 1e-9)))
    # The larger of two counts: begin where the experts' weights decide, where their arithmetic does, and between.
    starts = [np.array([max(line[0], 1e-9), line[1], slope * share]) for share in (0.01, 0.3, 0.9)]
    return _fit(MOE_PAIRS, lambda x: np.maximum(x[0] * a, x[2] * p) + x[1], t, starts)


def fit_comm(modelled: Any, tokens: Any, seconds: Any) -> Fit:
    """comm_scale, comm_fixed, comm_token from per-layer times and those of the exchange's model: float [N] each."""
    m, b, t = _columns(3, modelled=modelled, tokens=tokens, seconds=seconds)
    terms = np.stack([m, np.ones_like(m), b])
    start = np.array([0.5, float(t.min()) / 2, 1e-9])
    return _fit(COMM, lambda x: x @ terms, t, [start])


def fit_linear(names: Sequence[str], terms: Any, seconds: Any) -> Fit:
    """Any linear model without negative coefficients: ``terms`` float [N, P]; names of the P coefficients."""
    matrix, t = np.asarray(terms, np.float64), np.asarray(seconds, np.float64)
    if matrix.ndim != 2 or matrix.shape != (len(t), len(names)):
        raise ScalingError("terms", matrix.shape, f"shape ({len(t)}, {len(names)})")
    start = np.full(len(names), float(t.mean()) / max(1e-12, float(matrix.sum(axis=1).mean())))
    return _fit(tuple(names), lambda x: matrix @ x, t, [start])


def _columns(least: int, **columns: Any) -> list[Vector]:
    made = {name: np.asarray(values, np.float64).ravel() for name, values in columns.items()}
    size = len(next(iter(made.values())))
    for name, values in made.items():
        if len(values) != size or size < least:
            raise ScalingError(name, f"{len(values)} values", f"as many as the others, at least {least}")
        low = 0 if name in ("context", "a_max", "tokens") else np.nextafter(0, 1)
        if not np.isfinite(values).all() or (values < low).any():
            worst = int(np.flatnonzero(~(np.isfinite(values) & (values >= low)))[0])
            raise ScalingError(f"{name}[{worst}]", values[worst], "finite and positive numbers")
    return list(made.values())


def _line_starts(x: Vector, t: Vector) -> list[Vector]:
    slope = max(0.0, float(np.polyfit(x, t, 1)[0])) if np.ptp(x) > 1e-6 * x.max() else 0.0
    return [np.array([slope, max(0.0, float(np.median(t - slope * x)))])]


def _fit(names: Sequence[str], predict: Callable[[Vector], Vector], t: Vector, starts: list[Vector]) -> Fit:
    # In units of each start, so that nanoseconds and milliseconds step alike.
    best = None
    for start in starts:
        unit = np.where(start > 0, start, float(t.mean()) * 1e-3)

        def residuals(z: Vector, unit: Vector = unit) -> Vector:
            return predict(z * unit) / t - 1

        found = least_squares(
            residuals, start / unit, bounds=(0, np.inf), loss="soft_l1", f_scale=0.05, max_nfev=2000
        )
        if best is None or found.cost < best[0]:
            best = float(found.cost), found.x * unit, found.jac / unit
    assert best is not None
    _, values, jacobian = best
    errors = predict(values) / t - 1
    stds = _stds(jacobian, errors)
    return Fit(
        {name: Estimate(float(v), float(s)) for name, v, s in zip(names, values, stds, strict=True)},
        float(np.median(np.abs(errors))),
        len(t),
    )


def _stds(jacobian: Vector, errors: Vector) -> Vector:
    """Standard errors from the Gauss-Newton covariance; infinite along directions that nothing measured."""
    free = max(1, len(errors) - jacobian.shape[1])
    # The noise's scale from the middle of the residuals: a few wild ones must not widen it.
    noise = max(1.4826 * float(np.median(np.abs(errors))), 1e-12) ** 2 * len(errors) / free
    norms = np.linalg.norm(jacobian, axis=0)
    scale = np.where(norms > 0, norms, 1)
    _, singular, directions = np.linalg.svd(jacobian / scale, full_matrices=False)
    weak = singular <= 1e-9 * max(1e-300, float(singular.max(initial=0)))
    variance = ((directions / np.where(weak, 1, singular)[:, None]) ** 2 * ~weak[:, None]).sum(axis=0) * noise
    undetermined = (norms == 0) | ((np.abs(directions) > 1e-6) & weak[:, None]).any(axis=0)
    return np.where(undetermined, np.inf, np.sqrt(variance) / scale)
