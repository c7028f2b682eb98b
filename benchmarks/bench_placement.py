"""Placement: a_max of every strategy on fresh batches, the gap to the bound, and how long placing takes.

``python benchmarks/bench_placement.py --model .janus/demo``: routing recorded from the demo model over ShareGPT
prompts, and synthetic routing, skewed and shifting, of 160 experts. Placements are made from the first half of
the samples and judged on the second; of "shifting" routing the second half is about other topics, which no strategy
can know; in "shifted" all have placed again from samples of those, ``search`` starting from what was loaded. Writes
results/placement.md and .png.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from janus_placement import (
    STRATEGIES,
    Budget,
    LayerRouting,
    Pool,
    expected_a_max,
    place,
    plan_change,
    to_hosted,
)
from janus_placement.search import lower_bounds
from machine import write

INSTANCES = (6, 8, 12, 16)
BATCHES = (16, 64, 256, 512)
POLICIES = ("optimal", "aebs")


@dataclass(frozen=True)
class Workload:
    """Layers of routing samples, int32 [S, k] each: to place by, and to judge on."""

    name: str
    experts: int
    slots: int
    layers: list[tuple[np.ndarray, np.ndarray]]
    before: list[np.ndarray] | None = None
    """What ``search`` had placed by when other topics came, per layer: it starts from that placement."""


def shifted(work: Workload) -> Workload:
    """Placed again after the shift: known is the first half of what the shift brought, judged on is the rest."""
    parts = [np.array_split(future, 2) for _, future in work.layers]
    return Workload(
        "shifted", work.experts, work.slots, [(a, b) for a, b in parts], [past for past, _ in work.layers]
    )


def synthetic(name: str, layers: int, *, shifting: bool) -> Workload:
    """160 experts, top-6: Zipf-like popularity (0.7) and six topics that favour experts of their own."""
    experts, top_k, tokens = 160, 6, 4096
    made = []
    for layer in range(layers):
        rng = np.random.default_rng(layer)
        popular = -0.7 * np.log(rng.permutation(experts) + 1.0)
        halves = []
        taste = popular + 1.5 * rng.standard_normal((6, experts))
        for _ in range(2):
            scores = taste[rng.integers(0, 6, tokens)] + rng.gumbel(size=(tokens, experts))
            halves.append(np.argsort(-scores, axis=1)[:, :top_k].astype(np.int32))
            if shifting:
                taste = popular + 1.5 * rng.standard_normal((6, experts))
        made.append((halves[0], halves[1]))
    return Workload(name, experts, 27, made)


def recorded(model: Path, prompts: int, new_tokens: int) -> Workload:
    """Routing of the demo model, in one process, over ShareGPT prompts and its own answers."""
    from janus_models.local import LocalModel
    from janus_testing.sharegpt import chat_prompts

    seen: dict[int, list[np.ndarray]] = {}

    class Recording(LocalModel):
        def route(self, moe_layer: int, x_TD: Any) -> Any:
            ids, weights = super().route(moe_layer, x_TD)
            seen.setdefault(moe_layer, []).append(ids.numpy().copy())
            return ids, weights

    local = Recording(model, kv_blocks=1024)
    texts = chat_prompts(model, prompts)
    with click.progressbar(range(0, prompts, 8), label="recording the demo model's routing") as parts:
        for first in parts:
            local.generate(texts[first : first + 8], new_tokens)
    layers = []
    for layer in sorted(seen):
        ids = np.concatenate(seen[layer])
        layers.append((ids[: len(ids) // 2], ids[len(ids) // 2 :]))
    return Workload("demo", local.config.moe.num_experts, 2, layers)


def compare(work: Workload, instances: int, batch: int) -> tuple[dict[tuple[str, str], float], float]:
    """Mean a_max over the layers by (strategy, policy), and the mean bound, on fresh batches."""
    pool = Pool(num_experts=work.experts, slots=(work.slots,) * instances)
    sums: dict[tuple[str, str], list[float]] = {}
    bounds = []
    for layer, (past, future) in enumerate(work.layers):
        known, fresh = (LayerRouting(part, work.experts) for part in (past, future))
        sets, judged = known.draw([batch], seed=layer), fresh.draw([batch], 1000, layer + 1000)
        bounds.append(float(lower_bounds(judged, instances).mean()))
        for policy in POLICIES:
            for strategy in STRATEGIES:
                loaded: dict[str, Any] = {}
                if strategy == "search" and work.before is not None:
                    old = LayerRouting(work.before[layer], work.experts)
                    drawn = old.draw([batch], seed=layer)
                    first = place(pool, old, drawn, policy=policy, start=layer, seed=layer)
                    loaded = {"current": first.placement, "price": 0.0002}
                made = place(pool, known, sets, strategy, policy=policy, start=layer, seed=layer, **loaded)
                value = expected_a_max(to_hosted(made.placement, work.experts), judged, policy)
                sums.setdefault((strategy, policy), []).append(value)
    return {key: statistics.fmean(values) for key, values in sums.items()}, statistics.fmean(bounds)


def table(work: Workload, progress: Callable[[], None]) -> str:
    """Rows: instances and batch; columns: strategies under ``optimal`` / ``aebs``. Below it, how far above the best of
    the others ``search`` is where it is farthest."""
    names, worst = list(STRATEGIES), (0.0, "")
    lines = [
        f"## {work.name}: {work.experts} experts, {work.slots} slots, {len(work.layers)} layers\n",
        f"| instances | batch | bound | {' | '.join(names)} |",
        "| --- " * (3 + len(names)) + "|",
    ]
    for instances in INSTANCES:
        for batch in BATCHES:
            cost, bound = compare(work, instances, batch)
            cells = [f"{cost[name, 'optimal']:.2f} / {cost[name, 'aebs']:.2f}" for name in names]
            lines.append(f"| {instances} | {batch} | {bound:.2f} | {' | '.join(cells)} |")
            for policy in POLICIES:
                best = min(cost[name, policy] for name in names if name != "search")
                place_of = f"{instances} instances, batch {batch}, `{policy}`"
                worst = max(worst, (cost["search", policy] / best - 1, place_of))
            progress()
    said = (
        f"farthest above the best of the others by {worst[0]:.2%} ({worst[1]})"
        if worst[1]
        else "at or below all others"
    )
    lines.append(f"\n`search`: {said}.")
    return "\n".join(lines)


def timing(layers: int) -> str:
    """Placing a model of DeepSeek-V2's size, and placing it again after a shift."""
    work = synthetic("shifting", 4, shifting=True)
    lines = [
        "| instances | layers | from nothing, s | again after a shift, s | replicas loaded |",
        "| --- " * 5 + "|",
    ]
    for instances in (6, 16):
        pool = Pool(num_experts=work.experts, slots=(work.slots,) * instances)
        spent, again_spent, loads = 0.0, 0.0, 0
        for layer in range(layers):
            past, future = work.layers[layer % len(work.layers)]
            began = time.process_time()
            known = LayerRouting(past, work.experts)
            first = place(pool, known, known.draw([64], 64, layer), seed=layer, start=layer, budget=Budget())
            spent += time.process_time() - began
            now = LayerRouting(future, work.experts)
            began = time.process_time()
            budget = Budget(evaluations=30, patience=30)
            second = place(
                pool, now, now.draw([64], 64, layer), seed=layer, budget=budget,
                current=first.placement, price=0.002, incremental=True,
            )  # fmt: skip
            again_spent += time.process_time() - began
            loads += len(plan_change(first.placement, second.placement, pool).loads)
        lines.append(f"| {instances} | {layers} | {spent:.1f} | {again_spent:.1f} | {loads} |")
    return "\n".join(lines)


