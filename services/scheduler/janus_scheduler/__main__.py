"""``python -m janus_scheduler``: run the scheduler."""

from __future__ import annotations

import asyncio
import contextlib
import os

import click
from janus_runtime.coordination import Coordination
from janus_runtime.errors import JanusError
from janus_runtime.records import Lease, Role, WorkerState
from janus_runtime.server import GrpcServer
from janus_runtime.service import package_version, run_service
from janus_runtime.settings import build, click_options
from janus_runtime.startup import Startup
from janus_runtime.telemetry import setup_telemetry, shutdown_telemetry
from janus_wire.v1 import scheduler_pb2_grpc

from janus_scheduler.config import SchedulerSettings
from janus_scheduler.membership import Rules
from janus_scheduler.publisher import Publisher
from janus_scheduler.rebalancer import Rebalancer
from janus_scheduler.service import SchedulerService
from janus_scheduler.vigil import Vigil

ROLE = "scheduler"


@click.command()
@click_options(SchedulerSettings, ROLE)
def main(**flags: object) -> None:
    """Central activation scheduler: membership, cohort epochs, replica layout."""
    settings = build(SchedulerSettings, ROLE, flags)
    run_service(lambda: serve(settings))


async def serve(settings: SchedulerSettings) -> None:
    """Run until cancelled."""
    setup_telemetry(ROLE, settings.worker_id, settings)
    startup = Startup(ROLE, settings.worker_id)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutdown_telemetry)
        coordination = await Coordination.connect(settings, startup)
        stack.push_async_callback(coordination.close)
        server = await stack.enter_async_context(GrpcServer(settings, ROLE))

        async def tell(status: str) -> None:
            await keeper.update(detail=status)

        def dead(member: int) -> None:
            publisher.dead(member)

        def silent(member: int, silent: bool) -> None:
            publisher.silent(member, silent)

        vigil = Vigil(settings, coordination.bury, dead, silent)
        stack.push_async_callback(vigil.close)
        publisher = Publisher(
            coordination,
            settings.worker_id,
            Rules(
                min_attention=settings.min_attention, min_experts=settings.min_experts,
                gating=settings.gating, scheduling=settings.scheduling, exchange=settings.exchange,
                min_replicas=settings.min_replicas,
            ),
            settle_s=settings.settle_s,
            lease_ttl_s=settings.lease_ttl_s,
            on_status=tell,
            on_leases=vigil.follow,
            on_late=vigil.question,
        )  # fmt: skip
        rebalancer = Rebalancer(
            coordination, publisher, settings, every_s=settings.rebalance_s,
            horizon_s=settings.rebalance_horizon_s, min_replicas=settings.min_replicas,
        )  # fmt: skip
        server.add(
            scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server,
            SchedulerService(coordination, publisher, rebalancer),
            "janus.v1.SchedulerService",
        )
        address = await server.start()
        keeper = await coordination.register(
            Lease(
                worker_id=settings.worker_id, member=0, role=Role.SCHEDULER, pid=os.getpid(),
                grpc_address=address, node=settings.node, version=package_version("janus-mesh-scheduler"),
            )
        )  # fmt: skip
        stack.push_async_callback(keeper.close)
        stack.push_async_callback(_resign, publisher)
        await keeper.update(state=WorkerState.READY)
        server.set_serving(True)
        startup.ready(f"gRPC at {address}")
        async with asyncio.TaskGroup() as group:
            group.create_task(publisher.run())
            group.create_task(rebalancer.run())
            group.create_task(keeper.wait_superseded())


async def _resign(publisher: Publisher) -> None:
    with contextlib.suppress(JanusError):  # Redis is away: the office expires by itself
        await publisher.resign()


if __name__ == "__main__":
    main()
