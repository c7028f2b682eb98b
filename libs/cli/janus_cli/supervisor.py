"""The supervisor: one local mesh as child processes, from start to a clean end.

Used by ``janus up``, ``make demo`` and, in a process of its own, by ``janus_testing.LocalMesh``. It knows
addresses and pids from the leases in Redis; the children's logs tell it only what they wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import httpx
from janus_runtime.coordination import Coordination
from janus_runtime.errors import DeadlineExceeded, FailedPrecondition, JanusError, Unavailable
from janus_runtime.records import Lease, Role
from janus_runtime.redis_server import RedisServer
from janus_runtime.shared_folder import remove_folder, shared_folder, tidy

from janus_cli.child import Child, read_lines, wait_for_end
from janus_cli.control import ControlServer
from janus_cli.engines import EngineServer, ServiceServer
from janus_cli.readiness import Waiting, last_startup_line, still_waiting
from janus_cli.resizer import Resizer
from janus_cli.rundir import RunDir
from janus_cli.spec import MeshSpec, ServiceSpec, services
from janus_cli.view import MeshView, connect, look, service_rows, worker_index

START_DEADLINE_S = 180.0
STOP_DEADLINE_S = 20.0
_LOOK_EVERY_S = 0.2
_BACKOFF_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STEADY_S = 2.0
"""A service that was ready for so long was not broken: when it dies, it starts again at once."""
_REDIS_PAUSE_S = 0.5
"""Before Redis is started again when it has not lived for longer than _STEADY_S."""
_SOCKET_PATH_MAX = 90
_BURY_S = 1.0
_WITH_ENGINE = (Role.ATTENTION, Role.MOE)

ServiceList = Callable[[MeshSpec, str, Path], list[ServiceSpec]]


class Reporter(Protocol):
    """Hears what happens; the terminal's part."""

    def waiting(self, waiting: Sequence[Waiting], ready: int, total: int) -> None:
        """The mesh is starting; called often, with the same value too."""

    def say(self, text: str) -> None:
        """Something worth a line."""


