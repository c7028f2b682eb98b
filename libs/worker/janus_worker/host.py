"""The control process of a worker with an engine: lease, cohort, gRPC, statistics, spans.

Order of a start: Redis, lease (starting), engine, gRPC server, lease (ready). From then on the engine is
fed each cohort it belongs to, and the lease tells what the engine does.
"""

from __future__ import annotations

import abc
import asyncio
import base64
import contextlib
import itertools
import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from janus_runtime.coordination import Coordination
from janus_runtime.errors import FailedPrecondition, Internal, JanusError, Unavailable
from janus_runtime.lease import LeaseKeeper
from janus_runtime.records import CohortMember, CohortRecord, Lease, Role, WorkerState
from janus_runtime.server import GrpcServer
from janus_runtime.startup import Startup
from janus_runtime.telemetry import record_span, setup_telemetry, shutdown_telemetry

from janus_worker import VERSION
from janus_worker.link import ChildGone, EngineProcess, Message
from janus_worker.lockstep import cohort_message
from janus_worker.settings import WorkerSettings

_LOG = logging.getLogger("janus.worker")
_LAYOUT_WAIT_S = 10.0
_FAULT_S = 5.0
_GRACE_S = 0.5
"""Calls that are open when a worker ends may take so long."""
_LAST_STEP_S = 2.5
"""Who has drained, and is told to stop as it leaves the cohort, may finish the step that the others finish with it."""
S = TypeVar("S", bound=WorkerSettings)


