#!/usr/bin/env python3
"""What the images need from outside of this repository, read from the packages' pyproject.toml.

Usage: requirements.py FOLDER    writes FOLDER/gateway.txt, scheduler.txt, autoscaler.txt and worker.txt

Pins are constraints.txt's. attention and moe share worker.txt, so that their images share the one large layer.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
IMAGES = {
    "gateway": ("gateway",),
    "scheduler": ("scheduler",),
    "autoscaler": ("autoscaler[docker,kubernetes]",),
    "worker": ("attention", "moe"),
}
# redis asks for it before Python 3.11.3, which Debian bookworm's is; harmless later.
ALWAYS = ("async-timeout",)

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?")


def projects(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """The [project] tables of all packages here, by distribution name."""
    files = [*root.glob("libs/*/pyproject.toml"), *root.glob("services/*/pyproject.toml")]
    return {table["name"]: table for table in (tomllib.loads(f.read_text())["project"] for f in files)}


def foreign(distribution: str, known: dict[str, dict[str, Any]]) -> set[str]:
    """Requirements, as written, that ``distribution`` and the packages of ``known`` it needs have elsewhere.

    Raises ValueError for a requirement that is none and for an extra that its package does not have.
    """
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    todo = [distribution]
    while todo:
        requirement = todo.pop()
        match = _REQUIREMENT.match(requirement)
        if match is None:
            raise ValueError(f"{distribution} needs {requirement!r}: not a requirement")
        name, extras = match[1], [e.strip() for e in (match[2] or "").split(",") if e.strip()]
        if name not in known:
            found.add(requirement)
            continue
        table = known[name]
        for extra in ["", *extras]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            optional = table.get("optional-dependencies", {})
            if extra and extra not in optional:
                raise ValueError(f"{name} has no extra {extra!r}; it has {sorted(optional)}")
            todo += optional[extra] if extra else table.get("dependencies", [])
    return found


def main(folder: Path) -> None:
    """Write a requirements file per image."""
    known = projects()
    folder.mkdir(parents=True, exist_ok=True)
    for image, roles in IMAGES.items():
        lines = set(ALWAYS).union(*(foreign(f"janus-mesh-{role}", known) for role in roles))
        (folder / f"{image}.txt").write_text("\n".join(sorted(lines)) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER")
    main(Path(sys.argv[1]))
