"""``janus top``."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping

import click
from janus_runtime.coordination import Coordination
from janus_runtime.errors import Unavailable
from janus_runtime.records import Role
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from janus_cli.options import Number, run_dir_option
from janus_cli.progress import out_console
from janus_cli.rundir import RunDir
from janus_cli.signals import stop_signals
from janus_cli.stats import WorkerStats, gather_stats
from janus_cli.view import MeshView, connect, look


@click.command()
@click.option("--every", type=Number(0.2, 60), default=1.0, show_default=True, help="Seconds.")
@click.option(
    "--rounds", type=click.IntRange(0), default=0, help="Stop after so many looks.  [default: Ctrl-C]"
)
@click.option(
    "--redis-url", envvar="REDIS_URL", show_envvar=True, help="Of a mesh that `janus up` did not start."
)
@click.option("--namespace", default="janus", show_default=True, help="With --redis-url.")
@run_dir_option
def command(run_dir: RunDir, every: float, rounds: int, redis_url: str | None, namespace: str) -> None:
    """Watch the mesh work: rates of tokens, experts and bytes per worker. Ctrl-C ends it."""
    if not redis_url:
        mesh = run_dir.read_mesh()
        redis_url, namespace = str(mesh["redis"]), str(mesh["namespace"])
    asyncio.run(_watch(redis_url, namespace, every, rounds))


async def _watch(redis_url: str, namespace: str, every: float, rounds: int) -> None:
    coordination = await connect(redis_url, namespace)
    try:
        async with stop_signals() as stop:
            with Live(console=out_console(), auto_refresh=False) as live:
                await _rounds(coordination, live, stop, every, rounds)
    finally:
        await coordination.close()


async def _rounds(
    coordination: Coordination, live: Live, stop: asyncio.Event, every: float, rounds: int
) -> None:
    before: dict[str, WorkerStats] = {}
    at = time.monotonic()
    count = 0
    while not stop.is_set():
        try:
            view = await look(coordination)
            now, stats = time.monotonic(), await gather_stats([*view.of(Role.ATTENTION), *view.of(Role.MOE)])
            live.update(render(view, stats, before, max(1e-3, now - at)), refresh=True)
            before, at = {s.worker_id: s for s in stats}, now
        except Unavailable as error:
            live.update(Text(str(error)), refresh=True)
        count += 1
        if count == rounds:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every):
                await stop.wait()


def render(
    view: MeshView, stats: list[WorkerStats], before: Mapping[str, WorkerStats], seconds: float
) -> Group:
    """Rates since ``before``; a worker not in it has none yet."""
    table = Table(box=None, pad_edge=False)
    for column in (
        "worker",
        "tokens/s",
        "steps/s",
        "experts/s",
        "a_max",
        "MB/s",
        "busy",
        "running",
        "waiting",
        "KV",
    ):
        table.add_column(column, justify="left" if column == "worker" else "right")
    for now in stats:
        old = before.get(now.worker_id)
        if now.error:
            table.add_row(now.worker_id, Text(now.error, style="red"))
            continue
        if old is None or old.steps > now.steps:
            table.add_row(now.worker_id, *[""] * 8)
            continue

        def rate(now_value: float, old_value: float) -> str:
            return f"{(now_value - old_value) / seconds:,.1f}"

        moved = now.bytes_sent + now.bytes_received - old.bytes_sent - old.bytes_received
        busy = f"{min(1.0, (now.step_seconds - old.step_seconds) / seconds):.0%}"
        attention = now.role is Role.ATTENTION
        kv = f"{now.kv_tokens_used / max(1, now.kv_tokens_capacity):.0%}" if attention else ""
        table.add_row(
            now.worker_id,
            rate(now.generated_tokens, old.generated_tokens) if attention else "",
            rate(now.steps, old.steps),
            "" if attention else rate(now.expert_calls, old.expert_calls),
            "" if attention else f"{now.mean_a_max:.2f}",
            f"{moved / seconds / 1e6:,.1f}",
            busy,
            str(now.running) if attention else "",
            str(now.waiting) if attention else "",
            kv,
        )
    cohort = view.cohort
    title = f"epoch {cohort.epoch}, layout {cohort.layout_version}" if cohort else "no cohort"
    return Group(Text(title), table)
