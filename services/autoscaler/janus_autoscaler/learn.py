"""Coefficients of the performance model, learnt from measured steps as they come; the hardware's profile until then.

Kept are the latest intervals of each size and load, so that what is served now does not make forgotten what was
learnt before. Where measurements at one load alone do not say what of a time grows with the load, all of it beyond the
profile's fixed part is taken to: workers are then added on a hope that the first steps with them correct, and none are
drained on one.
"""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from janus_scaling import Coefficients, Exchange, ModelShape, PerformanceModel
from janus_scaling.fit import Estimate, Fit, fit_attention, fit_comm, fit_linear, fit_moe

from janus_autoscaler.measure import Interval

CELLS = 96
PER_CELL = 16
LEAST = 8
"""Intervals that a fit needs."""
ERRORS = 120
"""Latest predictions whose error is told."""
RECENT = 40
"""Latest predictions that tell the spread: less than a minute of two workers, so that it follows what happens now."""
MOST_SPREAD = 2.0
"""Beyond it, something other than chance is at work, and more workers are no remedy."""
CERTAIN = 0.5
"""A coefficient counts as determined while its standard error is below this share of it."""
MEASURED, ASSUMED, PROFILE = "measured", "assumed", "profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """What the planner computes with."""

    coefficients: Coefficients
    estimates: dict[str, Estimate]
    """By name; infinite uncertainty for what the profile says."""
    sources: dict[str, str]
    """By name: ``measured``; ``assumed`` from measurements of one load; ``profile``."""
    intervals: int


class Learner:
    """One per mesh."""

    def __init__(
        self, model: ModelShape, profile: Coefficients, exchange: Exchange, *, shared_cores: float
    ) -> None:
        self._model, self._profile, self._exchange = model, profile, exchange
        self._cores = shared_cores
        self._cells: OrderedDict[tuple[int, ...], deque[Interval]] = OrderedDict()
        self._ratios: deque[float] = deque(maxlen=ERRORS)
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._news = False
        self.learnt = _of_profile(profile)

    def add(self, new: Sequence[Interval], a_max: Callable[[int, float], float]) -> None:
        """Judge the present prediction by new intervals, then learn from them. ``a_max``: the planner's estimate."""
        for interval in new:
            predicted = self.predict(interval, a_max)
            self._ratios.append(interval.step_s / predicted)
            if self.learnt.intervals:  # a profile's error is no spread
                self._recent.append(interval.step_s / predicted)
            load = (round(2 * math.log2(max(1.0, t))) for t in (interval.tokens, interval.cohort_tokens))
            key = (interval.n_a, interval.n_e, *load, round(math.log2(1 + interval.context)))
            self._cells.setdefault(key, deque(maxlen=PER_CELL)).append(interval)
            self._cells.move_to_end(key)
            while len(self._cells) > CELLS:
                self._cells.popitem(last=False)
            self._news = True

    def fit(self) -> Learnt:
        """Fit again if there is anything new; tens of milliseconds."""
        known = [interval for cell in self._cells.values() for interval in cell]
        if self._news and len(known) >= LEAST:
            self.learnt = fitted(self._model, self._profile, self._exchange, known, self._cores)
        self._news = False
        return self.learnt

    def performance(self) -> PerformanceModel:
        """With the coefficients of now."""
        return PerformanceModel(
            model=self._model, coefficients=self.learnt.coefficients, exchange=self._exchange,
            shared_cores=self._cores,
        )  # fmt: skip

    def predict(self, interval: Interval, a_max: Callable[[int, float], float]) -> float:
        """Seconds of a step of the interval's sizes and load, the worker's own load apart."""
        tokens = interval.tokens * interval.n_a  # the model's workers are equally loaded
        time = self.performance().step(
            interval.n_a, interval.n_e, tokens, interval.context, a_max(interval.n_e, interval.cohort_tokens)
        )
        return time.total

    @property
    def error(self) -> float:
        """Median relative error of the latest predictions, made before they were learnt from; 0 without any."""
        return float(np.median(np.abs(1 / np.array(self._ratios) - 1))) if self._ratios else 0.0

    @property
    def spread(self) -> float:
        """How far steps exceed what is predicted for them, 90th percentile of the latest: the model gives a mean, the
        objective is of a tail. 1 to MOST_SPREAD."""
        if len(self._recent) < LEAST:
            return 1.0
        return min(MOST_SPREAD, max(1.0, float(np.quantile(self._recent, 0.9))))


