"""``janus chat``."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click
from janus_wire.v1 import generation_pb2

from janus_cli.rundir import RunDir
from janus_cli.talk import gateway_address, generation, sampling, stream, talk_options

_HELP = "/reset forgets the conversation, /trace shows how to see the last answer's spans, /exit ends (Ctrl-D too)."


@click.command()
@click.option("--system", help="A system message ahead of the conversation.")
@talk_options
def command(
    system: str | None, address: str | None, run_dir: RunDir, deadline: float, api_key: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Talk with the model; answers are streamed, Ctrl-C ends an answer."""
    beginning = [generation_pb2.ChatMessage(role="system", content=system)] if system else []
    messages = list(beginning)
    params = sampling(options)
    # The default handler, whatever the shell set: Ctrl-C must end an answer, not this command.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with generation(gateway_address(address, run_dir)) as stub:
        model = stub.GetModelInfo(generation_pb2.GetModelInfoRequest(), timeout=10.0)
        click.secho(f"{model.model} ({model.family}, context {model.context_length}). {_HELP}", dim=True)
        trace_id = ""
        while (line := _ask()) is not None:
            if line in ("/exit", "/quit"):
                break
            if line == "/reset":
                messages = list(beginning)
            elif line == "/trace":
                click.secho(f"janus trace {trace_id}" if trace_id else "nothing was asked yet", dim=True)
            elif line.startswith("/"):
                click.secho(_HELP, dim=True)
            elif line:
                messages.append(generation_pb2.ChatMessage(role="user", content=line))
                request = generation_pb2.GenerateRequest(
                    chat=generation_pb2.ChatInput(messages=messages), sampling=params
                )
                answer = ""
                try:
                    for response in stream(stub, request, deadline_s=deadline, api_key=api_key):
                        trace_id = response.trace_id or trace_id
                        answer += response.text
                        sys.stdout.write(response.text)
                        sys.stdout.flush()
                except KeyboardInterrupt:
                    click.secho(" (stopped)", dim=True, nl=False)
                click.echo()
                messages.append(generation_pb2.ChatMessage(role="assistant", content=answer))


def _ask() -> str | None:
    """A line from the person; None at the end."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        click.echo()
        return None
