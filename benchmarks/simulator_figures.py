"""Figures 12, 16 and 17 of the paper, what it leaves on the table, and a panel per figure; for bench_simulator."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from janus_scaling import AMaxEstimator, Candidate, Coefficients, Demand, Plan, bound
from janus_simulator import SYSTEMS, Planner, Setting
from janus_simulator.paper import A_MAX, CHOSEN, CONTEXT, RATIOS, SCALED_DS_2
from janus_simulator.report import markdown

SLOTS = 27
TESTBED = 32
"""GPUs of the paper's testbed."""
ABLATION = (4, 12)
"""Two nodes of eight."""
GRID = tuple((n_e, batch) for n_e in (6, 8, 12, 16) for batch in (16, 64, 256, 512))


VARIANTS: dict[str, dict[str, Any]] = {
    "2PC + EGate + AEBS": {}, "2PC + EGate": {"policy": "token-balanced"},
    "2PC + AGate": {"policy": "token-balanced", "gating": "attention"},
    "1PC + EGate": {"policy": "token-balanced", "phases": 1}, "2PC + EGate, random": {"policy": "random"},
}  # fmt: skip
COMPARISONS: tuple[tuple[str, str, str, dict[int, tuple[float, float]]], ...] = (
    (
        "1PC + EGate, of the whole system",
        "1PC + EGate",
        "2PC + EGate + AEBS",
        {256: (0.44, 0.44), 512: (0.30, 0.30)},
    ),
    ("2PC + EGate over 2PC + AGate", "2PC + EGate", "2PC + AGate", {256: (1.04, 1.34), 512: (1.04, 1.34)}),
    (
        "AEBS over tokens balanced",
        "2PC + EGate + AEBS",
        "2PC + EGate",
        {256: (1.11, 1.15), 512: (1.11, 1.15)},
    ),
)
"""Text, what over what, and the paper's value or its ends by B."""


def within(plan: Plan) -> Candidate | None:
    """The chosen one if it fits the paper's testbed."""
    return plan.chosen if plan.chosen and plan.chosen.workers <= TESTBED else None


def variants(setting: Setting) -> dict[str, Planner]:
    """The ablation's systems, by name."""
    sized = dataclasses.replace(setting, slots=SLOTS)
    return {
        name: Planner(dataclasses.replace(SYSTEMS["janus-aebs"], name=name, **change), sized)
        for name, change in VARIANTS.items()
    }


def ablation(
    made: Mapping[str, Planner], kinds: Mapping[str, Coefficients]
) -> tuple[str, list[tuple[str, float, float]]]:
    """Figure 12: a table, and (comparison, paper's middle, ours with the first of ``kinds``) for the picture."""
    speed: dict[tuple[str, str, int], float] = {}
    for kind, coefficients in kinds.items():
        for name, planned in made.items():
            timed = planned.timed(dataclasses.replace(planned.performance, coefficients=coefficients))
            for batch in (256, 512):
                speed[kind, name, batch] = batch / timed.step_seconds(*ABLATION)(batch, 0, CONTEXT)
    table, bars = [["comparison", "B", "paper", *kinds]], []
    for text, first, second, said in COMPARISONS:
        for batch, (low, high) in said.items():
            found = [speed[kind, first, batch] / speed[kind, second, batch] for kind in kinds]
            paper = f"{low:.0%}" if low == high else f"{100 * low:.0f}-{high:.0%}"
            table.append([text, str(batch), paper, *(f"{x:.0%}" for x in found)])
            bars.append((f"{text}, {batch}", (low + high) / 2, found[0]))
    return markdown(table), bars


