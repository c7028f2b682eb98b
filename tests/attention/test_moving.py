"""Control processes that ask each other for KV blocks, over real gRPC; their engines are scripts."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import pytest_asyncio
from janus_attention import moving
from janus_attention.blocks import prefix_names
from janus_attention.moving import KvMover, patience
from janus_attention.service import AttentionServicer
from janus_runtime.errors import Unavailable, from_rpc_error
from janus_runtime.records import CohortMember
from janus_runtime.server import GrpcServer
from janus_runtime.settings import ServiceSettings
from janus_wire.v1 import attention_pb2, attention_pb2_grpc
from janus_worker.link import ChildGone

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]
ADDRESS = base64.b64encode(b"where the engine is").decode()
TOKENS = list(range(100))
NAMES = prefix_names(TOKENS, 16, "model")


class Host:
    """A worker whose engine answers with ``count``, and of whose transfers ``arrives`` blocks come."""

    def __init__(self, name: str, member: int) -> None:
        self.settings: Any = SimpleNamespace(block_size=16, prefix_cache=True, worker_id=name)
        self.lease = SimpleNamespace(member=member, transport_address=ADDRESS)
        self.stats: dict[str, Any] = {}
        self.peers: dict[int, CohortMember] = {}
        self.mover = KvMover(self, "model")  # type: ignore[arg-type]
        self.asked: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.count: int | Exception = 6
        self.arrives: int | None = 6
        self.gives = True
        self.near = 0
        """Blocks that its engine has, or finds on its host."""

    @property
    def engine(self) -> Host:
        return self

    def post(self, body: dict[str, Any]) -> None:
        self.sent.append(body)

    async def call(self, body: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if isinstance(self.count, Exception):
            raise self.count
        if body["t"] == "kv_seek":
            assert body["tokens"] == TOKENS
            return {"count": self.near}
        self.asked.append(body)
        if body["t"] == "kv_expect" and self.arrives is not None:
            asyncio.get_running_loop().call_later(0.02, self.mover.taken, body["number"], self.arrives)
        if body["t"] == "kv_give" and self.gives:
            asyncio.get_running_loop().call_later(0.05, self.mover.given, body["member"], body["number"])
        return {"count": self.count}


@dataclass
class Pair:
    giver: Host
    taker: Host
    stub: Any


@pytest_asyncio.fixture
async def pair(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pair]:
    monkeypatch.setattr(moving, "connect", lambda address, settings: grpc.aio.insecure_channel(address))
    giver, taker = Host("attention-0", 7), Host("attention-1", 8)
    server = GrpcServer(ServiceSettings(worker_id="attention-0"), "attention")
    add = attention_pb2_grpc.add_AttentionServiceServicer_to_server
    server.add(add, AttentionServicer(giver), "janus.v1.AttentionService")  # type: ignore[arg-type]
    address = await server.start()
    taker.peers[7] = CohortMember(
        worker_id="attention-0", member=7, grpc_address=address, transport_address=ADDRESS
    )
    async with grpc.aio.insecure_channel(address) as channel:
        yield Pair(giver, taker, attention_pb2_grpc.AttentionServiceStub(channel))
    await server.stop()


async def test_the_engine_expects_before_the_other_gives(pair: Pair) -> None:
    await pair.taker.mover.fetch(TOKENS, 7)
    (expected,), (given,) = pair.taker.asked, pair.giver.asked
    assert (expected["t"], expected["member"], expected["address"]) == ("kv_expect", 7, ADDRESS)
    assert (given["t"], given["member"], given["address"]) == ("kv_give", 8, ADDRESS)
    assert expected["number"] == given["number"]
    assert expected["names"] == given["names"] == [name.hex() for name in NAMES] and len(NAMES) == 6
    assert pair.taker.sent == [{"t": "kv_forget", "number": expected["number"]}]


@pytest.mark.parametrize("near", [2, 6])
async def test_only_what_is_not_nearer_is_asked_for(pair: Pair, near: int) -> None:
    pair.taker.near = near
    await pair.taker.mover.fetch(TOKENS, 7)
    asked = [body["names"] for body in (*pair.taker.asked, *pair.giver.asked)]
    assert asked == [[name.hex() for name in NAMES[near:]]] * 2 if near < 6 else not asked


@pytest.mark.parametrize(
    "what", ["unknown", "itself", "no blocks", "no cache", "short", "quick", "unreachable"]
)
async def test_what_is_not_asked_for(pair: Pair, what: str) -> None:
    taker, tokens, member = pair.taker, TOKENS, 7
    if what == "unknown":
        member = 9
    elif what == "itself":
        member = 8
    elif what == "no blocks":
        pair.giver.count = 0
    elif what == "no cache":
        taker.settings.prefix_cache = False
    elif what == "short":
        tokens = TOKENS[:16]
    elif what == "quick":
        taker.stats["prefill_rate"] = 1e4
    elif what == "unreachable":
        taker.count = 0
    began = time.monotonic()
    await taker.mover.fetch(tokens, member)
    assert time.monotonic() - began < 1
    assert bool(pair.giver.asked) == (what == "no blocks")
    assert all(body["t"] == "kv_forget" for body in taker.sent)


@pytest.mark.parametrize("what", ["never", "giver's engine", "own engine", "giver is gone"])
async def test_it_is_waited_for_no_longer_than_computing_takes(pair: Pair, what: str) -> None:
    taker = pair.taker
    taker.stats["prefill_rate"] = 200.0  # half a second
    if what == "never":
        taker.arrives = None
    elif what == "giver's engine":
        pair.giver.count = Unavailable("the engine did not answer")
    elif what == "own engine":
        taker.count = ChildGone("engine (pid 7) ended with signal SIGKILL")
    else:
        taker.peers[7] = CohortMember(
            worker_id="attention-0", member=7, grpc_address="127.0.0.1:1", transport_address=ADDRESS
        )
    began = time.monotonic()
    await taker.mover.fetch(TOKENS, 7)
    assert time.monotonic() - began < 1.5
    assert [body["t"] for body in taker.sent] == ["kv_forget"] * (what != "own engine")
    await pair.giver.mover.linger(0)  # nothing is left under way


async def test_patience() -> None:
    assert patience(100, 0.0) == moving.AT_MOST_S, "nothing is known of its speed"
    assert patience(100, 200.0) == 0.5
    assert patience(100, 1e4) == 0.0
    assert patience(10**6, 100.0) == moving.AT_MOST_S


async def test_who_hands_over_stays_until_it_was_asked_and_has_sent(pair: Pair) -> None:
    mover = pair.giver.mover
    began = time.monotonic()
    leaving = asyncio.create_task(mover.linger(2))
    await pair.taker.mover.fetch(TOKENS, 7)
    assert not leaving.done()
    pair.giver.gives = False
    await pair.taker.mover.fetch(TOKENS, 7)
    await asyncio.sleep(0.2)
    assert not leaving.done(), "all have asked, but a transfer is under way"
    mover.given(8, 2)
    await leaving
    await mover.linger(1)  # nobody asks
    assert 1.0 < time.monotonic() - began < 3
    pair.giver.settings.prefix_cache = False
    began = time.monotonic()
    await mover.linger(5)
    assert time.monotonic() - began < 0.1


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"number": 0}, "number"),
        ({"number": 1 << 63}, "number"),
        ({"member": 0}, "member"),
        ({"transport_address": ""}, "transport_address"),
        ({"transport_address": "not base64!"}, "transport_address"),
        ({"block_names": []}, "block_names"),
        ({"block_names": [b"x" * 16] * 65536}, "block_names"),
        ({"block_names": [b"x" * 16, b"y" * 15]}, "block_names"),
    ],
    ids=str,
)
async def test_bad_requests_name_the_field(pair: Pair, bad: dict[str, Any], field: str) -> None:
    good: dict[str, Any] = {"number": 1, "member": 8, "transport_address": ADDRESS, "block_names": NAMES}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pair.stub.HandKv(attention_pb2.AttentionServiceHandKvRequest(**{**good, **bad}))
    error = from_rpc_error(caught.value)
    assert (error.code, error.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert not pair.giver.asked
