"""The compose file and the images, as far as they can be checked without an engine; `make compose-demo` runs them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
ROLES = ("gateway", "scheduler", "autoscaler", "attention", "moe")
WORKERS = ("attention", "moe")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]
    return loaded


@pytest.fixture(scope="module")
def requirements() -> ModuleType:
    spec = importlib.util.spec_from_file_location("compose_requirements", COMPOSE / "requirements.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment_file() -> dict[str, str]:
    lines = (COMPOSE / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


# -- the compose file ---------------------------------------------------------------------------------


def test_every_variable_is_in_the_env_file_and_used() -> None:
    used = set(re.findall(r"\$\{(\w+)[}:]", (COMPOSE / "compose.yaml").read_text()))
    assert used == set(environment_file())


def test_every_role_is_there_in_both_profiles(services: dict[str, Any]) -> None:
    common = {"redis", "gateway", "scheduler", "autoscaler"}
    assert {name for name, s in services.items() if "cpu" in s["profiles"]} == common | set(WORKERS)
    assert {name for name, s in services.items() if "gpu" in s["profiles"]} == common | {
        f"{w}-gpu" for w in WORKERS
    }


@pytest.mark.parametrize("name", [*WORKERS, *(f"{w}-gpu" for w in WORKERS)])
def test_workers_can_be_scaled(services: dict[str, Any], name: str) -> None:
    assert not {"container_name", "hostname", "ports"} & services[name].keys()
    assert services[name]["volumes"] == ["${MODEL_DIR}:/model:ro"]
    # UCX's wake-ups do not cross network namespaces: shared memory between containers would crawl.
    assert services[name]["ipc"] == "private"


def test_gpu_workers_reserve_devices_and_leave_the_transports_to_ucx(services: dict[str, Any]) -> None:
    for name in WORKERS:
        (device,) = services[f"{name}-gpu"]["deploy"]["resources"]["reservations"]["devices"]
        assert device["capabilities"] == ["gpu"]
        assert "UCX_TLS" in services[name]["environment"]
        assert "UCX_TLS" not in services[f"{name}-gpu"]["environment"]


def test_any_order_of_start_will_do(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert "depends_on" not in service and "links" not in service, name
        assert service["restart"] == "unless-stopped" and service["stop_grace_period"] == "30s", name


def test_nothing_has_rights_it_does_not_need(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"] and service["read_only"] is True, name
        assert "privileged" not in service and service.get("network_mode", "") != "host", name


def test_only_the_gateway_is_published_and_on_loopback(services: dict[str, Any]) -> None:
    published = {name: s["ports"] for name, s in services.items() if s.get("ports")}
    assert set(published) == {"gateway"}
    assert all(port.startswith("${PUBLISH_ADDRESS}:") for port in published["gateway"])
    assert environment_file()["PUBLISH_ADDRESS"] == "127.0.0.1"


def _compose() -> list[str] | None:
    if shutil.which("docker"):
        done = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=60)
        if done.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_takes_the_file(profile: str) -> None:
    command = _compose()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose is installed")
    plain = {k: v for k, v in os.environ.items() if k not in environment_file()}
    done = subprocess.run(
        [*command, "--profile", profile, "config"],
        cwd=COMPOSE,
        env=plain,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)["services"]
    worker = config["moe" if profile == "cpu" else "moe-gpu"]
    assert worker["environment"]["JANUS_MODEL"] == "/model"
    assert "WARN" not in done.stderr and "variable is not set" not in done.stderr, done.stderr


# -- the images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_images(role: str) -> None:
    text = (ROOT / "services" / role / "Dockerfile").read_text()
    assert "--mount" not in text, "engines without BuildKit build these too"
    # No rights, a health check, and the packages of this repository in a layer after what they need.
    order = [
        "useradd",
        "COPY --from=dependencies",
        "COPY --from=packages",
        "USER janus",
        "HEALTHCHECK",
        "ENTRYPOINT",
    ]
    final = text[text.rindex("\nFROM ") :]
    assert [final.index(line) for line in order] == sorted(final.index(line) for line in order)
    assert f'ENTRYPOINT ["python", "-m", "janus_{role}"]' in final
    assert f" janus-mesh-{role} " in text
    assert ("assert not u.find_spec('torch')" in text) == (role not in WORKERS)
    for label in ("title", "description", "licenses", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{label}=" in final


def test_both_workers_share_their_large_layers() -> None:
    """The builder finds the second worker's layers in its cache only when every line up to them is the same."""
    texts = [(ROOT / "services" / role / "Dockerfile").read_text() for role in WORKERS]
    starts = [
        text[text.index("ARG BASE_IMAGE") : text.index("# This repository's packages")] for text in texts
    ]
    assert starts[0] == starts[1]
    finals = [text[text.rindex("\nFROM ") : text.index("COPY --from=packages")] for text in texts]
    assert finals[0] == finals[1]


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


@pytest.fixture(scope="module")
def projects() -> dict[str, dict[str, Any]]:
    files = [*ROOT.glob("libs/*/pyproject.toml"), *ROOT.glob("services/*/pyproject.toml")]
    return {p["name"]: p for p in (tomllib.loads(f.read_text())["project"] for f in files)}


def test_torch_is_in_the_requirements_of_attention_and_moe_alone(projects: dict[str, dict[str, Any]]) -> None:
    for role in ROLES:
        assert ("torch" in closure(f"janus-mesh-{role}", projects)) == (role in WORKERS)


def test_the_requirements_files_hold_the_whole_closure(
    projects: dict[str, dict[str, Any]], requirements: ModuleType, tmp_path: Path
) -> None:
    requirements.main(tmp_path)
    assert {f.stem for f in tmp_path.iterdir()} == {"gateway", "scheduler", "autoscaler", "worker"}
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text().lower(), re.M))
    for image, roles in requirements.IMAGES.items():
        listed = (tmp_path / f"{image}.txt").read_text().split()
        names = {re.split(r"[<>=!~\[]", line)[0] for line in listed}
        expected = set().union(*(closure(f"janus-mesh-{role}", projects) for role in roles)) - set(projects)
        assert names == expected | set(requirements.ALWAYS)
        assert {n.lower().replace("_", "-") for n in names} <= {p.replace("_", "-") for p in pinned}
        assert ("torch" in names) == (image == "worker")


def test_a_requirement_that_cannot_be_followed(requirements: ModuleType) -> None:
    known = {"a": {"dependencies": ["b[x]"]}, "b": {"optional-dependencies": {"y": []}}}
    with pytest.raises(ValueError, match=r"b has no extra 'x'; it has \['y'\]"):
        requirements.foreign("a", known)
    with pytest.raises(ValueError, match="not a requirement"):
        requirements.foreign("a", {"a": {"dependencies": ["!"]}})


@pytest.mark.parametrize("script", ["demo.sh", "autoscale.sh"])
def test_scripts_say_what_is_missing(script: str, tmp_path: Path) -> None:
    """A script without an engine: exit code 1 and a line that says what to do, before anything is built."""
    fake = tmp_path / "docker"
    fake.write_text("#!/bin/sh\necho 'Cannot connect to the daemon' >&2\nexit 1\n")
    fake.chmod(0o755)
    if not (ROOT / ".venv/bin/python").exists():
        pytest.skip("scripts work in .venv, which is not here")
    done = subprocess.run(
        [str(COMPOSE / script)],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert (
        "no container engine answers (Cannot connect to the daemon)" in done.stderr
        and "Start it" in done.stderr
    )
