"""``janus autoscale``."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click
import grpc
from google.protobuf.json_format import MessageToDict
from janus_runtime.channel import connect
from janus_runtime.errors import from_rpc_error
from janus_runtime.records import Role
from janus_wire.v1 import autoscaler_pb2 as pb
from janus_wire.v1 import autoscaler_pb2_grpc
from rich.table import Table

from janus_cli.errors import Failure
from janus_cli.options import Number, json_option, run_dir_option
from janus_cli.progress import out_console
from janus_cli.rundir import RunDir
from janus_cli.view import look_at

_CALL_S = 10.0


@click.command()
@click.option(
    "--tpot-ms", type=Number(0, 600_000, min_open=True), help="Set the objective: TPOT, 95th percentile."
)
@click.option(
    "--ttft-ms", type=Number(0, 6e8), help="Set the objective: mean time to the first token; 0: none."
)
@click.option("--min-attention", type=click.IntRange(1, 4096), help="Fewest attention workers.")
@click.option("--max-attention", type=click.IntRange(1, 4096), help="Most attention workers.")
@click.option("--min-moe", type=click.IntRange(1, 4096), help="Fewest MoE workers.")
@click.option("--max-moe", type=click.IntRange(1, 4096), help="Most MoE workers.")
@click.option("--explain", type=click.IntRange(1, 10_000), help="Show so many candidates, and why they lost.")
@click.option(
    "--redis-url", envvar="REDIS_URL", show_envvar=True, help="Of a mesh that `janus up` did not start."
)
@click.option("--namespace", default="janus", show_default=True, help="With --redis-url.")
@json_option
@run_dir_option
def command(
    run_dir: RunDir,
    redis_url: str | None,
    namespace: str,
    as_json: bool,
    explain: int | None,
    **objective: Any,
) -> None:
    """Show what the autoscaler observes, plans and decides; set its objective. What is not given stays as it is."""
    if not redis_url:
        mesh = run_dir.read_mesh()
        redis_url, namespace = str(mesh["redis"]), str(mesh["namespace"])
    changes = {name: value for name, value in objective.items() if value is not None}
    answer = asyncio.run(_ask(redis_url, namespace, changes, explain))
    if as_json:
        shown = {k: MessageToDict(v, preserving_proto_field_name=True) for k, v in answer.items()}
        click.echo(json.dumps(shown))
        return
    _show(answer["plan"])
    if explain:
        out_console().print(_candidates(answer["explain"]))


async def _ask(
    redis_url: str, namespace: str, changes: dict[str, Any], explain: int | None
) -> dict[str, Any]:
    view = await look_at(redis_url, namespace)
    leases = view.of(Role.AUTOSCALER)
    if not leases:
        raise Failure("this mesh has no autoscaler")
    async with connect(leases[0].grpc_address) as channel:
        stub: Any = autoscaler_pb2_grpc.AutoscalerServiceStub(channel)
        try:
            plan = await stub.GetPlan(pb.GetPlanRequest(), timeout=_CALL_S)
            if changes:
                merged = pb.Objective()
                merged.CopyFrom(plan.objective)
                for name, value in changes.items():
                    setattr(merged, name, value)
                await stub.SetObjective(pb.SetObjectiveRequest(objective=merged), timeout=_CALL_S)
                plan = await stub.GetPlan(pb.GetPlanRequest(), timeout=_CALL_S)
            answer = {"plan": plan}
            if explain:
                answer["explain"] = await stub.Explain(pb.ExplainRequest(limit=explain), timeout=_CALL_S)
            return answer
        except grpc.aio.AioRpcError as error:
            raise Failure(str(from_rpc_error(error))) from error


def _show(plan: pb.GetPlanResponse) -> None:
    goal, seen, asked = plan.objective, plan.observation, plan.demand
    ttft = f", TTFT {goal.ttft_ms:g} ms" if goal.ttft_ms else ""
    lines = [
        (
            f"objective  TPOT p95 {goal.tpot_ms:g} ms{ttft}; attention {goal.min_attention}..{goal.max_attention}, "
            f"MoE {goal.min_moe}..{goal.max_moe}"
        ),
        (
            f"now        {plan.current_attention} attention x {plan.current_moe} MoE; {seen.running} streams, "
            f"{seen.waiting} waiting; TPOT p95 {seen.tpot_ms_p95:.1f} ms"
        ),
        (
            f"demand     {asked.tokens_per_second:.1f} output tokens/s, {asked.prompt_tokens_per_second:.1f} prompt "
            f"tokens/s, {asked.backlog_tokens:.0f} tokens of backlog"
        ),
        f"plan       {plan.status}",
        f"target     {plan.target_attention} attention x {plan.target_moe} MoE ({plan.mode})"
        if plan.target_moe
        else f"target     none ({plan.mode})",
        f"model      {100 * plan.model_error:.1f}% off, median of the latest steps; "
        + ", ".join(f"{c.name} {c.value:.3g} s ({c.source})" for c in plan.coefficients if c.value),
    ]
    out_console().print("\n".join(lines), highlight=False)


def _candidates(answer: pb.ExplainResponse) -> Table:
    table = Table(
        "attention",
        "MoE",
        "cost",
        "streams",
        "TPOT, ms",
        "TTFT, ms",
        "a_max",
        "why not",
        box=None,
        pad_edge=False,
    )
    for c in answer.candidates:
        table.add_row(
            str(c.attention), str(c.moe), f"{c.cost:g}", f"{c.batch:.0f}", f"{c.predicted_tpot_ms:.1f}",
            f"{c.predicted_ttft_ms:.0f}", f"{c.a_max:.2f}", "chosen" if c.chosen else c.reason,
        )  # fmt: skip
    return table
