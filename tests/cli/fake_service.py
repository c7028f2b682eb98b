"""A service that does nothing but what the supervisor looks at: lease, cohort, health, log lines, an engine.

``python fake_service.py <role>-<index> <behaviour>``. Behaviours: ``""``, ``dies`` (30 lines, then exit 3), ``stuck``
(waits for a checkpoint for ever), ``deaf`` (ignores SIGTERM), ``long lease`` (of five minutes).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

from janus_runtime.coordination import Coordination
from janus_runtime.records import CohortMember, CohortRecord, LayoutRecord, Lease, Role, WorkerState
from janus_runtime.service import run_service
from janus_runtime.settings import ServiceSettings
from janus_runtime.startup import Startup


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """200 to whatever is asked."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


async def publish(coordination: Coordination, attention: int, moe: int) -> None:
    """A cohort of the ready workers, again when they change."""
    token = await coordination.acquire_leader("scheduler-0", 3600.0)
    published: tuple[int, ...] = ()
    while token is not None:
        ready = [w for w in await coordination.workers() if w.state is WorkerState.READY]
        ranks = [[w for w in ready if w.role is role] for role in (Role.ATTENTION, Role.MOE)]
        members = tuple(w.member for rank in ranks for w in rank)
        if len(ranks[0]) >= attention and len(ranks[1]) >= moe and members != published:
            published = members
            epoch = await coordination.next_epoch()
            rows = [
                tuple(
                    CohortMember(
                        worker_id=w.worker_id, member=w.member, grpc_address="x:1", transport_address=""
                    )
                    for w in rank
                )
                for rank in ranks
            ]
            await coordination.publish_cohort(
                CohortRecord(epoch=epoch, attention=rows[0], moe=rows[1], layout_version=epoch),
                LayoutRecord(version=epoch, num_experts=1, slots=1, placement=()),
                token,
            )
        await asyncio.sleep(0.05)


async def serve(worker_id: str, behaviour: str, attention: int, moe: int) -> None:
    role = Role(worker_id.rpartition("-")[0])
    startup = Startup(role.value, worker_id)
    if behaviour == "dies":
        for number in range(30):
            print(f"line {number} of {worker_id}", file=sys.stderr, flush=True)
        sys.exit(3)
    settings = ServiceSettings(
        redis_url=os.environ["JANUS_REDIS_URL"],
        worker_id=worker_id,
        lease_ttl_s=300.0 if behaviour == "long lease" else 1.0,
    )
    coordination = await Coordination.connect(settings, startup)
    if role in (Role.ATTENTION, Role.MOE):  # an engine, which must not outlive its worker
        engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print(f"engine {engine.pid}", flush=True)
    if behaviour == "stuck":
        startup.waiting("checkpoint /nowhere")
        await asyncio.sleep(600)
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    http = address if role is Role.GATEWAY else ""
    keeper = await coordination.register(
        Lease(
            worker_id=worker_id, member=0, role=role, pid=os.getpid(), grpc_address=address, http_address=http,
            state=WorkerState.READY,
        )
    )  # fmt: skip
    startup.ready(address)
    if behaviour == "deaf":
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: print("deaf", flush=True))
    try:
        if role is Role.SCHEDULER:
            await publish(coordination, attention, moe)
        elif role in (Role.ATTENTION, Role.MOE):
            async for cohort in coordination.watch_cohort():
                await keeper.update(epoch=cohort.epoch)
        await asyncio.sleep(600)
    finally:
        await keeper.close()
        await coordination.close()
        server.close()


if __name__ == "__main__":
    name, what, m, n = sys.argv[1:]
    run_service(lambda: serve(name, what, int(m), int(n)))
