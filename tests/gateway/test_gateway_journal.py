"""Idempotency keys: the same key again, at any gateway, is the same answer, whatever became of the first."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import httpx
import pytest
import redis.asyncio
from gateway_fakes import Mesh, ready, until
from janus_gateway.__main__ import serve
from janus_gateway.config import GatewaySettings
from janus_gateway.journal import Entry, Response, received
from janus_runtime.redis_server import RedisServer
from janus_wire.v1 import common_pb2, generation_pb2, generation_pb2_grpc

redis_client = redis.asyncio.Redis.from_url
pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

BODY: dict[str, Any] = {
    "model": "tiny", "prompt": [5, 6, 7], "max_tokens": 40, "ignore_eos": True, "n": 2, "stream": True,
}  # fmt: skip


async def events(
    address: str, key: str, *, limit: int = 10**6, last: str = ""
) -> list[tuple[str, dict[str, Any]]]:
    """(id, JSON) of each event, at most ``limit`` of them; then the client is gone."""
    headers = {"idempotency-key": key, **({"last-event-id": last} if last else {})}
    found: list[tuple[str, dict[str, Any]]] = []
    place = ""
    async with (
        httpx.AsyncClient(base_url=address, timeout=30) as client,
        client.stream("POST", "/v1/completions", json=BODY, headers=headers) as answer,
    ):
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if line.startswith("id: "):
                place = line[4:]
            elif line.startswith("data: {"):
                found.append((place, json.loads(line[6:])))
                if len(found) >= limit:
                    return found
    return found


def texts(found: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [
        "".join(e["choices"][0]["text"] for _, e in found if e["choices"][0]["index"] == i) for i in (0, 1)
    ]


@pytest.fixture
async def second(served: Mesh) -> Any:
    """A second gateway on the same Redis; the first one's address is ``served.http``."""
    first, served.http, task = served.http, "", served.gateway
    await served.coordination.workers()
    settings = GatewaySettings(
        redis_url=served.redis.url, worker_id="gateway-1", model=str(served.model_dir), model_name="tiny",
        drain_s=0.2, node="here",
    )  # fmt: skip
    other = asyncio.create_task(serve(settings))
    async with asyncio.timeout(20):
        while not served.http:
            for lease in await served.coordination.workers("gateway"):
                if lease.worker_id == "gateway-1" and lease.state == "ready":
                    served.http = f"http://{lease.http_address}"
            await asyncio.sleep(0.01)
    address = served.http
    await ready(served)
    served.http, served.gateway = first, task
    yield address
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


async def test_another_gateway_goes_on_without_computing_it_again(served: Mesh, second: str) -> None:
    worker = served.workers[0]
    worker.delay_s = 0.01
    begun = await events(served.http, "k1", limit=30)
    await until(lambda: not worker.active)  # the client's going freed the sequences
    await asyncio.sleep(0.2)
    whole = await events(second, "k1")
    assert whole[: len(begun)] != [] and texts(whole)[0].startswith(texts(begun)[0])
    assert texts(whole)[1].startswith(texts(begun)[1])
    assert {e["id"] for _, e in begun} == {e["id"] for _, e in whole}
    resumed = worker.requests[-2:]
    assert all(len(r.resumed_token_ids) >= 10 for r in resumed), "what the journal has is not made again"
    assert {r.sampling.seed for r in resumed} == {r.sampling.seed for r in worker.requests[:2]}
    # It is over: the third time no worker is asked.
    count = len(worker.requests)
    await asyncio.sleep(0.2)
    assert texts(await events(served.http, "k1")) == texts(whole)
    assert len(worker.requests) == count
    # From where the client was: what it has and what comes now is the whole.
    rest = await events(second, "k1", last=begun[-1][0])
    assert [a + b for a, b in zip(texts(begun), texts(rest), strict=True)] == texts(whole)


async def test_two_gateways_at_once_give_the_same(served: Mesh, second: str) -> None:
    served.workers[0].delay_s = 0.005
    one, two = await asyncio.gather(events(served.http, "k2"), events(second, "k2"))
    assert texts(one) == texts(two)
    await asyncio.sleep(0.2)
    count = len(served.workers[0].requests)
    assert texts(await events(second, "k2")) == texts(one)
    assert len(served.workers[0].requests) == count
    other = await events(second, "k3")
    assert texts(other) != texts(one), "another key is another answer"


