"""Actuators against what they talk to: a supervisor's socket, a container engine, an API server that checks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from janus_autoscaler.actuators import Pool, create
from janus_autoscaler.actuators.base import worker_on
from janus_autoscaler.actuators.compose import NUMBER, PROJECT, SERVICE, ComposeActuator, copy_of
from janus_autoscaler.actuators.kubernetes import DELETION_COST, KubernetesActuator
from janus_autoscaler.actuators.local import LocalActuator
from janus_autoscaler.actuators.swarm import SwarmActuator
from janus_autoscaler.config import AutoscalerSettings
from janus_cli.control import ControlServer
from janus_cli.rundir import RunDir
from janus_runtime.errors import FailedPrecondition, InvalidArgument, JanusError, NotFound, Unavailable
from janus_runtime.records import Lease, Role

pytestmark = pytest.mark.asyncio


def settings(**changes: Any) -> AutoscalerSettings:
    return AutoscalerSettings(**{"redis_url": "redis://x", "mode": "act", **changes})


def lease(role: Role, host: str) -> Lease:
    return Lease(worker_id=f"{role}-{host}-1", member=1, role=role, pid=1, grpc_address=f"{host}:50051")


class FakeDrainer:
    """Leases as given; notes who was drained, in the order of ``events``."""

    def __init__(self, leases: list[Lease], events: list[Any]) -> None:
        self._leases, self.events = leases, events

    async def leases(self, pool: Pool) -> list[Lease]:
        return [x for x in self._leases if x.role is pool.role]

    async def drain(self, worker_id: str) -> str:
        self.events.append(("drain", worker_id))
        return ""


# -- who ------------------------------------------------------------------------------------------------


async def test_every_actuator_says_what_it_needs() -> None:
    assert create(settings(mode="advise", actuator="none"), None) is None  # type: ignore[arg-type]
    for kind, field in (
        ("none", "--actuator"),
        ("local", "--supervisor"),
        ("kubernetes", "--attention-service"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            create(settings(actuator=kind), None)  # type: ignore[arg-type]
        assert field in str(caught.value)


async def test_a_worker_is_found_by_its_host() -> None:
    leases = [lease(Role.MOE, "janus-moe-11"), lease(Role.MOE, "janus-moe-1")]
    assert worker_on(leases, "janus-moe-1") is leases[1] and worker_on(leases, "janus-moe") is None


# -- local ----------------------------------------------------------------------------------------------


async def test_local_speaks_to_the_supervisor(tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    async def supervisor(request: dict[str, Any], say: Any) -> dict[str, Any]:
        asked.append(request)
        if request["op"] == "scale" and request["targets"].get("experts") == 9:
            raise FailedPrecondition("no room", reason="TOO_FEW_SLOTS")
        say("working")
        return {"workers": {"attention": 2, "experts": 3}}

    actuator = LocalActuator(str(tmp_path))
    with pytest.raises(Unavailable, match="no supervisor"):
        await actuator.sizes()
    run_dir = RunDir(tmp_path)
    async with ControlServer(run_dir, supervisor) as server:
        (tmp_path / "mesh.json").write_text(json.dumps({"control": ""}))
        with pytest.raises(Unavailable, match="still starting"):
            await actuator.sizes()
        (tmp_path / "mesh.json").write_text(json.dumps({"control": str(server.path)}))
        assert await actuator.sizes() == (2, 3)
        await actuator.grow((2, 3), (2, 5))
        await actuator.grow((2, 3), (4, 5))
        await actuator.shrink(Pool.ATTENTION, 1)
        with pytest.raises(FailedPrecondition, match="no room"):
            await actuator.shrink(Pool.MOE, 9)
    assert [r.get("targets") for r in asked[1:]] == [
        {"experts": 5}, {"attention": 4, "experts": 5}, {"attention": 1}, {"experts": 9},
    ]  # fmt: skip
    with pytest.raises(Unavailable, match="cannot reach"):
        await actuator.sizes()


# -- compose --------------------------------------------------------------------------------------------


async def test_a_copy_is_like_the_first_but_for_what_is_its_own() -> None:
    attrs = {
        "Id": "0123456789abcdef", "Name": "/mesh_moe_2",
        "Config": {
            "Hostname": "0123456789ab", "Image": "janus-moe", "Env": ["A=1"], "Labels": {NUMBER: "2", "x": "y"},
        },
        "HostConfig": {"Binds": ["/m:/model:ro"], "CapDrop": ["ALL"], "ReadonlyRootfs": True},
        "NetworkSettings": {
            "Networks": {"mesh": {"Aliases": ["moe", "0123456789ab"], "IPAddress": "10.0.0.2", "MacAddress": "x"}}
        },
    }  # fmt: skip
    config, name = copy_of(attrs, 5)
    assert name == "mesh_moe_5" and "Hostname" not in config
    assert config["Labels"] == {NUMBER: "5", "x": "y"} and config["Env"] == ["A=1"]
    assert config["HostConfig"] == attrs["HostConfig"]
    assert config["NetworkingConfig"] == {"EndpointsConfig": {"mesh": {"Aliases": ["moe"]}}}
    named = {**attrs, "Config": {**attrs["Config"], "Hostname": "worker"}}  # type: ignore[dict-item]
    assert copy_of(named, 5)[0]["Hostname"] == "worker-5"


IMAGE = "python:3.11-slim-bookworm"


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def project() -> Iterator[str]:
    """A project with one container of each service, on a real engine."""
    if (
        not shutil.which("docker")
        or subprocess.run(["docker", "info"], capture_output=True, timeout=60).returncode
    ):
        pytest.skip("no container engine answers")
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, timeout=60).returncode:
        pytest.skip(f"the engine has no image {IMAGE} (deploy/compose/base-image.sh makes it)")
    name = f"janus-test-{uuid.uuid4().hex[:8]}"
    try:
        docker("network", "create", name)
        for service in ("attention", "moe"):
            docker(
                "run", "--detach", "--name", f"{name}_{service}_1", "--network", name, "--network-alias", service,
                "--label", f"{PROJECT}={name}", "--label", f"{SERVICE}={service}", "--label", f"{NUMBER}=1",
                "--env", "JANUS_X=1", "--read-only", "--cap-drop", "ALL", "--memory", "64m", "--stop-timeout", "1",
                "--restart", "unless-stopped", IMAGE, "sleep", "600",
            )  # fmt: skip
        yield name
    finally:
        left = subprocess.run(
            ["docker", "ps", "--all", "--quiet", "--filter", f"label={PROJECT}={name}"],
            capture_output=True,
            text=True,
        ).stdout.split()
        if left:
            subprocess.run(["docker", "rm", "--force", *left], capture_output=True, timeout=60)
        subprocess.run(["docker", "network", "rm", name], capture_output=True, timeout=60)


@pytest.mark.slow
async def test_compose_on_a_real_engine(project: str) -> None:
    events: list[Any] = []
    drainer = FakeDrainer([], events)
    actuator = ComposeActuator(settings(docker_project=project), drainer)  # type: ignore[arg-type]
    assert await actuator.sizes() == (1, 1)
    await actuator.grow((1, 1), (1, 3))
    assert await actuator.sizes() == (1, 3)
    listed = docker("ps", "--filter", f"label={PROJECT}={project}", "--format", "{{.Names}}").split()
    assert sorted(listed) == [f"{project}_attention_1", *(f"{project}_moe_{i}" for i in (1, 2, 3))]
    rows = [json.loads(docker("inspect", f"{project}_moe_{i}"))[0] for i in (1, 2, 3)]
    hosts = [row["Config"]["Hostname"] for row in rows]
    assert len(set(hosts)) == 3
    for row in rows[1:]:
        assert row["HostConfig"]["ReadonlyRootfs"] and row["HostConfig"]["CapDrop"] == ["ALL"]
        assert row["HostConfig"]["Memory"] == 64 << 20 and "JANUS_X=1" in row["Config"]["Env"]
        assert row["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        network = row["NetworkSettings"]["Networks"][project]
        assert "moe" in network["Aliases"] and network["IPAddress"]
        assert network["IPAddress"] != rows[0]["NetworkSettings"]["Networks"][project]["IPAddress"]
    # Compose itself takes them for its own: that is what the labels are for.
    drainer._leases = [lease(Role.MOE, host) for host in hosts]
    await actuator.shrink(Pool.MOE, 2)
    assert events == [("drain", f"moe-{hosts[2]}-1")] and await actuator.sizes() == (1, 2)
    await actuator.grow((1, 2), (2, 3))
    assert await actuator.sizes() == (2, 3)
    with pytest.raises(FailedPrecondition, match="no running container"):
        await ComposeActuator(settings(docker_project="nobody"), drainer).grow((0, 0), (1, 1))  # type: ignore[arg-type]
    await actuator.close()


@pytest.fixture
def stack() -> Iterator[str]:
    """A stack of two services on an engine that is made a swarm for it: only where the machine is the tester's own."""
    if not os.environ.get("JANUS_TEST_SWARM"):
        pytest.skip(
            "set JANUS_TEST_SWARM=1 to let the test make the local engine a swarm of one node, and undo it"
        )
    docker("swarm", "init", "--advertise-addr", "127.0.0.1")
    name = f"janus-test-{uuid.uuid4().hex[:8]}"
    try:
        for service in ("attention", "moe"):
            docker(
                "service", "create", "--detach", "--name", f"{name}_{service}", "--no-resolve-image",
                "--stop-grace-period", "1s", IMAGE, "sleep", "600",
            )  # fmt: skip
        yield name
    finally:
        for service in ("attention", "moe"):
            subprocess.run(["docker", "service", "rm", f"{name}_{service}"], capture_output=True, timeout=60)
        subprocess.run(["docker", "swarm", "leave", "--force"], capture_output=True, timeout=60)


