"""``janus generate``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from janus_cli.options import json_option
from janus_cli.rundir import RunDir
from janus_cli.talk import client, sampling, talk_options


@click.command()
@click.argument("prompt")
@click.option("--chat", is_flag=True, help="Put the prompt through the model's chat template.")
@json_option
@talk_options
def command(
    prompt: str, chat: bool, as_json: bool, address: str | None, run_dir: RunDir, deadline: float,
    api_key: str | None, **options: Any,
) -> None:  # fmt: skip
    """Continue PROMPT (`-` reads standard input), streamed to standard output."""
    text = sys.stdin.read() if prompt == "-" else prompt
    with client(address, run_dir, api_key=api_key, deadline_s=deadline) as mesh:
        given = sampling(options)
        answer = mesh.chat(text, **given) if chat else mesh.generate(text, **given)
        if not as_json:
            for chunk in answer:
                sys.stdout.write(chunk.text)
                sys.stdout.flush()
            click.echo()
            return
        whole = answer.result()
    click.echo(
        json.dumps(
            {
                "text": whole.text,
                "token_ids": list(whole.token_ids),
                "finish_reason": whole.finish_reason,
                "usage": {
                    "prompt_tokens": whole.usage.prompt_tokens,
                    "completion_tokens": whole.usage.completion_tokens,
                },
                "request_id": whole.request_id,
                "trace_id": whole.trace_id,
            }
        )
    )
