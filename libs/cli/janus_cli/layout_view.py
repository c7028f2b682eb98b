"""Which expert is where, for people: a table and a picture, coloured by how busy each replica is. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from janus_placement import LayerRouting, expected_a_max, to_hosted
from janus_placement.search import lower_bounds
from rich.console import Group
from rich.table import Table
from rich.text import Text

from janus_cli.errors import Failure

_HEAT = ("dim", "blue", "green", "yellow", "red")
Placement = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutView:
    """A layout, and what is known of the routing through it."""

    version: int
    experts: int
    slots: int
    workers: Sequence[str]
    """By MoE rank."""
    layers: Sequence[Placement]
    routing: Mapping[int, LayerRouting] = field(default_factory=dict)
    batch: Mapping[int, float] = field(default_factory=dict)
    """Mean tokens of a step, of the layers with routing."""
    scheduling: str = "optimal"

    def share(self, layer: int, placement: Placement) -> np.ndarray:
        """Share of the layer's tokens that each replica gets if its expert's replicas share them, float64 [E, n_e]; NaN
        where there is none."""
        hosted = to_hosted(placement, self.experts)
        known = self.routing.get(layer)
        if known is None or not len(known.samples):
            return np.where(hosted, 0.0, np.nan)
        share = known.counts / max(1e-9, known.counts.sum()) * known.samples.shape[1]
        spread = share[:, None] / np.maximum(1, hosted.sum(axis=1))[:, None]
        return np.where(hosted, spread, np.nan)

    def a_max(self, layer: int, placement: Placement) -> tuple[float, float] | None:
        """(expected a_max, lower bound) on batches of the size that is served; None without routing."""
        known = self.routing.get(layer)
        if known is None or not len(known.samples):
            return None
        sets = known.draw([max(1, round(self.batch.get(layer, 1.0)))], 512, layer)
        policy = self.scheduling if self.scheduling in ("optimal", "aebs") else "aebs"
        found = expected_a_max(to_hosted(placement, self.experts), sets, policy)
        return found, float(lower_bounds(sets, len(placement)).mean())


def summary(view: LayoutView) -> Text:
    """What a layout is, in this mesh's numbers."""
    replicas = sum(len(row) for row in view.layers[0])
    text = (
        f"layout {view.version}: {view.experts} experts in each of {len(view.layers)} MoE layers, on "
        f"{len(view.workers)} workers with {view.slots} slots; {replicas} replicas in layer 0, so "
        f"{replicas - view.experts} to spare"
    )
    values = [v for layer, p in enumerate(view.layers) if (v := view.a_max(layer, p)) is not None]
    if values:
        a_max, bound = np.mean(values, axis=0)
        text += (
            f"\na_max, the experts that a layer's fullest worker computes in a step: {a_max:.2f} expected over "
            f"{len(values)} layers at {np.mean(list(view.batch.values())):.0f} tokens a step; no placement gets below "
            f"{bound:.2f}"
        )
    else:
        text += "\nno routing was reported in the last minutes: ask the model something to see which experts are busy"
    return Text(text)


def table(view: LayoutView, layer: int, placement: Placement, title: str = "") -> Group:
    """One layer: a row per worker, its experts coloured from idle to busy."""
    share = view.share(layer, placement)
    top = np.nanmax(share)
    rows = Table("worker", "experts", "share of tokens", box=None, pad_edge=False)
    rows.columns[2].justify = "right"
    for rank, row in enumerate(placement):
        cells = Text()
        heats = share[:, rank]
        for expert in sorted(row, key=(-heats).item):
            heat = 0 if not top else min(len(_HEAT) - 1, int(heats[expert] / top * len(_HEAT)))
            cells.append(f"{expert} ", _HEAT[heat])
        total = f"{np.nansum(heats) / max(1e-9, np.nansum(share)):.0%}" if top else ""
        rows.add_row(view.workers[rank] if rank < len(view.workers) else f"rank {rank}", cells, total)
    value = view.a_max(layer, placement)
    says = f", a_max {value[0]:.2f}, bound {value[1]:.2f}" if value else ""
    scale = Text("experts from idle to busy: ")
    for name, style in zip(("idle", "little", "some", "much", "most"), _HEAT, strict=True):
        scale.append(f"{name} ", style)
    return Group(Text(f"layer {layer}{title}{says}", "bold"), rows, *([scale] if top else []))


def picture(view: LayoutView, layers: Sequence[int], after: Mapping[int, Placement], path: Path) -> None:
    """Experts x instances of some layers as a PNG, tokens per replica; beside each what is proposed for it."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise Failure("a picture needs matplotlib: pip install matplotlib") from error
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    wide = 1 + bool(after)
    tall = min(12.0, 1.8 + 0.22 * view.experts)
    figure, axes = plt.subplots(
        len(layers), wide, figsize=(4.2 * wide, tall * len(layers)), layout="constrained", squeeze=False
    )
    for row, layer in zip(axes, layers, strict=True):
        known = view.routing.get(layer)
        order = np.argsort(-known.counts, kind="stable") if known is not None else np.arange(view.experts)
        sides = [("in force", view.layers[layer])] + (
            [("proposed" if layer in after else "stays", after.get(layer, view.layers[layer]))]
            if after
            else []
        )
        shares = [view.share(layer, placement)[order] for _, placement in sides]
        top = max(1e-9, *(float(np.nanmax(share)) for share in shares))
        for axis, (name, placement), share in zip(row, sides, shares, strict=True):
            image = axis.imshow(
                share, aspect="auto", cmap="viridis", vmin=0, vmax=top, interpolation="nearest"
            )
            value = view.a_max(layer, placement)
            says = f"\na_max {value[0]:.2f}, bound {value[1]:.2f}" if value else ""
            axis.set_title(f"layer {layer}, {name}{says}", fontsize=10)
            axis.set_xticks(range(len(view.workers)), view.workers, rotation=45, ha="right", fontsize=8)
            if view.experts <= 64:
                axis.set_yticks(range(view.experts), [str(e) for e in order], fontsize=7)
        row[0].set_ylabel("expert, the busiest first")
        figure.colorbar(image, ax=list(row), label="tokens' share per replica")
    figure.savefig(path, dpi=110)
    plt.close(figure)
