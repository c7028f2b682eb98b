"""``janus generate``."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from janus_wire.v1 import common_pb2, generation_pb2

from janus_cli.options import json_option
from janus_cli.rundir import RunDir
from janus_cli.talk import gateway_address, generation, sampling, stream, talk_options


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
    request = generation_pb2.GenerateRequest(sampling=sampling(options))
    if chat:
        request.chat.messages.add(role="user", content=text)
    else:
        request.prompt = text
    pieces: list[str] = []
    ids: list[int] = []
    with generation(gateway_address(address, run_dir)) as stub:
        first = last = generation_pb2.GenerateResponse()
        for response in stream(stub, request, deadline_s=deadline, api_key=api_key):
            first = response if not first.trace_id else first
            last = response
            pieces.append(response.text)
            ids.extend(response.token_ids)
            if not as_json:
                sys.stdout.write(response.text)
                sys.stdout.flush()
    if as_json:
        reason = common_pb2.FinishReason.Name(last.finish_reason).removeprefix("FINISH_REASON_").lower()
        usage = {
            "prompt_tokens": last.usage.prompt_tokens,
            "completion_tokens": last.usage.completion_tokens,
        }
        click.echo(
            json.dumps(
                {
                    "text": "".join(pieces), "token_ids": ids, "finish_reason": reason, "usage": usage,
                    "request_id": last.request_id, "trace_id": first.trace_id,
                }
            )
        )  # fmt: skip
    else:
        click.echo()