def search_space(made: Planner, batches: Sequence[int]) -> tuple[str, dict[int, list[Candidate]]]:
    """Figure 16: the space and what of it is feasible, by objective; the candidates of each batch for the picture."""
    table = [
        [
            "B",
            "TPOT, ms",
            "candidates",
            "feasible",
            "chosen",
            "tokens/s/GPU",
            "median of the feasible",
            "paper",
        ]
    ]
    said = {64: "1A6E", 256: "5A10E (strict) to 2A6E", 512: "4A6E (relaxed)"}
    kept = {}
    for batch in batches:
        for ms in (100, 150, 200):
            target = dataclasses.replace(made.setting.target, tpot_s=ms / 1e3)
            plan = made.under(target).plan(Demand(tokens_per_s=0, context=CONTEXT), batch=batch)
            good = [c.tokens_per_s_per_worker for c in plan.candidates if c.feasible]
            best = plan.chosen
            table.append(
                [str(batch), str(ms), str(len(plan.candidates)), str(len(good)),
                 f"{best.n_a}A{best.n_e}E" if best else "none", f"{best.tokens_per_s_per_worker:.0f}" if best else "-",
                 f"{np.median(good):.0f}" if good else "-", said[batch]]
            )  # fmt: skip
        kept[batch] = list(plan.candidates)
    return markdown(table), kept


def bounds(routing: list[Any]) -> tuple[str, list[tuple[float, float]]]:
    """Figure 17: Appendix A's bound over the estimate."""
    made = AMaxEstimator(routing, SLOTS, policy="aebs", strategy="coactivation", largest=512)
    ours = AMaxEstimator(routing, SLOTS, largest=512)
    table = [["n_e", "B", "estimate, aebs", "estimate, optimal", "bound", "bound / aebs"]]
    points = []
    for n_e, batch in GRID:
        limit = float(
            np.mean([bound(x, made.placement(i, n_e), batch, SLOTS) for i, x in enumerate(routing)])
        )
        values = made(n_e, batch), ours(n_e, batch)
        if values[0] > limit:
            raise RuntimeError(
                f"a_max {values[0]:.2f} above its bound {limit:.2f} at n_e = {n_e}, B = {batch}"
            )
        points.append((values[0], limit))
        table.append(
            [str(n_e), str(batch), *(f"{v:.2f}" for v in values), f"{limit:.2f}", f"{limit / values[0]:.2f}"]
        )
    return markdown(table), points


def left_on_the_table(
    settings: Mapping[str, Setting], strategies: Sequence[str]
) -> tuple[str, list[list[float]]]:
    """Optimal schedule and placements beside the paper's own: a_max, and tokens/s at the same sizes."""
    table = [["sizes", "B", "schedule, placement", "a_max", *(f"tokens/s, {kind}" for kind in settings)]]
    gains: list[list[float]] = []
    for n_a, n_e, batch in ((1, 6, 64), (2, 6, 256), (5, 10, 256), (4, 12, 256), (4, 16, 512)):
        first: list[float] = []
        for policy, strategy in (("aebs", "coactivation"), *(("optimal", s) for s in strategies)):
            system = dataclasses.replace(
                SYSTEMS["janus-aebs"], name=strategy, policy=policy, strategy=strategy
            )
            cells, speeds = "", []
            for setting in settings.values():
                made = Planner(system, dataclasses.replace(setting, slots=SLOTS))
                peak = made._problems[0].a_max(n_e, batch)
                cells = f"{peak:.2f}"
                speeds.append(batch / made.step_seconds(n_a, n_e)(batch, 0, CONTEXT))
            first = first or speeds
            ratios = [s / f for s, f in zip(speeds, first, strict=True)]
            shown = [f"{s:.0f} ({r - 1:+.1%})" for s, r in zip(speeds, ratios, strict=True)]
            name = f"{policy}, {strategy}" + (" (the paper's)" if policy == "aebs" else "")
            table.append([f"{n_a}A{n_e}E", str(batch), name, cells, *shown])
        gains.append([r - 1 for r in ratios])
    return markdown(table), gains


