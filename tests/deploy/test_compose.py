"""The compose file and the images, as far as they can be checked without an engine; `make compose-demo` runs them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
ROLES = ("gateway", "scheduler", "autoscaler", "attention", "moe")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    return loaded


def environment_file() -> dict[str, str]:
    lines = (COMPOSE / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_every_variable_is_in_the_env_file_and_used() -> None:
    used = set(re.findall(r"\$\{(\w+)[}:]", (COMPOSE / "compose.yaml").read_text()))
    assert used == set(environment_file())


def test_every_role_is_there_in_the_cpu_profile(services: dict[str, Any]) -> None:
    assert {name for name, s in services.items() if "cpu" in s["profiles"]} == {"redis", *ROLES}
    assert {name for name, s in services.items() if "gpu" in s["profiles"]} >= {
        "attention-gpu",
        "moe-gpu",
        "gateway",
    }


def test_workers_can_be_scaled(services: dict[str, Any]) -> None:
    for name in ("attention", "moe"):
        assert "container_name" not in services[name] and "ports" not in services[name]
        assert "depends_on" not in services[name], "any order of start must do"


def test_only_the_gateway_is_published_and_on_loopback(services: dict[str, Any]) -> None:
    published = {name: s["ports"] for name, s in services.items() if s.get("ports")}
    assert set(published) == {"gateway"}
    assert all(port.startswith("${PUBLISH_ADDRESS}:") for port in published["gateway"])
    assert environment_file()["PUBLISH_ADDRESS"] == "127.0.0.1"


@pytest.mark.parametrize("role", ROLES)
def test_images(role: str) -> None:
    text = (ROOT / "services" / role / "Dockerfile").read_text()
    assert re.search(r"^USER janus$", text, re.M)
    assert re.search(r"^HEALTHCHECK ", text, re.M)
    assert f"janus-mesh-{role} " in text
    assert ("assert not u.find_spec('torch')" in text) == (role not in ("attention", "moe"))


def closure(name: str, projects: dict[str, dict[str, Any]]) -> set[str]:
    """Distributions of this repository, and foreign ones, that installing ``name`` brings in."""
    found, todo = set(), [name]
    while todo:
        requirement = todo.pop()
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?", requirement)
        assert match
        base, extras = match[1], (match[2] or "").split(",")
        found.add(base)
        project = projects.get(base)
        if project is not None:
            wanted = list(project.get("dependencies", []))
            for extra in filter(None, extras):
                wanted += project["optional-dependencies"][extra]
            todo += [w for w in wanted if w not in found]
    return found


def test_torch_is_in_the_requirements_of_attention_and_moe_alone() -> None:
    files = [*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")]
    projects = {p["name"]: p for p in (tomllib.loads(f.read_text())["project"] for f in files)}
    for role in ROLES:
        assert ("torch" in closure(f"janus-mesh-{role}", projects)) == (role in ("attention", "moe"))
