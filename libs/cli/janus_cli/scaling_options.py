"""Options that `janus plan` and `janus simulate` share: model, hardware, routing, objective."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from janus_scaling import (
    MODELS,
    PROFILES,
    Bounds,
    Coefficients,
    ScalingError,
    Target,
    profile,
    roofline,
    shape,
    synthetic_layers,
)
from janus_simulator import SYSTEMS, Setting

from janus_cli.errors import Failure
from janus_cli.options import Number

F = TypeVar("F", bound=Callable[..., Any])


def setting_options(command: F) -> F:
    """Adds them; :func:`setting` takes their values."""
    most = click.IntRange(1, 512)
    options = [
        click.option(
            "--model", default="deepseek-v2", show_default=True,
            help=f"{', '.join(MODELS)}, or the directory of a checkpoint.",
        ),
        click.option(
            "--hardware", default="h100", show_default=True,
            help=f"Of both pools: {', '.join(PROFILES)}, or a profile's .json file.",
        ),
        click.option("--attention-hardware", help="Of the attention pool."),
        click.option("--moe-hardware", help="Of the MoE pool."),
        click.option(
            "--price", type=(Number(0, min_open=True), Number(0, min_open=True)),
            help="Of an attention and of a MoE worker.  [default: the profiles']",
        ),
        click.option(
            "--coefficients", "coefficients_file", type=click.Path(dir_okay=False, exists=True, path_type=Path),
            help="JSON of measured coefficients, seconds; those left out are the profiles'.",
        ),
        click.option("--tpot-ms", type=Number(0, 3.6e6, min_open=True), default=200.0, show_default=True),
        click.option("--ttft-ms", type=Number(0, min_open=True), help="[default: no objective]"),
        click.option("--slots", type=click.IntRange(1, 1024), help="Per MoE worker and layer.  [default: what fits]"),
        click.option("--max-attention", type=most, default=32, show_default=True),
        click.option("--max-moe", type=most, default=32, show_default=True),
        click.option(
            "--spare-attention", type=click.IntRange(0, 64), default=0, show_default=True,
            help="The objective holds with this many attention workers lost.",
        ),
        click.option("--spare-moe", type=click.IntRange(0, 64), default=0, show_default=True, help="The same of MoE."),
        click.option(
            "--skew", type=Number(0, 10), default=0.9, show_default=True,
            help="Synthetic routing: exponent of the experts' popularity.",
        ),
        click.option(
            "--topic", type=Number(0, 10), default=0.0, show_default=True,
            help="Synthetic routing: how much topics favour experts of their own.",
        ),
        click.option(
            "--idle", type=Number(0, 1), default=0.2, show_default=True,
            help="Synthetic routing: share of experts hardly ever chosen.",
        ),
        click.option("--seed", type=int, default=0, show_default=True, help="Of routing and arrivals."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def setting(values: dict[str, Any]) -> Setting:
    """A Setting from :func:`setting_options`' values, which are taken out of ``values``. Raises Failure."""
    take = values.pop
    try:
        model = shape(take("model"))
        both = take("hardware")
        pools = [profile(take(f"{pool}_hardware") or both) for pool in ("attention", "moe")]
        if prices := take("price"):
            pools = [dataclasses.replace(p, price=price) for p, price in zip(pools, prices, strict=True)]
        ttft = take("ttft_ms")
        routing = synthetic_layers(
            model.num_experts, model.top_k, layers=1, seed=values["seed"], skew=take("skew"), topic=take("topic"),
            idle=take("idle"),
        )  # fmt: skip
        return Setting(
            model=model, routing=routing, attention=pools[0], moe=pools[1], seed=take("seed"), slots=take("slots") or 0,
            target=Target(tpot_s=take("tpot_ms") / 1e3, ttft_s=float("inf") if ttft is None else ttft / 1e3),
            coefficients=_coefficients(take("coefficients_file"), roofline(model, *pools)),
            bounds=Bounds(
                max_attention=take("max_attention"), max_moe=take("max_moe"),
                spare_attention=take("spare_attention"), spare_moe=take("spare_moe"),
            ),
        )  # fmt: skip
    except ScalingError as error:
        raise Failure(str(error)) from error


def _coefficients(path: Path | None, base: Coefficients) -> Coefficients:
    if path is None:
        return base
    known = [f.name for f in dataclasses.fields(Coefficients)]
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ScalingError(str(path), error, "a JSON object of coefficients") from error
    if not isinstance(raw, dict):
        raise ScalingError(str(path), type(raw).__name__, "a JSON object of coefficients")
    for name, value in raw.items():
        if name not in known:
            raise ScalingError(f"{path}: name", repr(name), ", ".join(known))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ScalingError(f"{path}: {name}", repr(value), "seconds, a number of 0 or more")
    return dataclasses.replace(base, **raw)


def system_choice(**attrs: Any) -> Callable[[F], F]:
    """``--system``."""
    return click.option("--system", type=click.Choice(list(SYSTEMS)), **attrs)