@pytest.mark.slow
async def test_swarm_on_a_real_engine(stack: str) -> None:
    actuator = SwarmActuator(settings(docker_project=stack, drain_deadline_s=60.0))
    assert await actuator.sizes() == (1, 1)
    await actuator.grow((1, 1), (1, 3))
    assert await actuator.sizes() == (1, 3)
    async with asyncio.timeout(60):
        while await actuator._running(Pool.MOE) < 3:
            await asyncio.sleep(0.5)
    await actuator.shrink(Pool.MOE, 2)
    assert await actuator.sizes() == (1, 2) and await actuator._running(Pool.MOE) == 2
    with pytest.raises(NotFound):
        await SwarmActuator(settings(docker_project="nobody")).sizes()
    await actuator.close()


# -- Kubernetes: a server that checks requests; it was not run on a cluster ------------------------------


class Api(BaseHTTPRequestHandler):
    """The paths that the actuator may use, and nothing else."""

    server: Server

    def do_GET(self) -> None:
        base = "/apis/apps/v1/namespaces/ml"
        path, _, query = self.path.partition("?")
        for kind, name, pool in self.server.workloads:
            if path == f"{base}/{kind}/{name}/scale":
                return self._send(self._scale(name, pool))
            if path == f"{base}/{kind}/{name}":
                return self._send({"metadata": {"name": name}, "spec": {
                    "selector": {"matchLabels": {"app": name}}, "template": {"spec": {"containers": []}},
                    "serviceName": name,
                }})  # fmt: skip
            if path == "/api/v1/namespaces/ml/pods" and query == f"labelSelector=app%3D{name}":
                return self._send({"items": self.server.pods(name)})
        return self._send({"reason": "NotFound"}, 404)

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "patch+json" not in self.headers["content-type"]:
            return self._send({"reason": "UnsupportedMediaType"}, 415)
        if self.server.forbidden:
            return self._send({"reason": "Forbidden"}, 403)
        for kind, name, pool in self.server.workloads:
            if self.path == f"/apis/apps/v1/namespaces/ml/{kind}/{name}/scale":
                assert body == {"spec": {"replicas": body["spec"]["replicas"]}}
                self.server.events.append(("scale", name, body["spec"]["replicas"]))
                self.server.replicas[pool] = body["spec"]["replicas"]
                return self._send(self._scale(name, pool))
        if self.path.startswith("/api/v1/namespaces/ml/pods/"):
            self.server.events.append(("mark", self.path.rpartition("/")[2], body["metadata"]["annotations"]))
            return self._send({"metadata": {"name": "x"}})
        return self._send({"reason": "NotFound"}, 404)

    def _scale(self, name: str, pool: Pool) -> dict[str, Any]:
        return {
            "metadata": {"name": name},
            "spec": {"replicas": self.server.replicas[pool]},
            "status": {"replicas": 1},
        }

    def _send(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    forbidden = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Api)
        self.events: list[Any] = []
        self.replicas = {Pool.ATTENTION: 2, Pool.MOE: 12}
        self.workloads = [
            ("deployments", "janus-attention", Pool.ATTENTION), ("statefulsets", "janus-moe", Pool.MOE),
        ]  # fmt: skip

    def pods(self, name: str) -> list[dict[str, Any]]:
        if name == "janus-moe":
            return [{"metadata": {"name": f"janus-moe-{i}"}} for i in (10, 0, 11, *range(1, 10))]
        made = [
            ("b", "2026-01-02T00:00:00Z", None),
            ("a", "2026-01-01T00:00:00Z", None),
            ("c", "2026-01-03T00:00:00Z", "2026-01-04T00:00:00Z"),
        ]
        return [
            {"metadata": {"name": f"janus-attention-{x}", "creationTimestamp": t, "deletionTimestamp": gone}}
            for x, t, gone in made
        ]


