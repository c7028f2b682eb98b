"""Engines as processes over UCX, as benchmarks run them: they start, and give the same tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from janus_testing.inprocess import InProcessMesh
from janus_testing.processes import ProcessMesh

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def test_processes_give_the_tokens_that_threads_give(mixtral: Path) -> None:
    asked = [[5, 9, 14, 3], [77, 21]]
    with InProcessMesh(mixtral) as mesh:
        expected = [answer.tokens for answer in mesh.generate(asked, max_tokens=6)]
    with ProcessMesh(mixtral, attention=1, experts=2) as mesh:
        assert [answer.tokens for answer in mesh.generate(asked, max_tokens=6)] == expected