class Supervisor:
    """``async with Supervisor(spec, run_dir, reporter) as mesh: await mesh.start(); await mesh.run()``.

    Call it from the main thread (children die with the thread that started them). Leaving the context
    stops everything and removes sockets, whatever happened inside.
    """

    def __init__(
        self,
        spec: MeshSpec,
        run_dir: RunDir,
        reporter: Reporter,
        *,
        redis_url: str = "",
        restart: bool = True,
        start_deadline_s: float = START_DEADLINE_S,
        make_services: ServiceList = services,
    ) -> None:
        self.spec = spec
        self.run_dir = run_dir
        self._reporter = reporter
        self._external_redis = redis_url
        self._restart = restart
        self._start_deadline_s = start_deadline_s
        self._make_services = make_services
        self._redis: RedisServer | None = None
        self._redis_folder: Path | None = None
        self._coordination: Coordination | None = None
        self._engines: EngineServer | None = None
        self._forks: ServiceServer | None = None
        self._children: dict[str, Child] = {}
        self._specs: dict[str, ServiceSpec] = {}
        self._failures: dict[str, int] = {}
        self._ready_at: dict[str, float] = {}
        self._stack = contextlib.AsyncExitStack()
        self._shared: Path | None = None
        """Where workers keep files for each other, in memory."""
        self._owns_run_dir = False
        self._known: dict[str, Lease] = {}
        self._leaving: set[str] = set()
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._control = ""
        self.view = MeshView()

    async def __aenter__(self) -> Supervisor:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()

    # -- start ----------------------------------------------------------------------------------------

    @property
    def redis_url(self) -> str:
        """Redis of this mesh."""
        if self._external_redis:
            return self._external_redis
        return self._redis.url if self._redis else ""

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each child by worker id."""
        return {name: child.pid for name, child in self._children.items()}

    async def start(self) -> None:
        """Start everything and wait until the mesh is whole.

        FailedPrecondition with the last log lines of a service that died; DeadlineExceeded with what was
        still waited for.
        """
        deadline = time.monotonic() + self._start_deadline_s
        self.run_dir.create()
        self._stack.enter_context(self.run_dir.lock())
        self._owns_run_dir = True
        self.run_dir.clear()
        self._write_mesh("starting")
        if not self._external_redis:
            self._start_redis()
        tidy()
        self._shared = shared_folder(self.redis_url, self.spec.namespace)
        self._coordination = await connect(
            self.redis_url, self.spec.namespace, wait_s=min(10.0, self._start_deadline_s)
        )
        for spec in self._make_services(self.spec, self.redis_url, self.run_dir.traces):
            self._specs[spec.worker_id] = spec
            if self._engines is None and spec.role in _WITH_ENGINE:
                self._engines = EngineServer(self.run_dir.logs / "engines.log", spec.env)
                self._engines.start()
        await self._start_forks()
        for spec in self._specs.values():
            self._spawn(spec)
        async with httpx.AsyncClient(timeout=2.0, trust_env=False) as http:
            await self._until_whole(http, deadline)
        self._keep_ports()
        self._ready_at = dict.fromkeys(self._children, time.monotonic())
        self._write_mesh("ready")

    async def _start_forks(self) -> None:
        specs = list(self._specs.values())
        # Programs that are not Janus's own are started as they are.
        modules = {s.command[2] for s in specs if s.command[:3] == (sys.executable, "-m", f"janus_{s.role}")}
        if modules:
            self._forks = ServiceServer(self.run_dir.logs / "services.log", specs[0].env, sorted(modules))
            await self._forks.start()

    async def _until_whole(self, http: httpx.AsyncClient, deadline: float) -> None:
        assert self._coordination is not None
        while True:
            self._raise_if_died()
            with contextlib.suppress(Unavailable):
                await self.look()
            answers = await _answers(http, self.view)
            said = {
                name: last_startup_line(read_lines(child.log, child.log_start), name)
                for name, child in self._children.items()
            }
            waiting = still_waiting(self.pids, said, self.view, gateway_answers=answers)
            total = len(self._children)
            self._reporter.waiting(waiting, total - len(waiting), total)
            if not waiting:
                return
            if time.monotonic() > deadline:
                rest = "; ".join(f"{w.worker_id}: {w.what}" for w in waiting)
                raise DeadlineExceeded(
                    f"the mesh was not ready after {self._start_deadline_s:g} s; still waiting: {rest}",
                    reason="START_DEADLINE",
                    next_step=f"The logs are in {self.run_dir.logs}; --start-deadline gives it more time.",
                )
            await asyncio.sleep(_LOOK_EVERY_S)

    def _keep_ports(self) -> None:
        """A gateway that is started again comes back where its clients look for it."""
        ports = [
            (_port(lease.http_address), _port(lease.grpc_address))
            for lease in self.view.of(Role.GATEWAY)
            if lease.http_address
        ]
        if len(ports) != self.spec.gateways:
            return
        (http, grpc), *more = ports
        self.spec = dataclasses.replace(self.spec, http_port=http, grpc_port=grpc, more_ports=tuple(more))
        self._specs.update(self._make())

    async def look(self) -> None:
        """Bring :attr:`view` up to date. Raises Unavailable while Redis is away."""
        assert self._coordination is not None
        self.view = await look(self._coordination)
        # A lease that is missing just now (Redis came back empty) does not unmake what is known of a child.
        self._known.update({x.worker_id: x for x in self.view.leases if x.worker_id in self._children})

    def _start_redis(self) -> None:
        folder = self.run_dir.redis
        if len(str(folder)) > _SOCKET_PATH_MAX:  # a unix socket's path is limited to about 100 bytes
            folder = Path(tempfile.mkdtemp(prefix="janus-"))
            self._redis_folder = folder
        self._redis = RedisServer.start(self._redis_folder or folder)

    def _spawn(self, spec: ServiceSpec) -> None:
        log = self.run_dir.logs / f"{spec.worker_id}.log"
        env = dict(spec.env)
        if self._engines is not None and spec.role in _WITH_ENGINE:
            env |= self._engines.environment
        try:
            self._children[spec.worker_id] = Child(spec.worker_id, spec.command, env, log, forks=self._forks)
        except OSError as error:
            raise FailedPrecondition(f"cannot start {spec.worker_id}: {error}") from error

    def _raise_if_died(self) -> None:
        if self._redis is not None and not self._redis.alive():
            raise FailedPrecondition(f"Redis ended; its last lines: {self._redis.log_tail()}")
        for child in self._children.values():
            if child.status is not None:
                raise FailedPrecondition(
                    f"{child.name} {child.ending()} while starting; its last lines:\n"
                    + "\n".join(f"  {line}" for line in child.tail(20) or ["(none)"]),
                    reason="SERVICE_DIED",
                )

    # -- run ------------------------------------------------------------------------------------------

    async def run(self, until: asyncio.Event) -> None:
        """Watch the children until ``until`` is set; restart those that die. Idle between events.

        Without restarts, FailedPrecondition when one dies.
        """
        resizer = Resizer(self)
        try:
            async with (
                asyncio.TaskGroup() as self._tasks,
                ControlServer(self.run_dir, resizer.handle) as control,
            ):
                self._control = str(control.path)
                self._write_mesh("ready")
                for name in self._specs:
                    self._watch(name)
                others = [self._tasks.create_task(self._keep_redis())] if self._redis is not None else []
                if self._engines is not None:
                    others.append(self._tasks.create_task(self._engines.keep()))
                if self._forks is not None:
                    others.append(self._tasks.create_task(self._forks.keep()))
                await until.wait()
                for watcher in (*self._watchers.values(), *others):
                    watcher.cancel()
        except* JanusError as group:
            raise group.exceptions[0] from None
        finally:
            await resizer.close()
            self._tasks = None

    def _watch(self, name: str) -> None:
        assert self._tasks is not None
        self._watchers[name] = self._tasks.create_task(self._keep(name), name=f"keep {name}")

    async def _keep(self, name: str) -> None:
        while True:
            child = self._children[name]
            await child.wait()
            child.kill_group()
            await self._bury(name, child.pid)
            if name in self._leaving:
                return
            ending = f"{name} {child.ending()}"
            if not self._restart:
                lines = "\n".join(f"  {line}" for line in child.tail(20) or ["(none)"])
                raise FailedPrecondition(f"{ending}; its last lines:\n{lines}", reason="SERVICE_DIED")
            if time.monotonic() - self._ready_at.pop(name, float("inf")) > _STEADY_S:
                self._failures[name] = 0
            failures = self._failures.get(name, 0)
            pause = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            self._failures[name] = failures + 1
            when = f"in {pause:g} s" if pause else "at once"
            self._reporter.say(f"{ending}; starting it again {when} (log: {child.log})")
            if pause:
                await asyncio.sleep(pause)
                if name in self._leaving:
                    return
            self._spawn(self._specs[name])
            await self._settle(name)

    async def _bury(self, name: str, pid: int) -> None:
        """A dead child's lease goes now: the cohort that forms without it need not wait for it to expire."""
        assert self._coordination is not None
        with contextlib.suppress(JanusError, TimeoutError):
            async with asyncio.timeout(_BURY_S):
                await self.look()
                lease = self.view.get(name)
                if lease is not None and lease.pid == pid:
                    await self._coordination.bury(lease)

    async def _settle(self, name: str) -> None:
        """Wait for the restarted service's lease, then say so and bring mesh.json up to date."""
        assert self._coordination is not None
        child = self._children[name]
        deadline = time.monotonic() + self._start_deadline_s
        while child.status is None and time.monotonic() < deadline:
            with contextlib.suppress(Unavailable):
                await self.look()
                lease = self.view.get(name)
                if lease is not None and lease.pid == child.pid and lease.state == "ready":
                    self._ready_at[name] = time.monotonic()
                    self._reporter.say(f"{name} is ready again (pid {child.pid})")
                    self._write_mesh("ready")
                    return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _keep_redis(self) -> None:
        assert self._redis is not None
        while True:
            began = time.monotonic()
            await wait_for_end(self._redis.pid, self._redis.alive)
            self._reporter.say("Redis ended; starting it again (streams go on meanwhile)")
            self._redis.stop()
            if time.monotonic() - began < _STEADY_S:
                await asyncio.sleep(_REDIS_PAUSE_S)
            self._start_redis()

    def describe(self) -> dict[str, Any]:
        """``{"http", "grpc", "redis", "services": [...]}``: what ``janus up --json`` prints."""
        known = MeshView(leases=tuple(self._known.values()))
        gateway = known.gateway
        return {
            "http": gateway.http_address if gateway else "",
            "grpc": gateway.grpc_address if gateway else "",
            "gateways": [
                {"http": lease.http_address, "grpc": lease.grpc_address} for lease in known.of(Role.GATEWAY)
            ],
            "redis": self.redis_url,
            "services": service_rows(known),
        }

    def _write_mesh(self, state: str) -> None:
        mesh: Mapping[str, Any] = {
            "state": state,
            "pid": os.getpid(),
            **self.describe(),
            "namespace": self.spec.namespace,
            "model": str(self.spec.model),
            "attention": self.spec.attention,
            "experts": self.spec.experts,
            "run_dir": str(self.run_dir.path),
            "control": self._control,
            "traces": str(self.run_dir.traces),
        }
        self.run_dir.write_mesh(mesh)

    # -- change (see janus_cli.resizer) ---------------------------------------------------------------

    @property
    def slots(self) -> int:
        """Slots of a new MoE worker; 0: one per expert."""
        return self.spec.slots

    def workers(self) -> list[str]:
        """Ids of the attention and MoE workers that are not leaving."""
        return [
            name
            for name, spec in self._specs.items()
            if spec.role in _WITH_ENGINE and name not in self._leaving
        ]

    def pid(self, worker_id: str) -> int | None:
        """Process id of a worker that runs now."""
        child = self._children.get(worker_id)
        return child.pid if child is not None and child.status is None else None

    def add(self, worker_id: str) -> None:
        """Start a worker and watch it."""
        self._specs[worker_id] = self._make(worker_id)[worker_id]
        self._failures.pop(worker_id, None)
        self._spawn(self._specs[worker_id])
        self._watch(worker_id)

    def leaving(self, worker_id: str) -> None:
        """Do not start it again."""
        self._leaving.add(worker_id)

    async def remove(self, worker_id: str) -> None:
        """Stop a worker that is leaving, and forget it."""
        await self._children[worker_id].stop(STOP_DEADLINE_S)
        if (watcher := self._watchers.pop(worker_id, None)) is not None:
            watcher.cancel()
        for table in (self._children, self._specs, self._failures, self._ready_at, self._known):
            table.pop(worker_id, None)
        self._leaving.discard(worker_id)
        self.changed()

    def changed(self) -> None:
        """Workers have come or gone: mesh.json, and what a scheduler that is started again waits for."""
        counts = [
            sum(self._specs[n].role is role for n in self.workers()) for role in (Role.ATTENTION, Role.MOE)
        ]
        self.spec = dataclasses.replace(self.spec, attention=counts[0], experts=counts[1])
        for name, spec in self._make().items():
            if spec.role is Role.SCHEDULER:
                self._specs[name] = spec
        self._write_mesh("ready")

    def _make(self, worker_id: str = "") -> dict[str, ServiceSpec]:
        """Services by id, as :attr:`spec` has them; ``worker_id`` is among them whatever its index."""
        least, role = worker_index(worker_id) + 1, worker_id.rpartition("-")[0]
        spec = dataclasses.replace(
            self.spec,
            attention=max(self.spec.attention, least if role == Role.ATTENTION else 0),
            experts=max(self.spec.experts, least if role == Role.MOE else 0),
        )
        made = self._make_services(spec, self.redis_url, self.run_dir.traces)
        return {each.worker_id: each for each in made}

    # -- stop -----------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """End every child and Redis, remove what they left. Safe to call twice."""
        first = [
            c for n, c in self._children.items() if self._specs[n].role in (Role.GATEWAY, Role.AUTOSCALER)
        ]
        rest = [c for c in self._children.values() if c not in first]
        try:
            # The door closes first, so that streams end by its rules and not by their workers' leaving.
            for group in (first, rest):
                await asyncio.gather(*(child.stop(STOP_DEADLINE_S) for child in group))
        finally:
            for child in self._children.values():
                child.kill_group()
            self._children.clear()
            if self._engines is not None:
                await self._engines.stop()
                self._engines = None
            if self._forks is not None:
                await self._forks.stop()
                self._forks = None
            if self._coordination is not None:
                await self._coordination.close()
                self._coordination = None
            if self._redis is not None:
                self._redis.stop()
                self._redis = None
            if self._redis_folder is not None:
                shutil.rmtree(self._redis_folder, ignore_errors=True)
                self._redis_folder = None
            if self._shared is not None and not self._external_redis:  # that may be other meshes' too
                remove_folder(self._shared)
            if self._owns_run_dir:  # not when another mesh turned out to run here
                shutil.rmtree(self.run_dir.redis, ignore_errors=True)
                self.run_dir.mesh_file.unlink(missing_ok=True)
                self._owns_run_dir = False
            await self._stack.aclose()


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


async def _answers(http: httpx.AsyncClient, view: MeshView) -> bool:
    gateway = view.gateway
    if gateway is None or not gateway.http_address:
        return False
    try:
        return (await http.get(f"http://{gateway.http_address}/health/ready")).status_code == 200
    except httpx.HTTPError:
        return False
