"""The module tables of architecture.md, made from the modules' docstrings.

``python docs/modules.py`` writes them; with ``--check`` it only says whether they are as written, exit status 1 if not.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
PACKAGES = ("libs/*/janus_*", "simulator/janus_*", "services/*/janus_*")
HEADING = re.compile(r"^### (janus_\w+) \(`(.+?)`\)\n", re.MULTILINE)


def docstring(path: Path) -> str:
    """A module's first paragraph, in one line. Exits where it has none."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(text.partition("\n\n")[0].split())
    if not first:
        sys.exit(f"{path.relative_to(ROOT)}: no docstring")
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", first.replace("``", "`")).replace("|", "\\|")


def table(package: Path) -> str:
    """What a package is, and a row for each of its modules."""
    rows = [f"{docstring(package / '__init__.py')}\n", "| module | |", "| --- | --- |"]
    for path in sorted(package.rglob("*.py"), key=lambda path: path.as_posix().replace("__init__.py", "")):
        name = path.relative_to(package).as_posix().removesuffix("__init__.py").removesuffix(".py")
        if name and "_pb2" not in name:
            rows.append(f"| `{name}` | {docstring(path)} |")
    return "\n".join(rows if len(rows) > 3 else rows[:1]).rstrip("\n") + "\n"


def page(text: str) -> str:
    """The page with its tables made anew, packages in the order that they have there."""
    packages = {
        path.name: path for pattern in PACKAGES for path in sorted(ROOT.glob(pattern)) if path.is_dir()
    }
    parts = HEADING.split(text)
    head, sections = parts[0], dict(zip(parts[1::3], parts[2::3], strict=True))
    if absent := sections.keys() ^ packages.keys():
        sys.exit(f"docs/architecture.md: sections and packages differ by {', '.join(sorted(absent))}")
    made = [f"### {name} (`{place}`)\n{table(packages[name])}" for name, place in sections.items()]
    return head + "\n".join(made)


def main() -> None:
    """Write, or check."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="write nothing")
    before = PAGE.read_text()
    after = page(before)
    if not arguments.parse_args().check:
        PAGE.write_text(after)
    elif after != before:
        sys.exit("docs/architecture.md: tables are not as the modules' docstrings say; run make docs")


if __name__ == "__main__":
    main()