@pytest.fixture
def api() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(5)


async def test_kubernetes_scales_through_the_subresource_and_drains_first(api: Server) -> None:
    from kubernetes import client

    host = f"http://127.0.0.1:{api.server_address[1]}"
    leases = [lease(Role.MOE, f"janus-moe-{i}") for i in range(12)]
    leases += [lease(Role.ATTENTION, f"janus-attention-{x}") for x in "abc"]
    where = settings(
        attention_service="deployment/janus-attention",
        moe_service="StatefulSet/janus-moe",
        kubernetes_namespace="ml",
    )
    actuator = KubernetesActuator(
        where,
        FakeDrainer(leases, api.events),
        client.ApiClient(client.Configuration(host=host)),  # type: ignore[arg-type]
    )
    assert await actuator.sizes() == (2, 12)
    await actuator.grow((2, 12), (4, 12))
    await actuator.shrink(Pool.MOE, 11)
    await actuator.shrink(Pool.ATTENTION, 1)
    assert api.events == [
        ("scale", "janus-attention", 4),
        ("drain", "moe-janus-moe-11-1"), ("scale", "janus-moe", 11),
        ("mark", "janus-attention-b", {DELETION_COST: "-1000"}), ("drain", "attention-janus-attention-b-1"),
        ("scale", "janus-attention", 1),
    ]  # fmt: skip
    api.forbidden = True
    with pytest.raises(FailedPrecondition, match="403") as caught:
        await actuator.grow((1, 11), (2, 11))
    assert "get and patch on scale" in caught.value.next_step
    lost = KubernetesActuator(
        settings(attention_service="deployment/x", moe_service="statefulset/y", kubernetes_namespace="ml"),
        FakeDrainer([], []), client.ApiClient(client.Configuration(host=host)),  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(NotFound, match="404"):
        await lost.sizes()
    await actuator.close()
    await lost.close()


async def test_an_api_server_that_is_away_is_unavailable() -> None:
    from kubernetes import client

    configuration = client.Configuration(host="http://127.0.0.1:1")
    configuration.retries = False
    actuator = KubernetesActuator(
        settings(attention_service="deployment/x", moe_service="deployment/y", kubernetes_namespace="ml"),
        FakeDrainer([], []), client.ApiClient(configuration),  # type: ignore[arg-type]
    )  # fmt: skip
    with pytest.raises(JanusError, match="does not answer"):
        async with asyncio.timeout(20):
            await actuator.sizes()
    with contextlib.suppress(JanusError):
        await actuator.close()
