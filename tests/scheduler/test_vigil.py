"""Held streams: a worker that dies is told at once from one that cannot be reached."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from janus_runtime.errors import Unavailable
from janus_runtime.records import Lease
from janus_runtime.server import GrpcServer
from janus_runtime.settings import ServiceSettings
from janus_scheduler import vigil as module
from janus_scheduler.vigil import Vigil, refuses

pytestmark = pytest.mark.asyncio
SETTINGS = ServiceSettings(worker_id="test-0")


@contextlib.asynccontextmanager
async def relay(port: int) -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """A network in between: ``host:port``, and the connections through it, which may be cut."""
    cuts: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(4096):
                    writer.write(data)
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cuts.append(writer)
        there, back = await asyncio.open_connection("127.0.0.1", port)
        cuts.append(back)
        await asyncio.gather(pump(reader, back), pump(there, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", cuts
    finally:
        server.close()
        for cut in cuts:
            cut.close()


async def until(condition: Callable[[], Any], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def buried() -> list[Lease]:
    return []


@pytest.fixture
async def vigil(buried: list[Lease], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Vigil]:
    monkeypatch.setattr(module, "_PAUSE_S", 0.05)

    async def bury(lease: Lease) -> None:
        buried.append(lease)

    vigil = Vigil(SETTINGS, bury)
    yield vigil
    await vigil.close()


async def test_a_process_that_ends_is_buried_at_once(
    vigil: Vigil, buried: list[Lease], ready: Callable[..., Lease], caplog: pytest.LogCaptureFixture
) -> None:
    servers = [GrpcServer(SETTINGS, "moe") for _ in range(2)]
    leases = [ready(f"moe-{n}", n + 1, grpc_address=await s.start()) for n, s in enumerate(servers)]
    vigil.follow([*leases, ready("gateway-0", 9, grpc_address="127.0.0.1:1")])
    await asyncio.sleep(0.5)
    assert not buried
    began = asyncio.get_running_loop().time()
    await servers[1].stop(0.0)
    await until(lambda: buried)
    assert buried == [leases[1]] and asyncio.get_running_loop().time() - began < 1.0
    assert "moe-1 (member 2" in caplog.text
    vigil.follow(leases[:1])
    await servers[0].stop(0.0)
    await until(lambda: len(buried) == 2)


async def test_a_member_without_a_lease_is_watched_on_and_its_end_told_though_redis_is_away(
    ready: Callable[..., Lease],
) -> None:
    dead: list[int] = []

    async def bury(lease: Lease) -> None:
        raise Unavailable("Redis is away")

    vigil = Vigil(SETTINGS, bury, dead.append)
    server = GrpcServer(SETTINGS, "moe")
    vigil.follow([ready("moe-0", 7, grpc_address=await server.start())])
    await asyncio.sleep(0.3)
    vigil.follow((), {7, 8})  # a Redis that came back empty
    await server.stop(0.0)
    await until(lambda: dead == [7])
    vigil.follow((), {8})
    assert not vigil._held
    await vigil.close()


async def test_a_cut_connection_is_no_death(
    vigil: Vigil, buried: list[Lease], ready: Callable[..., Lease]
) -> None:
    async with GrpcServer(SETTINGS, "moe") as server:
        address = await server.start()
        async with relay(server.port) as (between, connections):
            vigil.follow([ready("moe-0", 1, grpc_address=between)])
            for count in (2, 4):  # cut, and cut again once it is held anew
                await until(lambda count=count: len(connections) >= count)
                await asyncio.sleep(0.1)
                for connection in connections:
                    connection.close()
            await asyncio.sleep(0.3)
            assert not buried and not await refuses(address)


async def test_an_address_that_never_answered_says_nothing(
    vigil: Vigil, buried: list[Lease], ready: Callable[..., Lease]
) -> None:
    async with relay(1) as (address, _):
        pass
    assert await refuses(address)
    wrong = ready("moe-0", 1, grpc_address=address)
    vigil.follow([wrong, dataclasses.replace(wrong, member=2, grpc_address="no port")])
    await asyncio.sleep(0.4)
    assert not buried


async def test_who_does_not_answer_though_a_witness_does_is_silent_until_it_answers(
    ready: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ANSWER_S", 0.3)
    monkeypatch.setattr(module, "_AGAIN_S", 0.05)
    heard: list[tuple[int, bool]] = []

    async def bury(lease: Lease) -> None:
        raise AssertionError("nobody died")

    vigil = Vigil(SETTINGS, bury, on_silent=lambda member, silent: heard.append((member, silent)))
    async with GrpcServer(SETTINGS, "moe") as server, Frozen() as frozen:
        alive, address = await server.start(), frozen.address
        vigil.follow(
            [ready(f"moe-{n}", n, grpc_address=a) for n, a in ((1, alive), (2, address), (3, address))]
        )
        vigil.question({1}, {2})  # answers
        vigil.question({2}, {3})  # nobody answers: that may be us
        await asyncio.sleep(0.8)
        assert not heard
        vigil.follow([ready(f"moe-{n}", n, grpc_address=a) for n, a in ((1, alive), (3, address))])
        await until(lambda: not vigil._asked)
        vigil.question({3}, {1})
        await until(lambda: heard)
        assert heard == [(3, True)]
        await asyncio.sleep(0.3)
        frozen.wake(server.port)
        await until(lambda: len(heard) > 1)
        assert heard == [(3, True), (3, False)]
    await vigil.close()


class Frozen:
    """A stopped process: its host accepts connections, nobody answers."""

    async def __aenter__(self) -> Frozen:
        self._port = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()

    def wake(self, port: int) -> None:
        """From now on it is the server at ``port``."""
        self._port = port

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        while not (self._port or writer.is_closing()):
            await asyncio.sleep(0.02)
        if writer.is_closing():
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.append(back)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            try:
                with contextlib.suppress(OSError):
                    while data := await source.read(4096):
                        target.write(data)
            finally:
                target.close()

        await asyncio.gather(pump(reader, back), pump(there, writer))
