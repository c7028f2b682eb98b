"""An engine for the fork server's tests: echoes what its link says; imported by the server, not by the tests."""

from __future__ import annotations

import os
import select
import sys
import time
from typing import Any

from janus_worker.link import ControlLink


class Echo:
    def __init__(self, link: ControlLink) -> None:
        self._link = link

    def run(self) -> None:
        hello = {
            "t": "hello",
            "pid": os.getpid(),
            "variable": os.environ.get("ECHO", ""),
            "arguments": sys.argv[:1],
        }
        self._link.send(hello)
        while True:
            select.select([self._link.fileno()], [], [])
            for message in self._link.poll():
                if message.body["t"] == "exit":
                    sys.exit(message.body["status"])
                if message.body["t"] == "sleep":
                    time.sleep(600)
                self._link.send(message.body)


def build(options: dict[str, Any], link: ControlLink) -> Echo:
    print("building", options["name"], file=sys.stderr)
    return Echo(link)
