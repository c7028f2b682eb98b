"""``janus plan``."""

from __future__ import annotations

import json
from typing import Any

import click
from janus_scaling import Candidate, Demand, Plan, ScalingError
from janus_simulator import SYSTEMS, Planner, planner
from rich.table import Table

from janus_cli import what_if
from janus_cli.errors import Failure
from janus_cli.options import Number, json_option, run_dir_option
from janus_cli.progress import out_console
from janus_cli.rundir import RunDir
from janus_cli.scaling_options import setting, setting_options, system_choice
from janus_cli.what_if import Size, with_mesh


@click.command()
@click.option("--batch", type=Number(1, 1 << 20), help="Streams that decode at once.")
@click.option(
    "--rate", type=Number(0, 1e9), help="Output tokens per second; the batch follows by Little's law."
)
@click.option(
    "--prompt-rate", type=Number(0, 1e9), default=0.0, show_default=True, help="Prompt tokens per second."
)
@click.option(
    "--prompt-length", type=Number(1, 1e7), default=16.0, show_default=True, help="Mean tokens of a prompt."
)
@click.option("--context", type=Number(1, 1e7), default=150.0, show_default=True, help="Mean cached tokens.")
@click.option(
    "--backlog", type=Number(0, 1e12), default=0.0, show_default=True, help="Output tokens queued already."
)
@click.option(
    "--drain-s", type=Number(0, 1e6, min_open=True), default=60.0, show_default=True, help="To work it off."
)
@system_choice(default="janus", show_default=True)
@setting_options
@click.option(
    "--what-if",
    "sizes",
    type=Size(),
    multiple=True,
    help="Of these sizes too, e.g. 2x8: TPOT, and a_max by placement and schedule. May be repeated.",
)
@click.option(
    "--from-mesh",
    is_flag=True,
    help="Plan on the routing that a running mesh reported in the last minutes, and its slots; --model is its model.",
)
@click.option(
    "--redis-url",
    envvar="REDIS_URL",
    show_envvar=True,
    help="With --from-mesh, of one that `janus up` did not start.",
)
@click.option("--namespace", default="janus", show_default=True, help="With --redis-url.")
@click.option(
    "--show", type=click.IntRange(0, 10_000), default=8, show_default=True, help="Other candidates to show."
)
@json_option
@run_dir_option
def command(
    batch: float | None, rate: float | None, prompt_rate: float, prompt_length: float, context: float, backlog: float,
    drain_s: float, system: str, sizes: tuple[tuple[int, int], ...], from_mesh: bool, redis_url: str | None,
    namespace: str, run_dir: RunDir, show: int, as_json: bool, **values: Any,
) -> None:  # fmt: skip
    """Choose the sizes of both pools for a load: the least cost that meets the objective, and why others lost."""
    if (batch is None) == (rate is None):
        raise click.UsageError("give --batch or --rate, one of them")
    if sizes and SYSTEMS[system].colocated:
        raise click.UsageError(f"--what-if is about pools of two kinds of workers; {system} has one")
    try:
        given = setting(values)
        made = planner(system, with_mesh(given, run_dir, redis_url, namespace) if from_mesh else given)
        load = Demand(
            tokens_per_s=rate or 0.0, prompt_tokens_per_s=prompt_rate, prompt_length=prompt_length, context=context,
            backlog_tokens=backlog,
        )  # fmt: skip
        if batch is None:
            plan = made.plan(load.with_backlog(drain_s))
        else:
            plan = made.plan(load, batch=batch)
    except ScalingError as error:
        raise Failure(str(error)) from error
    answers = what_if.ask(plan, made.setting, made.slots, sizes) if sizes else []
    others = [c for c in plan.candidates if c is not plan.chosen]
    if as_json:
        found = _json(made, plan, others[:show])
        click.echo(json.dumps({**found, "what_if": what_if.as_json(answers)} if sizes else found, indent=1))
    else:
        _print(made, plan, others[:show], len(others))
        if answers:
            out_console().print("\nwhat if: a_max by placement and schedule, on batches of as many streams")
            out_console().print(what_if.table(answers))
    if plan.chosen is None:
        raise Failure("no candidate meets the objective; the table says why")


def _fields(plan: Plan, c: Candidate) -> dict[str, Any]:
    parts = c.time
    return {
        "attention": c.n_a, "moe": c.n_e, "workers": c.workers, "cost": c.cost, "feasible": c.feasible,
        "batch": c.batch, "tpot_ms": 1e3 * c.tpot_s, "ttft_ms": 1e3 * c.ttft_s if c.ttft_s < 1e9 else None,
        "a_max": c.a_max, "tokens_per_s_per_worker": c.tokens_per_s_per_worker,
        "attention_ms": 1e3 * parts.attention, "moe_ms": 1e3 * parts.moe, "comm_ms": 1e3 * parts.comm,
        "why_not": plan.why_not(c),
    }  # fmt: skip


def _json(made: Planner, plan: Plan, others: list[Candidate]) -> dict[str, Any]:
    return {
        "system": made.system.name,
        "model": made.setting.model.name,
        "slots": made.slots,
        "chosen": _fields(plan, plan.chosen) if plan.chosen else None,
        "others": [_fields(plan, c) for c in others],
        "candidates": len(plan.candidates),
    }


def _print(made: Planner, plan: Plan, others: list[Candidate], count: int) -> None:
    console, best = out_console(), plan.chosen
    setting_ = made.setting
    where = " and ".join(dict.fromkeys((setting_.attention.name, setting_.moe.name)))
    console.print(
        f"{setting_.model.name} on {where}, {made.system.name}, TPOT {1e3 * setting_.target.tpot_s:g} ms"
    )
    if best:
        sizes = f"{best.n_a} with both" if made.system.colocated else f"{best.n_a} attention + {best.n_e} MoE"
        console.print(
            f"[bold]{sizes}[/]: {best.workers} workers, {best.batch:.0f} streams, TPOT {1e3 * best.tpot_s:.1f} ms, "
            f"a_max {best.a_max:.2f}, {best.tokens_per_s_per_worker:.1f} tokens/s per worker"
        )
    if not others:
        return
    table = Table(
        "attention", "MoE", "cost", "streams", "TPOT, ms", "a_max", "why not", box=None, pad_edge=False
    )
    for c in others:
        table.add_row(
            str(c.n_a), str(c.n_e), f"{c.cost:g}", f"{c.batch:.0f}", f"{1e3 * c.tpot_s:.1f}", f"{c.a_max:.2f}",
            plan.why_not(c),
        )  # fmt: skip
    console.print(table)
    if count > len(others):
        console.print(f"... and {count - len(others)} more (--show)", style="dim")
