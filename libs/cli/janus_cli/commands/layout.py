"""``janus layout``."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import click
import grpc
from janus_runtime.channel import connect as grpc_connect
from janus_runtime.coordination import Coordination
from janus_runtime.errors import NotFound, Unavailable, from_rpc_error
from janus_runtime.records import CohortRecord, LayoutRecord, Lease, Role
from janus_wire.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc

from janus_cli.errors import Failure
from janus_cli.layout_view import LayoutView, picture, summary, table
from janus_cli.options import json_option, run_dir_option
from janus_cli.progress import out_console
from janus_cli.recent_routing import recent_routing
from janus_cli.rundir import RunDir
from janus_cli.view import connect

_ASK_S = 150.0


@click.command()
@click.option(
    "--version", type=click.IntRange(0), default=0, help="Of an earlier layout.  [default: the one in force]"
)
@click.option(
    "--layer",
    "layers",
    type=click.IntRange(0),
    multiple=True,
    help="May be repeated.  [default: some that move, or the first]",
)
@click.option(
    "--what-if", is_flag=True, help="Ask the scheduler what it would change now, and show it beside."
)
@click.option(
    "--apply", "target", type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help="Move to the layout in this file, made with --json. The next look may move on; --rebalance-s 0 looks never.",
)  # fmt: skip
@click.option(
    "--picture", "png", type=click.Path(dir_okay=False, path_type=Path), help="Draw the layers into this PNG."
)
@click.option(
    "--redis-url", envvar="REDIS_URL", show_envvar=True, help="Of a mesh that `janus up` did not start."
)
@click.option("--namespace", default="janus", show_default=True, help="With --redis-url.")
@json_option
@run_dir_option
def command(
    version: int, layers: tuple[int, ...], what_if: bool, target: Path | None, png: Path | None, run_dir: RunDir,
    redis_url: str | None, namespace: str, as_json: bool,
) -> None:  # fmt: skip
    """Show which expert is on which MoE worker, how busy each is, and what another placement would bring."""
    if version and (what_if or target):
        raise click.UsageError("--what-if and --apply are about the layout in force; leave --version out")
    if not redis_url:
        mesh = run_dir.read_mesh()
        redis_url, namespace = str(mesh["redis"]), str(mesh["namespace"])
    placement = _placement(target) if target else None
    view, answer = asyncio.run(_look(redis_url, namespace, version, what_if, placement))
    moves = {v.layer: _rows(v.proposed) for v in answer.layers if v.moves} if answer is not None else {}
    shown = layers or tuple(sorted(moves)[:4]) or (0,)
    if bad := [layer for layer in shown if layer >= len(view.layers)]:
        raise click.BadParameter(
            f"{bad[0]}: this model has MoE layers 0 to {len(view.layers) - 1}", param_hint="--layer"
        )
    if png:
        picture(view, shown, moves, png)
    if as_json:
        click.echo(json.dumps(_json(view, answer)))
        return
    console = out_console()
    console.print(summary(view))
    for layer in shown:
        console.print()
        console.print(table(view, layer, view.layers[layer]))
        if layer in moves:
            console.print(table(view, layer, moves[layer], ", proposed" if what_if else ", from now on"))
    if answer is not None:
        verb = "done" if answer.changed else "would do" if what_if else "not done"
        console.print(f"\n{verb}: {answer.reason}")
    if answer is not None and target and not answer.changed:
        raise Failure(f"the layout stays: {answer.reason}")


async def _look(
    redis_url: str,
    namespace: str,
    version: int,
    what_if: bool,
    target: list[common_pb2.LayerPlacement] | None,
) -> tuple[LayoutView, scheduler_pb2.RebalanceResponse | None]:
    coordination = await connect(redis_url, namespace)
    try:
        cohort = await coordination.cohort()
        if cohort is None:
            raise Unavailable(
                "no layout yet: no cohort has formed", reason="NO_COHORT", next_step="See `janus status`."
            )
        layout = await coordination.layout(version or cohort.layout_version)
        if layout is None:
            raise NotFound(f"layout {version} does not exist or is too old", field="--version", value=version)
        view = await _view(coordination, cohort, layout)
        if not what_if and target is None:
            return view, None
        schedulers = [lease for lease in await coordination.workers() if lease.role is Role.SCHEDULER]
        leader = await coordination.leader()
        schedulers.sort(key=lambda lease: lease.worker_id != leader)
        return view, await _ask(schedulers, what_if, target)
    finally:
        await coordination.close()


async def _view(coordination: Coordination, cohort: CohortRecord, layout: LayoutRecord) -> LayoutView:
    """With the routing that Redis still has: some minutes of it."""
    known = await recent_routing(coordination, layout.num_experts)
    return LayoutView(
        version=layout.version, experts=layout.num_experts, slots=layout.slots,
        workers=[m.worker_id for m in cohort.moe], layers=layout.placement, routing=known.layers,
        batch=known.batch, scheduling=cohort.scheduling,
    )  # fmt: skip


async def _ask(
    schedulers: list[Lease], what_if: bool, target: list[common_pb2.LayerPlacement] | None
) -> scheduler_pb2.RebalanceResponse:
    if not schedulers:
        raise Unavailable("no scheduler has a lease", reason="NO_SCHEDULER", next_step="See `janus status`.")
    request = scheduler_pb2.RebalanceRequest(dry_run=what_if, placement=target or [])
    async with grpc_connect(schedulers[0].grpc_address) as channel:
        try:
            stub: Any = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            answer: scheduler_pb2.RebalanceResponse = await stub.Rebalance(request, timeout=_ASK_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
    return answer


def _rows(placement: common_pb2.LayerPlacement) -> list[list[int]]:
    return [list(row.experts) for row in placement.instances]


def _placement(path: Path) -> list[common_pb2.LayerPlacement]:
    """From a file that ``--json`` has written, or its ``layers`` alone."""
    try:
        raw = json.loads(path.read_text())
        return [
            common_pb2.LayerPlacement(instances=[common_pb2.InstancePlacement(experts=row) for row in layer])
            for layer in (raw["layers"] if isinstance(raw, dict) else raw)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(
            f"{path} is no layout ({type(error).__name__}: {error}); expected what `janus layout --json` prints: "
            '{"layers": [[[expert, ...] per worker] per MoE layer]}'
        ) from error


def _json(view: LayoutView, answer: scheduler_pb2.RebalanceResponse | None) -> dict[str, Any]:
    values = {layer: view.a_max(layer, placement) for layer, placement in enumerate(view.layers)}
    found: dict[str, Any] = {
        "version": view.version, "experts": view.experts, "slots": view.slots, "workers": list(view.workers),
        "layers": [[list(row) for row in layer] for layer in view.layers],
        "a_max": {layer: {"expected": v[0], "bound": v[1]} for layer, v in values.items() if v},
    }  # fmt: skip
    if answer is not None:
        found["rebalance"] = {
            "changed": answer.changed, "reason": answer.reason, "replicas": answer.replicas_loaded,
            "layers": [
                {
                    "layer": v.layer, "a_max_before": v.a_max_before, "a_max_after": v.a_max_after,
                    "bound": v.lower_bound, "moves": v.moves, "reason": v.reason, "replicas": v.replicas,
                    "proposed": _rows(v.proposed),
                }
                for v in answer.layers
            ],
        }  # fmt: skip
    return found
