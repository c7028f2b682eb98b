"""``janus up``."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from janus_cli import detach as background
from janus_cli.models import resolve
from janus_cli.options import Number, json_option, run_dir_option
from janus_cli.progress import LineReporter, LiveReporter, reporter
from janus_cli.rundir import SUPERVISOR_LOG, RunDir
from janus_cli.signals import stop_signals, unless
from janus_cli.spec import MeshSpec
from janus_cli.supervisor import START_DEADLINE_S, Supervisor

_PORT = click.IntRange(0, 65535)


@click.command()
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Hugging Face checkpoint directory.  [default: the demo model, built when missing]",
)
@click.option(
    "--attention", type=click.IntRange(1, 1024), default=1, show_default=True, help="Attention workers."
)
@click.option("--experts", type=click.IntRange(1, 1024), default=1, show_default=True, help="MoE workers.")
@click.option(
    "--nodes", type=click.IntRange(1, 1024), default=1, show_default=True, help="Machines to act as."
)
@click.option(
    "--http-port", type=_PORT, default=0, show_default=True, help="OpenAI-compatible API; 0 picks one."
)
@click.option("--grpc-port", type=_PORT, default=0, show_default=True, help="Gateway's gRPC; 0 picks one.")
@click.option(
    "--gateways",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Doors; the ports given are the first one's, the others pick theirs.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that gateways bind.")
@click.option(
    "--gating",
    type=click.Choice(["moe", "attention"]),
    default="moe",
    show_default=True,
    help="Side that runs the router.",
)
@click.option(
    "--scheduling",
    type=click.Choice(["optimal", "aebs", "token-balanced", "random"]),
    default="optimal",
    show_default=True,
    help="Activation scheduling policy.",
)
@click.option(
    "--exchange",
    type=click.Choice(["auto", "1pc", "2pc-1", "2pc-2"]),
    default="auto",
    show_default=True,
    help="How layers are exchanged between nodes: in one phase, in two, or as is quickest.",
)
@click.option(
    "--slots",
    type=click.IntRange(0, 1024),
    default=0,
    show_default=True,
    help="Expert slots per MoE worker and layer; 0: one per expert.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True
)
@click.option(
    "--expert-dtype",
    type=click.Choice(["same", "float32", "bfloat16", "float16", "int8", "int4"]),
    default="same",
    show_default=True,
    help="Widest dtype of routed experts; int8 and int4 quantise them at load.",
)
@click.option(
    "--attention-dtype",
    type=click.Choice(["same", "int8", "int4"]),
    default="same",
    show_default=True,
    help="Quantise the matrices of attention, dense FFNs and shared experts at load.",
)
@click.option(
    "--device",
    default="cpu",
    show_default=True,
    help="cpu, cuda:INDEX, or cuda: workers are dealt out over the GPUs.",
)
@click.option(
    "--kv-tokens", type=click.IntRange(0), default=0, help="Tokens each KV cache holds.  [default: 16384]"
)
@click.option(
    "--max-batch-tokens",
    type=click.IntRange(0),
    default=0,
    help="Most tokens per worker and step.  [default: 512]",
)
@click.option(
    "--autoscale",
    type=click.Choice(["off", "advise", "act"]),
    default="advise",
    show_default=True,
    help="Whether the autoscaler plans pool sizes, and whether it changes them.",
)
@click.option(
    "--tpot-ms",
    type=Number(0, 600_000, min_open=True),
    default=200.0,
    show_default=True,
    help="Its objective until one is set: 95th percentile of time per output token.",
)
@click.option("--namespace", default="janus", show_default=True, help="Prefix of the keys in Redis.")
@click.option(
    "--redis-url", envvar="REDIS_URL", show_envvar=True, help="A running Redis.  [default: a private one]"
)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
@click.option(
    "--start-deadline", type=Number(1), default=START_DEADLINE_S, show_default=True, help="Seconds."
)
@click.option(
    "--restart/--no-restart", default=True, help="Start a service again when it dies.  [default: restart]"
)
@click.option("--detach", is_flag=True, help="Return when the mesh is ready and leave it running.")
@click.option("--daemon", is_flag=True, hidden=True, help="Be the supervisor that --detach leaves behind.")
@click.option("--hold-stdin", is_flag=True, hidden=True, help="End when standard input ends.")
@json_option
@run_dir_option
def command(
    model: Path | None, run_dir: RunDir, as_json: bool, detach: bool, daemon: bool, hold_stdin: bool,
    restart: bool, start_deadline: float, redis_url: str | None, **options: Any,
) -> None:  # fmt: skip
    """Start a mesh on this machine: Redis, scheduler, MoE and attention workers, gateway, autoscaler.

    Without --detach it stays in the foreground, starts again what dies, and Ctrl-C stops everything.
    Settings of single services come from the environment: JANUS_<ROLE>_<FIELD>, see `python -m janus_moe --help`.
    """
    checkpoint = resolve(model)
    if detach:
        _detach(run_dir, as_json)
        return
    spec = MeshSpec(model=checkpoint, **options)
    with LineReporter() if daemon else reporter() as report:
        supervisor = Supervisor(
            spec, run_dir, report, redis_url=redis_url or "", restart=restart, start_deadline_s=start_deadline
        )
        asyncio.run(serve(supervisor, report, as_json=as_json, daemon=daemon, hold_stdin=hold_stdin))


async def serve(
    supervisor: Supervisor,
    report: LineReporter | LiveReporter,
    *,
    as_json: bool,
    daemon: bool,
    hold_stdin: bool,
) -> None:
    """Start, say where it is, watch, until a signal (or the end of standard input)."""
    async with stop_signals(with_stdin=hold_stdin) as stop, supervisor:
        await unless(stop, supervisor.start())
        if stop.is_set():
            report.say("stopping")
            return
        mesh = supervisor.describe()
        click.echo(json.dumps(mesh) if as_json else _text(mesh))
        sys.stdout.flush()
        if daemon:
            _to_log(supervisor.run_dir)
        await supervisor.run(stop)
        report.say("stopping")


def _text(mesh: dict[str, Any]) -> str:
    return (
        f"OpenAI-compatible API  http://{mesh['http']}/v1\n"
        f"gRPC                   {mesh['grpc']}\n"
        f"Ask something          janus chat   (another terminal; Ctrl-C here stops the mesh)"
    )


def _detach(run_dir: RunDir, as_json: bool) -> None:
    arguments = [a for a in sys.argv[1:] if a != "--detach"]
    mesh = background.start_daemon([*arguments, "--daemon", *([] if as_json else ["--json"])])
    if as_json:
        click.echo(json.dumps(mesh))
    else:
        click.echo(
            _text(mesh).replace(
                "   (another terminal; Ctrl-C here stops the mesh)", "   (stop it: janus down)"
            )
        )
        click.echo(f"Logs                   {run_dir.logs}")


def _to_log(run_dir: RunDir) -> None:
    """From here on a detached supervisor speaks to its log: whoever started it has gone."""
    log = os.open(run_dir.logs / SUPERVISOR_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(null)