async def test_a_key_stands_for_one_request(served: Mesh) -> None:
    body = {**BODY, "stream": False, "n": 1}
    async with httpx.AsyncClient(base_url=served.http, timeout=30) as client:
        first = await client.post("/v1/completions", json=body, headers={"idempotency-key": "k"})
        again = await client.post("/v1/completions", json=body, headers={"idempotency-key": "k"})
        assert first.json() == again.json()
        other = await client.post(
            "/v1/completions", json={**body, "seed": 3}, headers={"idempotency-key": "k"}
        )
        assert other.status_code == 400 and "another request" in other.json()["error"]["message"]
        bad = await client.post("/v1/completions", json=body, headers={"idempotency-key": "a b"})
        assert bad.status_code == 400 and "Idempotency-Key" in bad.text


async def test_without_redis_the_answer_is_the_same(served: Mesh) -> None:
    whole = texts(await events(served.http, "k4"))
    served.redis.stop()
    assert texts(await events(served.http, "k4")) == whole


async def test_what_redis_has_lost_is_brought_again(served: Mesh) -> None:
    """Redis ends amid the stream and comes back empty: once it is over, all of it is there, and no worker is asked."""
    whole = texts(await events(served.http, "k6"))
    worker = served.workers[0]
    worker.delay_s = 0.05
    stream = asyncio.create_task(events(served.http, "k6-again"))
    count = len(worker.requests)
    await until(lambda: len(worker.requests) >= count + 2)
    await asyncio.sleep(0.5)
    folder = served.redis.socket_path.parent
    served.redis.stop()
    await asyncio.sleep(0.4)
    with RedisServer.start(folder) as back:
        again = await stream
        assert len(whole[0]) and len(texts(again)[0]) > 10
        await asyncio.sleep(2.5)
        client = redis_client(back.url)
        keys = [key async for key in client.scan_iter("*journal*")]
        await client.aclose()
        assert len(keys) == 3, "head, items and index"
        count = len(worker.requests)
        assert texts(await events(served.http, "k6-again")) == texts(again)
        assert len(worker.requests) == count, "nothing was made anew"


async def test_over_grpc_with_what_the_caller_has(served: Mesh) -> None:
    sampling = common_pb2.SamplingParams(max_tokens=30, ignore_eos=True, logprobs=1)
    request = generation_pb2.GenerateRequest(
        prompt_tokens=common_pb2.TokenIds(ids=[5, 6, 7]), sampling=sampling, idempotency_key="g"
    )

    async def ask() -> list[generation_pb2.GenerateResponse]:
        async with grpc.aio.insecure_channel(served.grpc) as channel:
            stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
            return [r async for r in stub.Generate(request, timeout=20)]

    whole = await ask()
    await asyncio.sleep(0.2)
    request.received.append(12)
    rest = await ask()
    assert [list(r.token_ids) for r in rest] == [list(r.token_ids) for r in whole[12:]]
    assert [list(r.logprobs) for r in rest] == [list(r.logprobs) for r in whole[12:]]
    assert rest[-1].usage == whole[-1].usage
    assert len(served.workers[0].requests) == 1


async def test_the_journal_is_bounded(bare: Mesh) -> None:
    await bare.add_worker()
    await bare.start_gateway(journal_entries=3, journal_ttl_s=50)
    await ready(bare)
    async with httpx.AsyncClient(base_url=bare.http, timeout=30) as client:
        for number in range(6):
            body = {**BODY, "stream": False, "n": 1}
            await client.post("/v1/completions", json=body, headers={"idempotency-key": f"b{number}"})
    await asyncio.sleep(0.2)
    redis = bare.coordination._redis.client
    keys = [key async for key in redis.scan_iter("*journal*")]
    assert len(keys) == 2 * 3 + 1
    for key in keys:
        assert 0 < await redis.ttl(key) <= 50


async def test_what_two_gateways_wrote_is_read_as_one() -> None:
    """Copies, overlaps and disorder are no harm; behind a gap nothing counts."""
    stop, length = common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH
    entry = Entry(None, "x", 0)  # type: ignore[arg-type]
    entry._made[0] = [
        Response(first_index=3, token_ids=[13, 14]), Response(first_index=0, token_ids=[10, 11]),
        Response(first_index=0, token_ids=[10, 11, 12]), Response(first_index=7, token_ids=[17], finish_reason=length),
    ]  # fmt: skip
    assert [list(r.token_ids) for r in entry.made(0)] == [[10, 11], [10, 11, 12], [13, 14]]
    entry._made[1] = [Response(first_index=2, finish_reason=stop), Response(first_index=0, token_ids=[1, 2])]
    assert [(list(r.token_ids), r.finish_reason) for r in entry.made(1)] == [([1, 2], 0), ([], stop)]
    entry._made[2] = [Response(first_index=2, finish_reason=stop), Response(first_index=0, token_ids=[1])]
    assert len(entry.made(2)) == 1
    assert received("3,5", 2) == [3, 5] and received("nonsense", 2) == [0, 0] and received("", 1) == [0]
