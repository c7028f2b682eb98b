"""``python -m janus_attention``: an attention worker."""

from __future__ import annotations

from typing import Any

import click
from janus_runtime.service import STOP_DEADLINE_S, run_service
from janus_runtime.settings import build, click_options

from janus_attention.config import AttentionSettings
from janus_attention.host import AttentionHost


@click.command()
@click_options(AttentionSettings, "attention")
def main(**flags: Any) -> None:
    """Attention worker: owns sequences from prompt to last token."""
    settings = build(AttentionSettings, "attention", flags)

    async def serve() -> None:
        await AttentionHost(settings).run()

    run_service(serve, stop_deadline_s=STOP_DEADLINE_S + settings.drain_s)


if __name__ == "__main__":
    main()
