"""Real grpc.aio servers on port 0: errors, spans, health, reflection, TLS."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from janus_runtime.channel import connect
from janus_runtime.errors import FailedPrecondition, Internal, InvalidArgument, Unavailable, from_rpc_error
from janus_runtime.server import GrpcServer
from janus_runtime.settings import ServiceSettings
from janus_wire.v1 import common_pb2, scheduler_pb2_grpc
from janus_wire.v1 import scheduler_pb2 as pb

pytestmark = pytest.mark.asyncio
NAME = "janus.v1.SchedulerService"
SETTINGS = ServiceSettings(redis_url="redis://unused:1", worker_id="x")


class Servicer(scheduler_pb2_grpc.SchedulerServiceServicer):
    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.metadata: dict[str, Any] = {}
        self.peer = ""
        self.closed_in_place = False

    async def GetCohort(self, request: Any, context: Any) -> Any:
        self.metadata = dict(context.invocation_metadata())
        raise InvalidArgument("bad", field="f", value=1, allowed="2..3", next_step="Fix it.")

    async def GetLayout(self, request: Any, context: Any) -> Any:
        if request.version == 1:
            raise ValueError("hush hush")
        if request.version == 2:
            await context.abort(grpc.StatusCode.DATA_LOSS, "as it is")
        if request.version == 3:
            await asyncio.sleep(60)
        if request.version == 4:  # what a proxying service does
            async with connect(self.peer) as channel:
                await scheduler_pb2_grpc.SchedulerServiceStub(channel).GetCohort(
                    pb.GetCohortRequest(), timeout=5
                )
        return pb.GetLayoutResponse()

    async def WatchCohort(self, request: Any, context: Any) -> AsyncIterator[Any]:
        task = asyncio.current_task()
        try:
            while "flood" in dict(context.invocation_metadata()):
                yield pb.WatchCohortResponse(cohort=common_pb2.Cohort(model="x" * 100_000))
            yield pb.WatchCohortResponse()
            if "fail" in dict(context.invocation_metadata()):
                raise Unavailable("later", retry_after_s=2.0)
            await asyncio.sleep(60)
        finally:
            self.closed_in_place = asyncio.current_task() is task
            self.closed.set()

    async def Rebalance(self, request: Any, context: Any) -> Any:
        return pb.RebalanceResponse(reason="ok")


class Served:
    def __init__(self, settings: ServiceSettings = SETTINGS) -> None:
        self.settings = settings
        self.server = GrpcServer(settings, "scheduler")
        self.servicer = Servicer()

    async def __aenter__(self) -> Served:
        self.server.add(scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, self.servicer, NAME)
        self.address = self.servicer.peer = await self.server.start()
        self.channel = connect(self.address, self.settings)
        self.stub = scheduler_pb2_grpc.SchedulerServiceStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.server.stop(0.1)


async def test_janus_errors_arrive_with_details() -> None:
    async with Served() as s:
        with pytest.raises(grpc.RpcError) as caught:
            await s.stub.GetCohort(pb.GetCohortRequest(), timeout=5)
        error = from_rpc_error(caught.value)
        assert type(error) is InvalidArgument
        assert (error.field, error.allowed, error.next_step) == ("f", "2..3", "Fix it.")


async def test_unexpected_errors_are_internal_and_keep_their_text_to_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Served() as s:
        with pytest.raises(grpc.RpcError) as caught:
            await s.stub.GetLayout(pb.GetLayoutRequest(version=1), timeout=5)
        error = from_rpc_error(caught.value)
        assert type(error) is Internal and "hush" not in str(error) and "ValueError" in str(error)
        assert "hush hush" in caplog.text
        assert (await s.stub.GetLayout(pb.GetLayoutRequest(), timeout=5)) == pb.GetLayoutResponse()


async def test_abort_and_deadline_pass_through() -> None:
    async with Served() as s:
        for version, code in ((2, grpc.StatusCode.DATA_LOSS), (3, grpc.StatusCode.DEADLINE_EXCEEDED)):
            with pytest.raises(grpc.RpcError) as caught:
                await s.stub.GetLayout(pb.GetLayoutRequest(version=version), timeout=0.3)
            assert caught.value.code() is code


async def test_an_inner_call_s_error_keeps_code_and_details() -> None:
    async with Served() as s:
        with pytest.raises(grpc.RpcError) as caught:
            await s.stub.GetLayout(pb.GetLayoutRequest(version=4), timeout=5)
        assert from_rpc_error(caught.value).field == "f"


async def test_a_stream_fails_after_what_it_sent() -> None:
    async with Served() as s:
        got = []
        with pytest.raises(grpc.RpcError) as caught:
            async for message in s.stub.WatchCohort(
                pb.WatchCohortRequest(), timeout=5, metadata=(("fail", "1"),)
            ):
                got.append(message)
        error = from_rpc_error(caught.value)
        assert len(got) == 1 and isinstance(error, Unavailable) and error.retry_after_s == 2.0


async def test_cancelling_closes_the_servicer_s_generator_at_once() -> None:
    async with Served() as s:
        call = s.stub.WatchCohort(pb.WatchCohortRequest(), timeout=30)
        await call.read()
        assert not s.servicer.closed.is_set()
        call.cancel()
        await asyncio.wait_for(s.servicer.closed.wait(), 2)


async def test_a_generator_suspended_at_a_yield_is_closed_by_its_own_call() -> None:
    """Not by the garbage collector in some other task, where its context and spans are not."""
    async with Served() as s:
        call = s.stub.WatchCohort(pb.WatchCohortRequest(), timeout=30, metadata=(("flood", "1"),))
        await call.read()
        await asyncio.sleep(0.1)  # the window is full: the server waits in its write
        call.cancel()
        await asyncio.wait_for(s.servicer.closed.wait(), 2)
        assert s.servicer.closed_in_place


async def test_stop_ends_open_streams_within_the_grace() -> None:
    async with Served() as s:
        call = s.stub.WatchCohort(pb.WatchCohortRequest(), timeout=30)
        await call.read()
        await asyncio.wait_for(s.server.stop(0.1), 3)
        with pytest.raises(grpc.RpcError):
            await call.read()


async def test_health() -> None:
    async with Served() as s:
        stub = health_pb2_grpc.HealthStub(s.channel)
        status = health_pb2.HealthCheckResponse
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=NAME), timeout=10)
        assert (await watch.read()).status == status.NOT_SERVING
        await s.server.set_serving(True)
        assert (await watch.read()).status == status.SERVING
        assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == status.SERVING
        s.server.set_serving(False)
        assert (await watch.read()).status == status.NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_and_describes_services() -> None:
    async with Served() as s:
        stub = reflection_pb2_grpc.ServerReflectionStub(s.channel)
        call = stub.ServerReflectionInfo(
            iter([
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
            ]),
            timeout=5,
        )  # fmt: skip
        listed = await call.read()
        names = {service.name for service in listed.list_services_response.service}
        assert {NAME, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= names
        assert (await call.read()).file_descriptor_response.file_descriptor_proto


async def test_port_in_use_names_the_port() -> None:
    async with Served() as s:
        second = GrpcServer(dataclasses.replace(SETTINGS, grpc_port=s.server.port), "moe")
        with pytest.raises(FailedPrecondition, match=rf"moe: .*port {s.server.port} is in use.*--grpc-port"):
            await second.start()
        await second.stop(0)


async def test_advertised_address() -> None:
    async with Served(dataclasses.replace(SETTINGS, advertise_host="localhost")) as s:
        assert s.address == f"localhost:{s.server.port}"
        assert (await s.stub.Rebalance(pb.RebalanceRequest(), timeout=5)).reason == "ok"


def make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A certificate authority and a certificate for localhost and 127.0.0.1 signed by it."""
    ca, key, cert = folder / "ca.pem", folder / "key.pem", folder / "cert.pem"
    (folder / "ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")

    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=30)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req",
        "-x509",
        *new_key,
        "-keyout",
        folder / "ca.key",
        "-out",
        ca,
        "-subj",
        "/CN=test-ca",
        "-days",
        "1",
    )
    openssl("req", *new_key, "-keyout", key, "-out", folder / "csr", "-subj", "/CN=localhost")
    openssl(
        "x509", "-req", "-in", folder / "csr", "-CA", ca, "-CAkey", folder / "ca.key", "-CAcreateserial",
        "-out", cert, "-days", "1", "-extfile", folder / "ext",
    )  # fmt: skip
    return ca, key, cert


async def test_tls_and_mutual_tls(tmp_path: Path) -> None:
    ca, key, cert = make_certificates(tmp_path)
    mutual = dataclasses.replace(SETTINGS, tls_cert=str(cert), tls_key=str(key), tls_ca=str(ca))
    async with Served(mutual) as s:
        assert (await s.stub.Rebalance(pb.RebalanceRequest(), timeout=5)).reason == "ok"
        for stranger in (
            SETTINGS,
            dataclasses.replace(SETTINGS, tls_ca=str(ca)),
        ):  # in clear; without certificate
            async with connect(s.address, stranger) as channel:
                with pytest.raises(grpc.RpcError) as caught:
                    await scheduler_pb2_grpc.SchedulerServiceStub(channel).Rebalance(
                        pb.RebalanceRequest(), timeout=3
                    )
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_tls_file_that_is_not_there() -> None:
    server = GrpcServer(dataclasses.replace(SETTINGS, tls_cert="/none.pem", tls_key="/none.key"), "moe")
    with pytest.raises(FailedPrecondition, match=r"cannot read /none"):
        await server.start()
    await server.stop(0)
