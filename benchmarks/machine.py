"""Results of the scripts here: ``results/<name>.md``, headed by what they ran on."""

from __future__ import annotations

from pathlib import Path

from janus_bench.machine import machine


def write(name: str, title: str, command: str, body: str) -> Path:
    """Write ``results/<name>.md``."""
    path = Path(__file__).parent / "results" / f"{name}.md"
    path.write_text(f"# {title}\n\n{machine()}\n\n`{command}`\n\n{body}\n")
    return path
