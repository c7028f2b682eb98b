"""Services and libraries that must run where torch is not installed do: torch is hidden from them here."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HIDE = """
import importlib.abc, runpy, sys

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "ucxx"):
            raise ModuleNotFoundError(f"No module named {name!r} (hidden)", name=name)

sys.meta_path.insert(0, Hide())
"""


@pytest.mark.parametrize("service", ["gateway", "scheduler", "autoscaler"])
def test_service_runs_without_torch(service: str) -> None:
    code = HIDE + (
        f"import pkgutil, janus_{service}\n"
        f"for m in pkgutil.walk_packages(janus_{service}.__path__, 'janus_{service}.'):\n"
        "    if not m.name.endswith('__main__'): __import__(m.name)\n"
        f"sys.argv = ['janus', '--help']; runpy.run_module('janus_{service}', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--redis-url" in done.stdout


@pytest.mark.parametrize(
    "package",
    [
        "kernels",
        "models",
        "placement",
        "runtime",
        "scaling",
        "simulator",
        "transport",
        "client",
        "cli",
        "wire",
        "worker",
        "testing",
    ],
)
def test_library_imports_without_torch_and_quickly(package: str) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", HIDE + f"import janus_{package}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 10.0


def test_the_command_helps_without_torch() -> None:
    commands = [
        "up",
        "down",
        "status",
        "top",
        "generate",
        "chat",
        "model",
        "plan",
        "simulate",
        "trace",
        "autoscale",
    ]
    code = HIDE + (
        "from click.testing import CliRunner\n"
        "from janus_cli.main import main\n"
        f"for c in {commands!r}:\n"
        "    r = CliRunner().invoke(main, [c, '--help']); assert r.exit_code == 0, (c, r.output, r.exception)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
