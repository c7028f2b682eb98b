"""``python -m janus_gateway``: run the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os

import click
from janus_runtime.coordination import Coordination
from janus_runtime.records import Lease, Role, WorkerState
from janus_runtime.server import GrpcServer
from janus_runtime.service import package_version, run_service
from janus_runtime.settings import build, click_options
from janus_runtime.startup import Startup
from janus_runtime.telemetry import setup_telemetry, shutdown_telemetry
from janus_wire.v1 import generation_pb2_grpc

from janus_gateway.app import build_app
from janus_gateway.auth import ApiKeys
from janus_gateway.config import GatewaySettings
from janus_gateway.generation import Generator
from janus_gateway.journal import Journal
from janus_gateway.metrics import GatewayMetrics
from janus_gateway.model import ServedModel
from janus_gateway.openai.handlers import Parts
from janus_gateway.pool import WorkerPool
from janus_gateway.service import GenerationServicer
from janus_gateway.web import HttpServer, bind
from janus_gateway.worker_metrics import WorkerMetrics

ROLE = "gateway"
log = logging.getLogger("janus.gateway")


@click.command()
@click_options(GatewaySettings, ROLE)
def main(**flags: object) -> None:
    """The door: gRPC and OpenAI-compatible HTTP, tokenizer, admission, routing."""
    settings = build(GatewaySettings, ROLE, flags)
    run_service(lambda: serve(settings))


async def serve(settings: GatewaySettings) -> None:
    """Run until cancelled."""
    setup_telemetry(ROLE, settings.worker_id, settings)
    startup = Startup(ROLE, settings.worker_id)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(shutdown_telemetry)
        sock = bind(settings)  # a taken port is said at once, not after a minute without Redis
        stack.callback(sock.close)
        startup.waiting(f"tokenizer of {settings.model}")
        model = await asyncio.to_thread(ServedModel, settings)
        coordination = await Coordination.connect(settings, startup)
        stack.push_async_callback(coordination.close)
        metrics = GatewayMetrics(model.name)
        pool = WorkerPool(coordination, settings)
        stack.push_async_callback(pool.close)
        workers = WorkerMetrics(settings)
        stack.push_async_callback(workers.close)
        journal = Journal(coordination, settings)
        stack.push_async_callback(journal.close)
        generator = Generator(pool, model, metrics, settings)
        keys = ApiKeys(settings.keys)

        server = await stack.enter_async_context(GrpcServer(settings, ROLE))
        servicer = GenerationServicer(generator, model, pool, metrics, keys, settings, journal)
        server.add(
            generation_pb2_grpc.add_GenerationServiceServicer_to_server,
            servicer,
            "janus.v1.GenerationService",
        )
        grpc_address = await server.start()
        app = build_app(
            Parts(generator=generator, model=model, metrics=metrics, settings=settings, journal=journal),
            pool,
            keys,
            workers,
        )
        http = HttpServer(app, settings)
        serving = http.start(sock)
        stack.push_async_callback(http.stop)
        http_address = f"{grpc_address.rpartition(':')[0]}:{sock.getsockname()[1]}"
        keeper = await coordination.register(
            Lease(
                worker_id=settings.worker_id,
                member=0,
                role=Role.GATEWAY,
                pid=os.getpid(),
                grpc_address=grpc_address,
                http_address=http_address,
                node=settings.node,
                version=package_version("janus-mesh-gateway"),
            )
        )
        stack.push_async_callback(_drain, generator, server, settings.drain_s)
        stack.push_async_callback(keeper.close)
        await keeper.update(state=WorkerState.READY)
        server.set_serving(True)
        startup.ready(
            f"{model.name} at http{'s' if settings.http_tls else ''}://{http_address}, gRPC at {grpc_address}"
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(pool.run())
            group.create_task(keeper.wait_superseded())
            await serving


async def _drain(generator: Generator, server: GrpcServer, drain_s: float) -> None:
    """Nothing new; what runs may end."""
    generator.draining = True
    await server.set_serving(False)
    try:
        async with asyncio.timeout(drain_s):
            await generator.wait_idle()
    except TimeoutError:
        log.warning("%d sequences are cut off at shutdown", generator.in_flight)


if __name__ == "__main__":
    main()