def picture(work: Workload, path: Path) -> None:
    """Experts x instances of one layer: tokens per replica before (round-robin) and after (search)."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    pool = Pool(num_experts=work.experts, slots=(work.slots,) * 6)
    known = LayerRouting(work.layers[0][0], work.experts)
    sets = known.draw([64], 256)
    figure, axes = plt.subplots(1, 2, figsize=(8, 9), sharey=True, layout="constrained")
    order = np.argsort(-known.counts)
    for axis, strategy in zip(axes, ("round-robin", "search"), strict=True):
        made = place(pool, known, sets, strategy)
        hosted = to_hosted(made.placement, work.experts)
        share = known.counts / np.maximum(1, hosted.sum(axis=1)) / max(1, len(known.samples))
        image = axis.imshow(np.where(hosted, share[:, None], np.nan)[order], aspect="auto", cmap="viridis")
        axis.set_title(f"{strategy}\na_max {made.expected_a_max:.2f} (bound {made.lower_bound:.2f})")
        axis.set_xlabel("instance")
    axes[0].set_ylabel("expert, the most active first")
    figure.colorbar(image, ax=axes, label="share of tokens per replica", shrink=0.5)
    figure.savefig(path, dpi=110)


@click.command()
@click.option(
    "--model", default=".janus/demo", show_default=True, help="Demo checkpoint; skipped when absent."
)
@click.option("--layers", default=3, show_default=True, help="Layers of synthetic routing.")
@click.option("--prompts", default=48, show_default=True, help="ShareGPT prompts to record.")
@click.option("--new-tokens", default=48, show_default=True, help="Tokens to generate for each.")
def main(model: str, layers: int, prompts: int, new_tokens: int) -> None:
    """Measure and write the results."""
    works = [synthetic("skewed", layers, shifting=False), synthetic("shifting", layers, shifting=True)]
    works.append(shifted(works[1]))
    if Path(model, "config.json").exists():
        works.insert(0, recorded(Path(model), prompts, new_tokens))
    parts = ["a_max on fresh batches, mean over layers and 1000 batches, `optimal` / `aebs`.\n"]
    with click.progressbar(length=len(works) * len(INSTANCES) * len(BATCHES), label="placing") as bar:
        parts += [table(work, lambda: bar.update(1)) + "\n" for work in works]
    parts.append(
        f"## Processor time on one core, batch 64\n\n{timing(60)}\n\n![before and after](placement.png)"
    )
    picture(works[-3], Path(__file__).parent / "results" / "placement.png")
    command = f"python benchmarks/bench_placement.py --model {model} --layers {layers} --prompts {prompts}"
    click.echo(f"written to {write('placement', 'Placement', command, chr(10).join(parts))}")


if __name__ == "__main__":
    main()