def _of_profile(profile: Coefficients) -> Learnt:
    values = dataclasses.asdict(profile)
    return Learnt(
        coefficients=profile, estimates={k: Estimate(v, math.inf) for k, v in values.items()},
        sources=dict.fromkeys(values, PROFILE), intervals=0,
    )  # fmt: skip


def fitted(
    model: ModelShape, profile: Coefficients, exchange: Exchange, known: Sequence[Interval], cores: float
) -> Learnt:
    """Coefficients from intervals; pure."""
    crowd = PerformanceModel(model=model, coefficients=profile, exchange=exchange, shared_cores=cores)
    column = lambda name: np.array([getattr(i, name) for i in known])  # noqa: E731
    tokens, cohort, context, a_max = (column(n) for n in ("tokens", "cohort_tokens", "context", "a_max"))
    crowd_a = np.array([crowd.crowding(i.n_a) for i in known])
    crowd_e = np.array([crowd.crowding(i.n_e) for i in known])
    attention_s = np.maximum(column("attention_s") / crowd_a, 1e-9) / model.layers
    moe_s = np.maximum(column("moe_s") / crowd_e, 1e-9) / model.moe_layers
    pairs = cohort * model.top_k / column("n_e")
    made = {k: Estimate(v, math.inf) for k, v in dataclasses.asdict(profile).items()}
    sources = dict.fromkeys(made, PROFILE)

    def take(estimates: dict[str, Estimate]) -> None:
        for name, estimate in estimates.items():
            made[name], sources[name] = estimate, MEASURED

    def assume(**values: float) -> None:
        for name, value in values.items():
            made[name], sources[name] = Estimate(value, math.inf), ASSUMED

    fixed = 0.0
    best = _best(
        [
            (("alpha", "c_kv"), fit_attention(tokens, context, attention_s)),
            (("alpha",), fit_attention(tokens, np.zeros_like(context), attention_s)),
            # Where a layer costs something beside its tokens rather than at the least, as on a CPU.
            (("alpha", "c_kv"), fit_linear(("fixed", "alpha", "c_kv"), np.stack([np.ones_like(tokens), tokens, tokens * context], axis=1), attention_s)),  # noqa: E501
            (("alpha",), fit_linear(("fixed", "alpha"), np.stack([np.ones_like(tokens), tokens], axis=1), attention_s)),
        ]
    )  # fmt: skip
    if best is not None:
        take({"c_a": Estimate(0.0, 0.0), "c_kv": Estimate(0.0, math.inf), **best.coefficients})
        fixed = made.pop("fixed", Estimate(0.0, 0.0)).value
        sources.pop("fixed", None)
    else:
        assume(
            c_a=min(profile.c_a, float(attention_s.min())),
            alpha=float(np.median(attention_s / tokens)),
            c_kv=0.0,
        )
    both = fit_moe(a_max, moe_s, pairs)
    best = _best([(("beta",), fit_moe(a_max, moe_s)), (("beta",), both), (("kappa",), both)])
    if best is not None:
        take({"kappa": Estimate(0.0, math.inf), **best.coefficients})
    else:
        c_e = min(profile.c_e, float(moe_s.min()) / 2)
        assume(c_e=c_e, beta=float(np.median((moe_s - c_e) / a_max)), kappa=0.0)
    modelled = np.array([exchange.seconds(i.n_a, i.n_e, i.cohort_tokens) for i in known])
    comm_s = np.maximum(column("exchange_s"), 1e-9) / model.moe_layers
    take(fit_comm(modelled, cohort, comm_s).coefficients)
    once = float(np.median(column("once_s"))) + fixed * model.layers
    take({"c_step": Estimate(once, float(np.std(column("once_s"))))})
    values = {name: estimate.value for name, estimate in made.items()}
    return Learnt(coefficients=Coefficients(**values), estimates=made, sources=sources, intervals=len(known))


def _best(fits: Sequence[tuple[tuple[str, ...], Fit]]) -> Fit | None:
    """The fit of least error among those that determine what they must; the earlier of equals."""
    sure = [
        fit
        for needed, fit in fits
        if all(fit.coefficients[n].std <= CERTAIN * fit.coefficients[n].value for n in needed)
    ]
    # A richer form explains a little more of any noise: it has to explain a tenth more.
    return min(sure, key=lambda fit: fit.relative_error * 1.1 ** len(fit.coefficients), default=None)