class WorkerHost(abc.ABC, Generic[S]):
    """Base of the attention and MoE control processes."""

    role: Role
    engine_module: str
    ready_timeout_s = 600.0
    """Longest that loading a model may take."""

    def __init__(self, settings: S) -> None:
        self.settings = settings
        self.stats: dict[str, Any] = {}
        """The engine's latest report."""
        self.hello: dict[str, Any] = {}
        self.rank = 0
        self.layout_version = 0
        self.draining = False
        self._startup = Startup(self.role.value, settings.worker_id)
        self._engine: EngineProcess | None = None
        self._keeper: LeaseKeeper | None = None
        self._coordination: Coordination | None = None
        self._ready = asyncio.Event()
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._call_ids = itertools.count(1)
        self._out = asyncio.Event()
        """Set while the engine is in no cohort."""
        self._out.set()
        self._sent_epoch = 0
        self.cohort: CohortRecord | None = None
        """The latest that the engine was told of."""
        self.peers: dict[int, CohortMember] = {}
        """Members of the cohort in force and of the one before, by number."""
        self._members: dict[int, CohortMember] = {}
        self._fault = asyncio.Event()
        self._fault_reason, self._fault_member = "", 0

    # What a worker adds -----------------------------------------------------------------------

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """What members of one cohort must agree on: checkpoint, dtype and step size."""

    @abc.abstractmethod
    def engine_options(self) -> dict[str, Any]:
        """Settings for the engine process."""

    @abc.abstractmethod
    def add_services(self, server: GrpcServer) -> None:
        """Register the worker's own gRPC service."""

    @abc.abstractmethod
    def lease_fields(self) -> dict[str, Any]:
        """Fields of the lease that the engine's hello decides."""

    async def on_message(self, message: Message) -> None:
        """An engine message that is the role's own."""
        _LOG.error("unknown message %r from the engine; versions differ?", message.body.get("t"))

    async def on_stats(self) -> None:
        """The engine has reported."""

    @abc.abstractmethod
    async def leave(self) -> None:
        """Drain; return when this worker may be stopped."""

    # Life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled, and then for ``drain_s`` at most until it is drained.

        Raises JanusError when the worker cannot start or its engine dies.
        """
        serving = asyncio.ensure_future(self._run())
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            if self.settings.drain_s and self._sent_epoch and not serving.done():
                leaving = asyncio.ensure_future(self.leave())
                await asyncio.wait(
                    [leaving, serving], timeout=self.settings.drain_s, return_when=asyncio.FIRST_COMPLETED
                )
                leaving.cancel()
                outcomes = await asyncio.gather(leaving, return_exceptions=True)
                _LOG.info(
                    "drained: %s", "yes" if outcomes[0] is None else "not quite, streams go on elsewhere"
                )
            if self.draining and not serving.done():
                out = asyncio.ensure_future(self._out.wait())
                await asyncio.wait([out, serving], timeout=_LAST_STEP_S, return_when=asyncio.FIRST_COMPLETED)
                out.cancel()
            raise
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    async def _run(self) -> None:
        settings = self.settings
        setup_telemetry(self.role.value, settings.worker_id, settings)
        fingerprint = self.fingerprint()
        coordination = self._coordination = await Coordination.connect(settings, self._startup)
        server = GrpcServer(settings, self.role.value)
        self.add_services(server)
        try:
            address = await server.start()
            self._keeper = await coordination.register(
                Lease(
                    worker_id=settings.worker_id, member=0, role=self.role, pid=os.getpid(), grpc_address=address,
                    node=settings.node, model=fingerprint, detail="starting the engine", version=VERSION,
                )
            )  # fmt: skip
            options = {**self.engine_options(), "member": self._keeper.lease.member}
            self._engine = await EngineProcess.start(self.engine_module, ["--options", json.dumps(options)])
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read_engine(self._engine))
                tasks.create_task(self._superseded())
                tasks.create_task(self._watch_faults())
                tasks.create_task(self._serve(coordination, server))
        except* JanusError as group:
            raise _first(group) from None
        except* ChildGone as group:
            raise Internal(f"{settings.worker_id}: {_first(group)}", reason="ENGINE_LOST") from None
        finally:
            await self._close(coordination, server)

    async def _serve(self, coordination: Coordination, server: GrpcServer) -> None:
        try:
            async with asyncio.timeout(self.ready_timeout_s):
                await self._ready.wait()
        except TimeoutError:
            raise Unavailable(
                f"the engine was not ready after {self.ready_timeout_s:.0f} s; last: {self._startup.what}",
                next_step="Look at the log above for what it was doing.",
            ) from None
        assert self._keeper is not None and self._engine is not None
        address = base64.b64encode(bytes.fromhex(self.hello["address"])).decode()
        await self._keeper.update(
            state=WorkerState.READY, detail="waiting for a cohort",
            transport=self.hello["transport"].partition(":")[0],  # channels may differ between hosts
            transport_address=address, engine_pid=self._engine.pid, **self.lease_fields(),
        )  # fmt: skip
        server.set_serving(True)
        self._startup.ready(f"{self._keeper.lease.grpc_address}, {self.hello['transport']}")
        async for cohort in coordination.watch_cohort():
            await self._announce(coordination, cohort)

    async def _announce(self, coordination: Coordination, cohort: CohortRecord) -> None:
        """Hand a cohort to the engine, with its layout."""
        assert self._keeper is not None and self._engine is not None
        if cohort.epoch <= self._sent_epoch:
            return
        deadline = time.monotonic() + _LAYOUT_WAIT_S
        while True:
            try:
                layout = await coordination.layout(cohort.layout_version)
            except JanusError as error:
                _LOG.warning("layout %d of epoch %d: %s", cohort.layout_version, cohort.epoch, error)
                layout = None
            if layout is not None:
                break
            if time.monotonic() > deadline:
                # Nothing to serve with; the scheduler publishes both at once, so a later epoch is on its way.
                _LOG.error(
                    "epoch %d names layout %d, which Redis does not have; waiting for the next epoch",
                    cohort.epoch, cohort.layout_version,
                )  # fmt: skip
                return
            await asyncio.sleep(0.2)
        self._sent_epoch, self.cohort = cohort.epoch, cohort
        members = {m.member: m for m in (*cohort.attention, *cohort.moe)}
        self.peers, self._members = {**self._members, **members}, members
        await self._engine.send(cohort_message(cohort, layout))

    async def _read_engine(self, engine: EngineProcess) -> None:
        while True:
            message = await engine.receive()
            kind = message.body.get("t")
            if kind == "hello":
                self.hello = message.body
                self._ready.set()
            elif kind == "waiting":
                self._out.set()
                await self._waiting(message.body["detail"])
            elif kind == "epoch":
                self._out.clear()
                self.rank, self.layout_version = message.body["rank"], message.body["layout_version"]
                await self._tell(
                    epoch=message.body["epoch"], detail=f"rank {self.rank}", waiting_for=(), late=()
                )
            elif kind == "resumed":
                await self._tell(detail=f"rank {self.rank}", waiting_for=(), late=())
            elif kind == "late":
                await self._tell(late=tuple(message.body["members"]))
            elif kind == "stall":
                await self._tell(detail=message.body["detail"], waiting_for=tuple(message.body["members"]))
            elif kind == "fault":
                self._fault_reason, self._fault_member = message.body["reason"], message.body["member"]
                self._fault.set()
                await self._tell(detail=self._fault_reason)
            elif kind == "stats":
                self.stats = message.body["stats"]
                await self.on_stats()
            elif kind == "spans":
                _record(message.body["spans"])
            elif kind == "reply":
                future = self._calls.pop(message.body["id"], None)
                if future is not None and not future.done():
                    future.set_result(message.body)
            elif kind == "failed":
                raise FailedPrecondition(message.body["message"], next_step=message.body.get("next_step", ""))
            else:
                await self.on_message(message)

    async def _waiting(self, detail: str) -> None:
        if not self._ready.is_set():
            self._startup.waiting(detail)
        await self._tell(detail=f"waiting for {detail}", waiting_for=(), late=())

    async def _tell(self, **changes: Any) -> None:
        if self._keeper is not None and self._keeper.lease.state is not WorkerState.STARTING:
            await self._keeper.update(**changes)

    async def _superseded(self) -> None:
        assert self._keeper is not None
        await self._keeper.superseded.wait()
        raise FailedPrecondition(
            f"another process has registered as {self.settings.worker_id}", reason="WORKER_ID_TAKEN",
            next_step="Give each worker its own --worker-id.",
        )  # fmt: skip

    async def _watch_faults(self) -> None:
        """A lost peer's lease ends and a new cohort follows; when the lease lives on, the link is what is broken.

        Then this worker starts again: as a new member it gets a new cohort with new links, and the gateway
        resumes its streams elsewhere meanwhile. A peer that is really gone may be long in coming back, when too
        few workers are left: starting again would only add to that.
        """
        patience = 2 * self.settings.lease_ttl_s + _FAULT_S
        while True:
            await self._fault.wait()
            self._fault.clear()
            epoch, member = self._sent_epoch, self._fault_member
            while self._sent_epoch == epoch:
                await asyncio.sleep(patience)
                if self._sent_epoch == epoch and await self._has_lease(member):
                    raise Unavailable(
                        f"{self._fault_reason}, yet no new cohort came within {patience:.0f} s of epoch {epoch}",
                        reason="PEER_UNREACHABLE", next_step="Start this worker again (a supervisor does).",
                    )  # fmt: skip

    async def _has_lease(self, member: int) -> bool:
        """False also while Redis is away: nothing can change then, nor would starting again help."""
        assert self._coordination is not None
        try:
            return any(lease.member == member for lease in await self._coordination.workers())
        except JanusError:
            return False

    async def _close(self, coordination: Coordination, server: GrpcServer) -> None:
        self._startup.done()
        if self._keeper is not None:
            await self._keeper.close()
        # Nobody hears the engine any more, and its peers wait for it: it ends beside the calls that are open, of which
        # a scheduler's lasts as long as it may.
        await asyncio.gather(
            server.stop(_GRACE_S), *([self._engine.stop()] if self._engine is not None else [])
        )
        await coordination.close()
        shutdown_telemetry()

    # For the servicers ------------------------------------------------------------------------

    @property
    def lease(self) -> Lease:
        """This worker's lease. Raises Unavailable before it is registered."""
        if self._keeper is None:
            raise Unavailable("the worker is starting", retry_after_s=1.0)
        return self._keeper.lease

    @property
    def engine(self) -> EngineProcess:
        """The engine. Raises Unavailable while it loads."""
        if self._engine is None or not self._ready.is_set():
            raise Unavailable(
                f"{self.settings.worker_id} is starting: {self._startup.what or 'loading'}", retry_after_s=1.0
            )
        return self._engine

    async def call(self, body: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """A request to the engine and its reply."""
        number = next(self._call_ids)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            await self.engine.send({**body, "id": number})
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise Unavailable(
                f"the engine did not answer {body['t']!r} within {timeout_s:.0f} s", retry_after_s=1.0
            ) from None
        finally:
            self._calls.pop(number, None)

    async def set_load(self, *, running: int, waiting: int) -> None:
        """Sequences in the batch and queued, for whoever routes requests."""
        await self._tell(running=running, waiting=waiting)

    async def publish(self, stats: Mapping[str, float]) -> None:
        """Report to the statistics stream; while Redis is away the sample is dropped, the next one has it all."""
        assert self._coordination is not None
        try:
            await self._coordination.report_stats(self.settings.worker_id, stats)
        except JanusError as error:
            _LOG.debug("statistics not reported: %s", error)

    async def publish_routing(self, fields: Mapping[str, bytes]) -> None:
        """Add to the mesh's routing statistics; lost while Redis is away."""
        assert self._coordination is not None
        try:
            await self._coordination.report_routing(fields)
        except JanusError as error:
            _LOG.debug("routing not reported: %s", error)

    async def _left_cohort(self) -> None:
        """Until the cohort in force is without this worker."""
        assert self._coordination is not None
        while True:
            with contextlib.suppress(JanusError):  # Redis is away; the cohort in force stays
                cohort = await self._coordination.cohort()
                if cohort is None or all(
                    m.member != self.lease.member for m in (*cohort.attention, *cohort.moe)
                ):
                    return
            await asyncio.sleep(0.1)

    async def drain(self) -> None:
        """Say in the lease that this worker takes nothing new."""
        self.draining = True
        await self._tell(state=WorkerState.DRAINING, detail="draining")


def _record(spans: list[dict[str, Any]]) -> None:
    for span in spans:
        with contextlib.suppress(ValueError):
            record_span(
                span["name"], span["start"], span["end"], int(span["trace"], 16), int(span["parent"], 16),
                span.get("attributes"), span_id=int(span.get("span") or "0", 16),
            )  # fmt: skip


def _first(group: BaseExceptionGroup[Any]) -> Any:
    error: Any = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
