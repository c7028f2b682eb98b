"""A conversation with the gateway over gRPC, and the options that say which gateway and how to sample."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click
import grpc
from janus_wire.v1 import common_pb2, generation_pb2, generation_pb2_grpc

from janus_cli.options import run_dir_option
from janus_cli.rundir import RunDir

F = TypeVar("F", bound=Callable[..., Any])
_MAX_MESSAGE = 64 * 1024 * 1024


def talk_options(command: F) -> F:
    """``--address``, ``--api-key``, ``--deadline``, the run directory and sampling; see :func:`sampling`."""
    options = [
        click.option("--address", help="Gateway's gRPC, host:port.  [default: the mesh of --run-dir]"),
        click.option(
            "--api-key", envvar="JANUS_API_KEY", show_envvar=True, help="Where the gateway asks for one."
        ),
        click.option(
            "--deadline", type=click.FloatRange(0.1), default=600.0, show_default=True, help="Seconds."
        ),
        click.option("--max-tokens", type=click.IntRange(1), help="[default: what is left of the context]"),
        click.option("--temperature", type=click.FloatRange(0), help="0: greedy.  [default: the model's]"),
        click.option("--top-p", type=click.FloatRange(0, 1, min_open=True)),
        click.option("--top-k", type=click.IntRange(-1)),
        click.option("--min-p", type=click.FloatRange(0, 1)),
        click.option("--seed", type=click.IntRange(0)),
        click.option("--stop", multiple=True, help="End before this text; may be repeated."),
        run_dir_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


def sampling(options: dict[str, Any]) -> common_pb2.SamplingParams:
    """SamplingParams of the values that were given."""
    names = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed")
    given = {name: options[name] for name in names if options[name] is not None}
    return common_pb2.SamplingParams(**given, stop=list(options["stop"]))


def gateway_address(address: str | None, run_dir: RunDir) -> str:
    """The address given, or the one of the mesh that runs. Raises NotFound when none does."""
    return address or str(run_dir.read_mesh()["grpc"])


@contextlib.contextmanager
def generation(address: str) -> Iterator[generation_pb2_grpc.GenerationServiceStub]:
    """The gateway's stub, closed at the end."""
    options = [("grpc.max_receive_message_length", _MAX_MESSAGE)]
    with grpc.insecure_channel(address, options=options) as channel:
        yield generation_pb2_grpc.GenerationServiceStub(channel)


def stream(
    stub: generation_pb2_grpc.GenerationServiceStub,
    request: generation_pb2.GenerateRequest,
    *,
    deadline_s: float,
    api_key: str | None = None,
) -> Iterator[generation_pb2.GenerateResponse]:
    """Responses as they come. Leaving the loop early cancels the request. Raises grpc.RpcError."""
    metadata = [("authorization", f"Bearer {api_key}")] if api_key else []
    call = stub.Generate(request, timeout=deadline_s, metadata=metadata)
    try:
        yield from call
    finally:
        call.cancel()
