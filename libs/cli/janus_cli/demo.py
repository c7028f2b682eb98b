"""``python -m janus_cli.demo``, what ``make demo`` runs: a whole mesh, one question, who did what, a clean end."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from janus_runtime.errors import FailedPrecondition, JanusError
from janus_runtime.records import Role
from rich.console import Console
from rich.table import Table

from janus_cli.errors import fail_cleanly
from janus_cli.models import LOCAL_DEMO, build_demo
from janus_cli.progress import out_console, reporter
from janus_cli.rundir import RunDir
from janus_cli.signals import stop_signals, unless
from janus_cli.spec import MeshSpec
from janus_cli.stats import WorkerStats, gather_stats
from janus_cli.supervisor import Supervisor
from janus_cli.view import MeshView, look_at

_QUESTION = "What is the capital of France, and what is it known for?"
_ANSWER_DEADLINE_S = 120.0
_STATS_SETTLE_S = 1.5
"""Workers report about once a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the mesh said."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    first_token_s: float
    total_s: float
    trace_id: str


@click.command()
@click.option(
    "--model", type=click.Path(file_okay=False, path_type=Path), default=LOCAL_DEMO, show_default=True
)
@click.option(
    "--attention", type=click.IntRange(1, 64), default=2, show_default=True, help="Attention workers."
)
@click.option("--experts", type=click.IntRange(1, 64), default=3, show_default=True, help="MoE workers.")
@click.option("--question", default=_QUESTION, show_default=True)
@click.option("--max-tokens", type=click.IntRange(1, 2000), default=96, show_default=True)
@click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".janus/run"),
    show_default=True,
)
def main(model: Path, attention: int, experts: int, question: str, max_tokens: int, run_dir: Path) -> None:
    """Build the demo model, start a mesh, ask it something, show which workers did what, and leave."""
    began = time.monotonic()
    with fail_cleanly(), reporter() as report:
        spec = MeshSpec(model=build_demo(model).resolve(), attention=attention, experts=experts)
        supervisor = Supervisor(spec, RunDir(run_dir.absolute()), report, restart=False)
        finished = asyncio.run(_run(supervisor, question, max_tokens, run_dir))
        if not finished:
            report.say("interrupted; the mesh is gone")
            raise click.exceptions.Exit(130)
        report.say(f"the mesh is gone; the demo took {time.monotonic() - began:.0f} s")


async def _run(supervisor: Supervisor, question: str, max_tokens: int, run_dir: Path) -> bool:
    """False when a signal came first."""
    async with stop_signals() as stop, supervisor:
        await unless(stop, _demo(supervisor, question, max_tokens, run_dir))
        return not stop.is_set()


async def _demo(supervisor: Supervisor, question: str, max_tokens: int, run_dir: Path) -> None:
    await supervisor.start()
    ended = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.run(ended))  # raises when a worker dies
            await _question(supervisor, question, max_tokens, run_dir)
            ended.set()
    except* JanusError as group:
        raise group.exceptions[0] from None


async def _question(supervisor: Supervisor, question: str, max_tokens: int, run_dir: Path) -> None:
    spec, mesh = supervisor.spec, supervisor.describe()
    console = out_console()
    console.print(
        f"{spec.attention} attention and {spec.experts} MoE workers serve http://{mesh['http']}/v1\n"
    )
    console.print(f"[bold]> {question}[/bold]")
    answer = await ask(mesh["http"], question, max_tokens, console)
    if not answer.text.strip():
        raise FailedPrecondition(
            "the model answered nothing", next_step=f"Look at {supervisor.run_dir.logs}."
        )
    console.print(
        f"\n\n{answer.prompt_tokens} tokens in, {answer.completion_tokens} out, {answer.total_s:.1f} s "
        f"(the first after {answer.first_token_s:.2f} s)\n"
    )
    await asyncio.sleep(_STATS_SETTLE_S)
    view = await look_at(supervisor.redis_url, spec.namespace)
    stats = await gather_stats([*view.of(Role.ATTENTION), *view.of(Role.MOE)])
    console.print(work_table(view, stats))
    command = f"{Path(sys.executable).parent / 'janus'} trace {answer.trace_id} --run-dir {run_dir}"
    console.print(f"\ntrace {answer.trace_id}; see its spans with:\n  {command}")


async def ask(http: str, question: str, max_tokens: int, console: Console) -> Answer:
    """Ask over the OpenAI-compatible API with the official client, printing the answer as it comes."""
    from openai import APIError, AsyncOpenAI

    began, first, text, usage = time.monotonic(), 0.0, "", None
    try:
        async with AsyncOpenAI(
            base_url=f"http://{http}/v1", api_key="none", max_retries=0, timeout=_ANSWER_DEADLINE_S
        ) as client:
            model = (await client.models.list()).data[0].id
            response = await client.chat.completions.with_raw_response.create(
                model=model,
                messages=[{"role": "user", "content": question}],
                max_tokens=max_tokens,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
            )
            trace_id = response.headers.get("x-trace-id", "")
            async for chunk in response.parse():
                usage = chunk.usage or usage
                piece = chunk.choices[0].delta.content if chunk.choices else None
                if piece:
                    first = first or time.monotonic()
                    text += piece
                    console.out(piece, end="", highlight=False)
    except APIError as error:
        raise FailedPrecondition(f"the gateway answered: {error}") from error
    return Answer(
        text=text,
        prompt_tokens=usage.prompt_tokens if usage else 0,
        completion_tokens=usage.completion_tokens if usage else 0,
        first_token_s=(first or time.monotonic()) - began,
        total_s=time.monotonic() - began,
        trace_id=trace_id,
    )


def work_table(view: MeshView, stats: Sequence[WorkerStats]) -> Table:
    """Which worker did what."""
    cohort = view.cohort
    title = f"cohort epoch {cohort.epoch}, layout {cohort.layout_version}" if cohort else "no cohort"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for column in (
        "worker",
        "role",
        "steps",
        "tokens",
        "expert calls",
        "expert tokens",
        "sent",
        "received",
        "over",
    ):
        table.add_column(
            column, justify="left" if column in ("worker", "role", "over") else "right", no_wrap=True
        )
    for s in stats:
        if s.error:
            table.add_row(s.worker_id, s.role.value, s.error)
            continue
        attention = s.role is Role.ATTENTION
        table.add_row(
            s.worker_id,
            s.role.value,
            f"{s.steps:,}",
            f"{s.prompt_tokens + s.generated_tokens:,}" if attention else "",
            "" if attention else f"{s.expert_calls:,}",
            "" if attention else f"{s.expert_tokens:,}",
            f"{s.bytes_sent / 1e6:,.1f} MB",
            f"{s.bytes_received / 1e6:,.1f} MB",
            s.transport,
        )
    return table


if __name__ == "__main__":
    main()
