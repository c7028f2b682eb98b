"""``python -m janus_moe``: a MoE worker."""

from __future__ import annotations

from typing import Any

import click
from janus_runtime.service import STOP_DEADLINE_S, run_service
from janus_runtime.settings import build, click_options

from janus_moe.config import MoeSettings
from janus_moe.host import MoeHost


@click.command()
@click_options(MoeSettings, "moe")
def main(**flags: Any) -> None:
    """MoE worker: gating, activation scheduling, expert FFNs, partial sums."""
    settings = build(MoeSettings, "moe", flags)

    async def serve() -> None:
        # The host needs a running loop.
        await MoeHost(settings).run()

    run_service(serve, stop_deadline_s=STOP_DEADLINE_S + settings.drain_s)


if __name__ == "__main__":
    main()
