"""A conversation with the gateway over gRPC, and the options that say which gateway and how to sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import click
from janus_client import JanusClient
from janus_client.client import Options

from janus_cli.options import Number, run_dir_option
from janus_cli.rundir import RunDir

F = TypeVar("F", bound=Callable[..., Any])


def talk_options(command: F) -> F:
    """``--address``, ``--api-key``, ``--deadline``, the run directory and sampling; see :func:`sampling`."""
    options = [
        click.option("--address", help="Gateway's gRPC, host:port.  [default: the mesh of --run-dir]"),
        click.option(
            "--api-key", envvar="JANUS_API_KEY", show_envvar=True, help="Where the gateway asks for one."
        ),
        click.option("--deadline", type=Number(0.1), default=600.0, show_default=True, help="Seconds."),
        click.option("--max-tokens", type=click.IntRange(1), help="[default: what is left of the context]"),
        click.option("--temperature", type=Number(0), help="0: greedy.  [default: the model's]"),
        click.option("--top-p", type=Number(0, 1, min_open=True)),
        click.option("--top-k", type=click.IntRange(-1)),
        click.option("--min-p", type=Number(0, 1)),
        click.option("--seed", type=click.IntRange(0)),
        click.option("--stop", multiple=True, help="End before this text; may be repeated."),
        run_dir_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def sampling(options: dict[str, Any]) -> Options:
    """What the client's ``generate`` and ``chat`` take, of the values that were given."""
    names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")
    given: dict[str, Any] = {name: options[name] for name in names if options[name] is not None}
    return cast(Options, {**given, "stop": list(options["stop"])})


def client(address: str | None, run_dir: RunDir, *, api_key: str | None, deadline_s: float) -> JanusClient:
    """To the address given, or to the mesh that runs. Raises NotFound when none does."""
    return JanusClient(address or str(run_dir.read_mesh()["grpc"]), api_key=api_key, timeout_s=deadline_s)
