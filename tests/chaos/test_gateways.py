"""Two gateways: what one had begun when it was killed, the other goes on with, for whoever has the key."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from janus_testing import LocalMesh
from janus_testing.load import Load, make_requests

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]


def test_a_killed_gateways_streams_go_on_at_the_other(tiny: Path) -> None:
    with LocalMesh(tiny, attention=1, experts=2, gateways=2, start_deadline_s=200) as mesh:
        first, second = mesh.gateways
        assert first != second and first == mesh.grpc
        load = Load([first, second], make_requests(8, seed=4, tokens=(150, 300)), at_once=8, resume=True)
        load.reference()
        with load:
            load.wait_tokens(200)
            begun = [s for s in load.streams if s.times and not s.done]
            at = time.monotonic()
            os.kill(mesh.service("gateway-0").pid, signal.SIGKILL)
            load.wait_tokens(200)
        assert not list(load.problems())
        moved = [s for s in begun if s.attempts > 1]
        assert moved, "their first attempt was at the gateway that died"
        recovery = load.recovery([at])
        print(
            f"{len(moved)} streams, next token after {recovery.median_s:.2f} s, at worst {recovery.worst_s:.2f} s"
        )
        until = time.monotonic() + 60
        while mesh.service("gateway-0").address != first:  # where its clients look for it
            assert time.monotonic() < until
            time.sleep(0.2)
