"""The images built, the mesh brought up, asked, scaled and taken down by a real engine, as `make compose-demo` does."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

COMPOSE = Path(__file__).parents[2] / "deploy" / "compose"


def _engine() -> bool:
    return bool(shutil.which("docker")) and (
        subprocess.run(["docker", "info"], capture_output=True, timeout=60).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_demo_runs() -> None:
    """Needs an engine, the right to use it, and what demo.sh needs."""
    if not _engine():
        pytest.skip("no container engine answers")
    done = subprocess.run([str(COMPOSE / "demo.sh")], capture_output=True, text=True, timeout=2300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.count("The capital of France is Paris.") == 2
    assert "no torch in gateway, scheduler, autoscaler" in done.stdout
    listed = subprocess.run(
        ["docker", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True, timeout=60
    )
    assert "janus-demo-" not in listed.stdout


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_autoscaler_acts_on_containers() -> None:
    """Needs what the demo needs; the script itself checks what was added, what left, and every answer."""
    if not _engine():
        pytest.skip("no container engine answers")
    done = subprocess.run([str(COMPOSE / "autoscale.sh")], capture_output=True, text=True, timeout=2300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "token by token as undisturbed: True" in done.stdout
    listed = subprocess.run(
        ["docker", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True, timeout=60
    )
    assert "janus-scale-" not in listed.stdout, "what the autoscaler has made is taken down too"
