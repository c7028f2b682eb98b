"""``janus chat``."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click
from janus_client import JanusClient, Message
from janus_client.client import Options

from janus_cli.rundir import RunDir
from janus_cli.talk import client, sampling, talk_options

_HELP = "/reset forgets the conversation, /trace shows how to see the last answer's spans, /exit ends (Ctrl-D too)."


@click.command()
@click.option("--system", help="A system message ahead of the conversation.")
@talk_options
def command(
    system: str | None, address: str | None, run_dir: RunDir, deadline: float, api_key: str | None,
    **options: Any,
) -> None:  # fmt: skip
    """Talk with the model; answers are streamed, Ctrl-C ends an answer."""
    beginning = [Message(role="system", content=system)] if system else []
    messages = list(beginning)
    # The default handler, whatever the shell set: Ctrl-C must end an answer, not this command.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with client(address, run_dir, api_key=api_key, deadline_s=deadline) as mesh:
        model = mesh.model_info(timeout_s=10.0)
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
                messages.append(Message(role="user", content=line))
                answer, trace_id = _answer(mesh, messages, sampling(options))
                messages.append(Message(role="assistant", content=answer))


def _answer(mesh: JanusClient, messages: list[Message], options: Options) -> tuple[str, str]:
    """The text, printed as it comes, and the trace id."""
    text = trace_id = ""
    with mesh.chat(messages, **options) as stream:
        try:
            for chunk in stream:
                trace_id = chunk.trace_id or trace_id
                text += chunk.text
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            click.secho(" (stopped)", dim=True, nl=False)
    click.echo()
    return text, trace_id


def _ask() -> str | None:
    """A line from the person; None at the end."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        click.echo()
        return None
