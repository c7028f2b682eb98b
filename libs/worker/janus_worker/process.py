"""Entry of an engine process: ``python -m <engine module> --fd N --parent PID --options JSON``."""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
from collections.abc import Callable
from typing import Any

from janus_runtime.errors import JanusError
from janus_runtime.logs import setup_logging

from janus_worker.engine import CohortEngine
from janus_worker.link import STACK_SIGNAL, ChildGone, ControlLink, engine_link

_LOG = logging.getLogger("janus.worker")


def run_engine(build: Callable[[dict[str, Any], ControlLink], CohortEngine]) -> int:
    """Build the engine from its options and run it; the process's exit status.

    A JanusError while building goes to the control process, which ends with its text.
    """
    parser = argparse.ArgumentParser(description="A worker's engine; started by its control process.")
    parser.add_argument("--fd", type=int, required=True, help="socket to the control process")
    parser.add_argument("--parent", type=int, required=True, help="process id of the control process")
    parser.add_argument("--options", required=True, help="settings as JSON")
    arguments = parser.parse_args()
    options = json.loads(arguments.options)
    setup_logging(options.get("log_level", "info"))
    faulthandler.register(STACK_SIGNAL, file=2)
    try:
        link = engine_link(arguments.fd, arguments.parent)
        try:
            engine = build(options, link)
        except JanusError as error:
            link.send({"t": "failed", "message": str(error), "next_step": ""})
            link.flush()
            return 1
        engine.run()
    except ChildGone as gone:
        _LOG.info("engine ends: %s", gone)
    return 0


def progress(link: ControlLink) -> Callable[[str], None]:
    """Tells the control process what a start is doing."""
    return lambda detail: link.send({"t": "waiting", "detail": detail})


__all__ = ["progress", "run_engine"]