def picture(
    path: Path,
    *,
    ratios: Mapping[str, float],
    chosen: Mapping[int, Sequence[tuple[int, float]]],
    scaled: Sequence[tuple[int, float]],
    bars: Sequence[tuple[str, float, float]],
    peaks: Mapping[str, AMaxEstimator],
    space: Mapping[int, Sequence[Candidate]],
    limits: Sequence[tuple[float, float]],
) -> None:
    """One panel each for figures 8, 9, 10, 12, 13, 16 and 17; 11 has its own. Orange: the paper's."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(18, 8.4), layout="constrained")
    eight, nine, ten, twelve, thirteen, sixteen, seventeen, none = axes.flat
    none.axis("off")
    x = np.arange(len(RATIOS))
    eight.bar(x - 0.2, [RATIOS[s] for s in RATIOS], 0.4, color="tab:orange", label="paper")
    eight.bar(x + 0.2, [ratios[s] for s in RATIOS], 0.4, color="tab:blue", label="here")
    eight.set_xticks(x, list(RATIOS))
    eight.set(title="8: largest tokens/s/GPU over each system's")
    eight.legend()
    for batch, points in chosen.items():
        nine.plot([ms for ms, _ in points], [v for _, v in points], ".-", label=f"B = {batch}")
    for p in CHOSEN:
        nine.plot(1e3 * p.tpot_s, p.tokens_per_s_per_gpu, "o", color="tab:orange")
    nine.set(title="9: the chosen size's tokens/s/GPU", xlabel="TPOT objective, ms")
    nine.legend()
    ten.plot([b for b, _ in scaled], [v for _, v in scaled], "o")
    ten.axhspan(*SCALED_DS_2, color="tab:orange", alpha=0.4)
    ten.set(title="10: Scaled-DS-2, TPOT below MegaScale-Infer's", xlabel="B", ylim=(0, 0.6))
    y = np.arange(len(bars))
    twelve.barh(y - 0.2, [b[1] for b in bars], 0.4, color="tab:orange")
    twelve.barh(y + 0.2, [b[2] for b in bars], 0.4, color="tab:blue")
    twelve.set_yticks(y, [b[0] for b in bars], fontsize=7)
    twelve.axvline(1, color="gray", lw=0.6)
    twelve.set(title="12: ablation, roofline")
    sizes = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
    for (name, made), style in zip(peaks.items(), ("-", "--"), strict=False):
        for color, n_e in enumerate((6, 12, 16)):
            values = [made(n_e, b) for b in sizes]
            thirteen.plot(sizes, values, style, color=f"C{color * 2}", label=f"{n_e}, {name}", lw=1)
    for (n_e, batch), value in A_MAX.items():
        thirteen.plot(batch, value, "o", color=f"C{(6, 12, 16).index(n_e) * 2}")
    thirteen.set(title="13: a_max by n_e (dots: paper)", xlabel="B", xscale="log")
    thirteen.legend(fontsize=7)
    field = list(space[256])
    n_a, n_e = (sorted({getattr(c, k) for c in field}) for k in ("n_a", "n_e"))
    heat = np.full((len(n_a), len(n_e)), np.nan)
    for c in field:
        heat[n_a.index(c.n_a), n_e.index(c.n_e)] = 1e3 * c.tpot_s
    image = sixteen.imshow(
        heat, origin="lower", aspect="auto", extent=(n_e[0] - 0.5, n_e[-1] + 0.5, n_a[0] - 0.5, n_a[-1] + 0.5)
    )
    figure.colorbar(image, ax=sixteen, label="TPOT, ms")
    for e, a in ((10, 5), (6, 2)):
        sixteen.plot(e, a, "o", color="tab:orange")
    sixteen.set(title="16: search space, B = 256 (dots: paper's choices)", xlabel="n_e", ylabel="n_a")
    seventeen.plot([a for a, _ in limits], [b for _, b in limits], "o")
    most = max(b for _, b in limits)
    seventeen.plot([0, most], [0, most], color="gray", lw=0.8)
    seventeen.set(title="17: Appendix A's bound", xlabel="estimated a_max, aebs", ylabel="bound")
    figure.savefig(path, dpi=100)
    plt.close(figure)
