"""Workers that die, workers that are full, clients that go away."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Any

import grpc
import httpx
import pytest
from gateway_fakes import FakeWorker, Mesh, ready, token_rule, until
from janus_runtime.errors import Unavailable
from janus_runtime.records import WorkerState
from janus_wire.v1 import common_pb2, generation_pb2, generation_pb2_grpc

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(40)]

BODY: dict[str, Any] = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 40, "ignore_eos": True}


async def complete(mesh: Mesh, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=mesh.http, timeout=30) as client:
        return await client.post("/v1/completions", json={**BODY, **more})


def text(mesh: Mesh, seed: int, count: int = 40) -> str:
    """What one worker alone would have said."""
    params = common_pb2.SamplingParams(temperature=1.0, seed=seed)
    detokenizer = mesh.tokenizer.stream()
    ids = [token_rule([5, 6, 7], index, params) for index in range(count)]
    return detokenizer.push(ids) + detokenizer.flush()


async def pair(bare: Mesh, **settings: Any) -> tuple[FakeWorker, FakeWorker]:
    first, second = await bare.add_worker(publish=False), await bare.add_worker(publish=False)
    await bare.publish()
    await bare.start_gateway(**settings)
    await ready(bare)
    return first, second


@pytest.mark.parametrize("code", ["UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED"])
async def test_a_stream_goes_on_at_another_worker_token_for_token(bare: Mesh, code: str) -> None:
    first, second = await pair(bare)
    first.fail_after, first.failure = 7, grpc.StatusCode[code]
    answers = [await complete(bare) for _ in range(4)]
    assert all(a.status_code == 200 for a in answers)
    seeds = {r.sampling.seed for w in (first, second) for r in w.requests}
    assert len(seeds) == 4, "the seed is fixed at admission: a continuation has the same one"
    assert {a.json()["choices"][0]["text"] for a in answers} == {text(bare, seed) for seed in seeds}
    assert {a.json()["usage"]["completion_tokens"] for a in answers} == {40}
    resumed = [r for r in second.requests if r.resumed_token_ids]
    assert resumed
    assert {len(r.resumed_token_ids) for r in resumed} == {7}
    assert all(bool(r.waited_ms) == (code != "RESOURCE_EXHAUSTED") for r in resumed)
    assert not any(r.waited_ms for w in (first, second) for r in w.requests if not r.resumed_token_ids)


async def test_who_hands_a_stream_over_is_asked_for_its_blocks(bare: Mesh) -> None:
    """Also by the third, when the second is full; not when a worker is lost, or has none."""
    first, second = await pair(bare)
    third = await bare.add_worker()
    handover = Unavailable("leaving", reason="HANDOVER", retry_after_s=0.1)
    for worker in (first, second, third):
        worker.delay_s = 0.02
    request = asyncio.create_task(complete(bare, seed=9))
    await until(lambda: first.active + second.active + third.active == 1)
    holder = next(w for w in (first, second, third) if w.active)
    others = [w for w in (first, second, third) if w is not holder]
    for other in others:
        other.fail_after, other.failure = 0, grpc.StatusCode.RESOURCE_EXHAUSTED
    await asyncio.sleep(0.1)
    holder.leaving = handover
    await until(lambda: sum(len(w.requests) for w in others) >= 3)
    for other in others:
        other.fail_after = None
    assert (await request).json()["choices"][0]["text"] == text(bare, 9)
    assert {r.kv_member for w in others for r in w.requests} == {holder.member}
    assert holder.requests[0].kv_member == 0


async def test_a_frozen_worker_that_leaves_the_cohort_loses_its_streams(bare: Mesh) -> None:
    """Nothing breaks and nothing comes: that it steps no more is all there is to see."""
    first, second = await pair(bare)
    first.delay_s = second.delay_s = 0.02
    requests = [asyncio.create_task(complete(bare, seed=seed)) for seed in range(1, 7)]
    await until(lambda: first.active == 3 and second.active == 3)
    await asyncio.sleep(0.2)
    first.delay_s = 3600.0
    await asyncio.sleep(0.1)
    assert first.active == 3
    await bare.publish([second])
    answers = await asyncio.gather(*requests)
    assert [a.json()["choices"][0]["text"] for a in answers] == [text(bare, seed) for seed in range(1, 7)]
    await until(lambda: first.cancelled == 3)


async def test_a_worker_that_is_killed_in_mid_stream(bare: Mesh) -> None:
    first, second = await pair(bare)
    first.delay_s = second.delay_s = 0.02
    requests = [asyncio.create_task(complete(bare, seed=seed)) for seed in range(1, 7)]
    await until(lambda: first.active == 3 and second.active == 3)
    await asyncio.sleep(0.2)
    await first.server.stop(None)
    answers = await asyncio.gather(*requests)
    assert [a.json()["choices"][0]["text"] for a in answers] == [text(bare, seed) for seed in range(1, 7)]
    async with httpx.AsyncClient(base_url=bare.http) as client:
        assert "janus_gateway_resumed_streams_total 3.0" in (await client.get("/metrics")).text


async def test_a_stream_lost_before_its_first_token_is_said_to_have_waited(bare: Mesh) -> None:
    first, second = await pair(bare)
    for worker in (first, second):
        worker.fail_after = 0
    request = asyncio.create_task(complete(bare, seed=9))
    await until(lambda: len(first.requests) + len(second.requests) >= 2)
    await asyncio.sleep(0.2)
    first.fail_after = second.fail_after = None
    assert (await request).json()["choices"][0]["text"] == text(bare, 9)
    waits = sorted(r.waited_ms for w in (first, second) for r in w.requests)
    assert waits[0] == 0 < waits[1] and 200 <= waits[-1] < 20_000
    assert not any(r.resumed_token_ids for w in (first, second) for r in w.requests)


async def test_the_same_worker_once_it_is_back(bare: Mesh) -> None:
    only = await bare.add_worker()
    await bare.start_gateway()
    await ready(bare)
    only.delay_s = 0.02
    request = asyncio.create_task(complete(bare, seed=9))
    await until(lambda: only.active)
    await asyncio.sleep(0.2)
    await only.server.stop(None)
    await asyncio.sleep(0.5)
    assert not request.done()
    await only.start(only.address)
    answer = await request
    assert answer.json()["choices"][0]["text"] == text(bare, 9)
    assert only.requests[-1].resumed_token_ids


async def test_a_new_cohort_wakes_a_stream_that_waits(bare: Mesh) -> None:
    only = await bare.add_worker()
    await bare.start_gateway()
    await ready(bare)
    only.delay_s = 0.02
    request = asyncio.create_task(complete(bare, seed=9))
    await until(lambda: only.active)
    await only.server.stop(None)
    other = await bare.add_worker(publish=False)
    await bare.publish([other])
    answer = await request
    assert answer.json()["choices"][0]["text"] == text(bare, 9)
    assert len(other.requests) == 1


async def test_when_nobody_can_go_on_the_error_is_clear(bare: Mesh) -> None:
    only = await bare.add_worker()
    await bare.start_gateway(retry_s=0.5)
    await ready(bare)
    only.fail_after = 0
    began = time.monotonic()
    answer = await complete(bare)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] in ("worker_lost", "workers_unreachable")
    assert 0.4 < time.monotonic() - began < 5
    assert "retry-after" in answer.headers


async def test_workers_that_are_full_make_429_at_once(bare: Mesh) -> None:
    for worker in await pair(bare):
        worker.fail_after, worker.failure = 0, grpc.StatusCode.RESOURCE_EXHAUSTED
    began = time.monotonic()
    answer = await complete(bare)
    assert (answer.status_code, answer.json()["error"]["type"]) == (429, "rate_limit_error")
    assert time.monotonic() - began < 2
    assert [len(w.requests) for w in bare.workers] == [1, 1]
    assert not any(r.waited_ms for w in bare.workers for r in w.requests), "no one had begun it"


async def test_load_is_spread_and_draining_workers_are_left_alone(bare: Mesh) -> None:
    first, second = await pair(bare)
    first.delay_s = second.delay_s = 0.01
    answers = await asyncio.gather(*(complete(bare) for _ in range(8)))
    assert {a.status_code for a in answers} == {200}
    assert (len(first.requests), len(second.requests)) == (4, 4)
    await bare.keepers[0].update(state=WorkerState.DRAINING)
    await asyncio.sleep(0.6)
    await complete(bare)  # this one makes the gateway look
    await asyncio.sleep(0.2)
    before = len(first.requests)
    for _ in range(4):
        await complete(bare)
    assert len(first.requests) == before


async def test_what_other_gateways_have_there_counts(bare: Mesh) -> None:
    first, second = await pair(bare)
    await bare.keepers[0].update(running=50)
    await asyncio.sleep(0.7)
    await complete(bare)
    await asyncio.sleep(0.2)
    first.requests.clear()
    for _ in range(4):
        await complete(bare)
    assert not first.requests
    assert len(second.requests) >= 4


async def test_in_flight_is_bounded_and_freed(bare: Mesh) -> None:
    worker = await bare.add_worker(delay_s=0.02)
    await bare.start_gateway(max_in_flight=2)
    await ready(bare)
    slow = [asyncio.create_task(complete(bare)) for _ in range(2)]
    await until(lambda: worker.active == 2)
    answer = await complete(bare)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "too_many_requests")
    assert answer.headers["retry-after"] == "1"
    async with grpc.aio.insecure_channel(bare.grpc) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Generate(generation_pb2.GenerateRequest(prompt="x")):
                pass
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert {a.status_code for a in await asyncio.gather(*slow)} == {200}
    assert (await complete(bare, n=3)).status_code == 429
    assert (await complete(bare, n=2)).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_goes_away_frees_the_workers(bare: Mesh, stream: bool, n: int) -> None:
    worker = await bare.add_worker(delay_s=0.05)  # 10 s for all tokens: they do not end by themselves
    await bare.start_gateway(max_in_flight=3)
    await ready(bare)
    host, _, port = bare.http.removeprefix("http://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({**BODY, "max_tokens": 200, "stream": stream, "n": n}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await until(lambda: worker.active == n)
    await asyncio.sleep(0.1)
    sock = writer.get_extra_info("socket")
    assert isinstance(sock.fileno(), int)
    writer.close()
    await until(lambda: worker.active == 0 and worker.cancelled == n)
    async with httpx.AsyncClient(base_url=bare.http) as client, asyncio.timeout(5):
        seen = ""
        while (
            "janus_gateway_in_flight_sequences 0.0" not in seen
        ):  # the worker may know before the gateway is done
            seen = (await client.get("/metrics")).text
    assert f"janus_gateway_cancelled_streams_total {float(n)}" in seen
    assert (await complete(bare, n=3)).status_code == 200, "nothing is left in flight"


async def test_a_client_that_goes_away_while_queued(bare: Mesh) -> None:
    worker = await bare.add_worker(hang=True)
    await bare.start_gateway(max_in_flight=1)
    await ready(bare)
    host, _, port = bare.http.removeprefix("http://").rpartition(":")
    for stream in (True, False):
        with socket.create_connection((host, int(port))) as sock:
            body = json.dumps({**BODY, "stream": stream}).encode()
            sock.sendall(
                f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            )
            sock.sendall(body)
            await until(lambda: worker.active == 1)
        await until(lambda: worker.active == 0)
    worker.hang = False
    assert (await complete(bare)).status_code == 200


async def test_a_grpc_caller_that_goes_away(bare: Mesh) -> None:
    worker = await bare.add_worker(delay_s=0.02)
    await bare.start_gateway(max_in_flight=1)
    await ready(bare)
    async with grpc.aio.insecure_channel(bare.grpc) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        call = stub.Generate(generation_pb2.GenerateRequest(prompt="x"))
        await call.read()
        call.cancel()
        await until(lambda: worker.cancelled == 1)
        call = stub.Generate(generation_pb2.GenerateRequest(prompt="x"), timeout=0.3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: worker.active == 0)
    assert (await complete(bare)).status_code == 200


async def test_a_request_has_a_deadline(bare: Mesh) -> None:
    worker = await bare.add_worker(hang=True)
    await bare.start_gateway(request_timeout_s=0.3)
    await ready(bare)
    answer = await complete(bare)
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout_error")
    await until(lambda: worker.active == 0)


async def test_serving_goes_on_without_redis(bare: Mesh) -> None:
    await bare.add_worker()
    await bare.start_gateway(lease_ttl_s=1.0)
    await ready(bare)
    bare.redis.stop()
    for _ in range(3):
        assert (await complete(bare)).status_code == 200
        await asyncio.sleep(0.5)


async def test_a_stop_string_frees_the_worker(bare: Mesh) -> None:
    worker = await bare.add_worker(delay_s=0.02)
    await bare.start_gateway()
    await ready(bare)
    ids = [*bare.tokenizer.encode("one STOP", add_special=False)] + [40] * 200
    worker.rule = lambda prompt, index, params: ids[index]
    answer = await complete(bare, max_tokens=200, stop="STOP")
    assert answer.json()["choices"][0]["text"] == "one "
    await until(lambda: worker.active == 0, 1.0)
    assert worker.cancelled == 1
