"""Engine processes on nodes that are namespaces or containers: shared memory inside, tcp between, leaders killed on
purpose."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from janus_testing.containers import Containers
from janus_testing.inprocess import InProcessMesh
from janus_testing.namespaces import Nodes
from janus_testing.processes import ProcessMesh

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
]
PROMPTS = [[5, 9, 14, 3], [77, 21, 8], [4, 4, 9, 250, 17]]


def label(role: str, index: int) -> str:
    """Attention workers on one node, MoE workers on two."""
    return "attention" if role == "attention" else f"moe-{index % 2}"


def containers(labels: list[str]) -> Containers:
    asked = ("docker", "image", "inspect", "busybox")
    try:
        found = subprocess.run(asked, check=False, capture_output=True, timeout=30).returncode == 0
    except OSError:
        found = False
    if not found:
        pytest.skip("no container engine answers, or it has no image busybox")
    return Containers(labels)


@pytest.mark.parametrize(
    ("place", "exchange"),
    [(Nodes, "2pc-1"), (Nodes, "2pc-2"), (Nodes, "auto"), (containers, "2pc-1")],
    ids=["2pc-1", "2pc-2", "auto", "containers"],
)
def test_tokens_are_the_same_and_outlive_killed_leaders(
    mixtral: Path, place: Callable[[list[str]], Nodes | Containers], exchange: str
) -> None:
    with InProcessMesh(mixtral, attention=1, experts=1) as alone:
        expected = [answer.tokens for answer in alone.generate(PROMPTS, max_tokens=40)]
    with (
        place(["attention", "moe-0", "moe-1"]) as nodes,
        ProcessMesh(
            mixtral, attention=2, experts=4, nodes=label, namespaces=nodes, exchange=exchange, timeout_s=240
        ) as mesh,
    ):
        assert [a.tokens for a in mesh.generate(PROMPTS, max_tokens=40)] == expected
        sent = sum(worker.stats["internode_messages_sent"] for worker in mesh.workers)
        assert sent > 0
        numbers = [mesh.submit(prompt, worker=1, max_tokens=40) for prompt in PROMPTS]
        for group in (mesh.moe, mesh.attention):
            seen = len(mesh.peek(numbers[0]).tokens)
            mesh.pump(lambda seen=seen: len(mesh.peek(numbers[0]).tokens) > seen + 3, "some tokens")
            leader = group[0]
            os.kill(mesh.pid(leader), signal.SIGKILL)
            mesh.stop(leader)
            mesh.form()
        assert [mesh.answer(number).tokens for number in numbers] == expected
