"""AttentionService over real gRPC with an engine that is no engine: what it is told, and what callers hear."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import pytest_asyncio
from janus_attention.moving import KvMover
from janus_attention.service import AttentionServicer
from janus_attention.streams import Streams
from janus_attention.validate import Limits
from janus_runtime.errors import InvalidArgument, JanusError, from_rpc_error
from janus_runtime.server import GrpcServer
from janus_runtime.settings import ServiceSettings
from janus_wire.v1 import attention_pb2, attention_pb2_grpc, common_pb2
from janus_worker.link import ChildGone, Message

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


@dataclass
class Settings:
    worker_id: str = "attention-0"
    max_sequences: int = 4
    max_waiting: int = 4
    guide_timeout_s: float = 0.3
    block_size: int = 16
    prefix_cache: bool = False


@dataclass
class Host:
    """What the servicer needs of its host; ``script`` says what the engine answers a submission with."""

    settings: Settings = field(default_factory=Settings)
    streams: Streams = field(default_factory=Streams)
    limits: Limits = field(default_factory=lambda: Limits(vocab_size=100, context=10**9, eos_ids=(2,)))
    draining: bool = False
    script: str = "tokens"
    sent: list[dict[str, Any]] = field(default_factory=list)
    posts: list[asyncio.Future[None]] = field(default_factory=list)
    others: bool = True
    running: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.mover = KvMover(self, "model")  # type: ignore[arg-type]

    @property
    def engine(self) -> Host:
        return self

    async def send(self, body: dict[str, Any]) -> None:
        self.sent.append(body)
        number = body["id"]
        if body["t"] == "submit":
            self.running[number] = asyncio.create_task(self._answer(number))
        elif (task := self.running.pop(number, None)) is not None:
            task.cancel()

    def post(self, body: dict[str, Any]) -> None:
        self.posts.append(asyncio.ensure_future(self.send(body)))

    def tell(self, *items: dict[str, Any]) -> None:
        self.streams.deliver(Message({"t": "tokens", "items": list(items)}, b""))

    async def _answer(self, number: int) -> None:
        if self.script == "refuse":
            self.tell({"id": number, "error": "why", "field": "sampling.guide", "finish": "error"})
        elif self.script == "complete":
            self.tell({"id": number, "ready": True}, {"id": number, "finish": "stop"})
        elif self.script == "bad logits":
            self.tell({"id": number, "error": "not finite", "finish": "error"})
        elif self.script == "tokens":
            for index in range(10**9):
                self.tell({"id": number, "token": 5, "index": index})
                await asyncio.sleep(0)

    def cancels(self) -> list[int]:
        return [body["id"] for body in self.sent if body["t"] == "cancel"]


@pytest_asyncio.fixture
async def served() -> AsyncIterator[tuple[Host, Any]]:
    host = Host()
    server = GrpcServer(ServiceSettings(worker_id="attention-0"), "attention")
    add = attention_pb2_grpc.add_AttentionServiceServicer_to_server
    server.add(add, AttentionServicer(host), "janus.v1.AttentionService")  # type: ignore[arg-type]
    address = await server.start()
    async with grpc.aio.insecure_channel(address) as channel:
        yield host, attention_pb2_grpc.AttentionServiceStub(channel)
    for task in host.running.values():
        task.cancel()
    await server.stop()


def request(**sampling: Any) -> attention_pb2.AttentionServiceGenerateRequest:
    params = common_pb2.SamplingParams(temperature=0, **sampling)
    return attention_pb2.AttentionServiceGenerateRequest(prompt_token_ids=[1, 4], sampling=params)


async def failure(call: Any) -> JanusError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return from_rpc_error(caught.value)


async def test_a_caller_that_goes_away_at_any_moment_frees_its_sequence(served: tuple[Host, Any]) -> None:
    """Also while a response is being written, when grpc.aio closes the handler instead of cancelling it."""
    host, stub = served
    for tokens in range(30):
        call = stub.Generate(request())
        for _ in range(tokens % 6 + 1):
            await call.read()
        if tokens % 3 == 0:
            await asyncio.sleep(0.02)  # nobody reads: the window fills
        call.cancel()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while len(host.cancels()) < 30 or len(host.streams):
                await asyncio.sleep(0.01)
    assert sorted(host.cancels()) == list(range(1, 31))
    assert not len(host.streams)


GUIDE = common_pb2.Guide(regex="a+")


async def test_guides_refused_in_time_late_or_at_their_end(served: tuple[Host, Any]) -> None:
    host, stub = served
    for script, words in (("refuse", "cannot be followed: why"), ("nothing", "not compiled within 0.3 s")):
        host.script = script
        error = await failure(stub.Generate(request(guide=GUIDE)))
        assert isinstance(error, InvalidArgument)
        assert error.field == "sampling.guide"
        assert words in str(error)
    assert host.cancels() == [1, 2]
    host.script = "complete"
    answers = [answer async for answer in stub.Generate(request(guide=GUIDE))]
    assert [(list(a.token_ids), a.finish_reason) for a in answers] == [([], common_pb2.FINISH_REASON_STOP)]
    assert host.cancels() == [1, 2]
    assert host.sent[0]["sampling"]["guide"] == {"kind": "regex", "text": "a+"}


async def test_bad_logits_are_the_models_fault(served: tuple[Host, Any]) -> None:
    host, stub = served
    host.script = "bad logits"
    error = await failure(stub.Generate(request()))
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "BAD_LOGITS")


async def test_a_drained_worker_ends_its_streams_where_another_can_go_on(served: tuple[Host, Any]) -> None:
    """What is computed is delivered first, in order; then HANDOVER, and nothing is left."""
    host, stub = served

    left_over: list[int] = []

    async def drain() -> None:
        host.draining = True

    async def emptied() -> None:
        left_over.append(len(host.streams))

    host.drain, host.emptied = drain, emptied  # type: ignore[attr-defined]
    call = stub.Generate(request())
    seen = [(await call.read()).first_index for _ in range(3)]
    draining = stub.Drain(attention_pb2.AttentionServiceDrainRequest(hand_over=True), timeout=10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while (answer := await call.read()) is not grpc.aio.EOF:
            seen.append(answer.first_index)
    left = await draining
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "HANDOVER")
    assert seen == list(range(len(seen)))
    assert left.sequences_left == 0
    assert left_over == [0], "it may leave the cohort once nothing is left, and not before"
    assert (await failure(stub.Generate(request()))).reason == "DRAINING"


async def test_an_engine_that_is_gone_is_no_fault_of_the_request(served: tuple[Host, Any]) -> None:
    host, stub = served

    async def send(body: dict[str, Any]) -> None:
        raise ChildGone("engine (pid 7) ended with signal SIGKILL")

    host.send = send  # type: ignore[method-assign]
    error = await failure(stub.Generate(request()))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ENGINE_LOST")
