"""How answers and connections end: no text lost, no place kept, and the metrics say how."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import grpc
import httpx
import pytest
from gateway_fakes import Mesh, ready, until
from janus_gateway.answer import Answer
from janus_gateway.openai.handlers import _EventStream
from janus_models.tokenizer import Tokenizer
from janus_wire.v1 import common_pb2

pytestmark = pytest.mark.timeout(40)

BODY: dict[str, Any] = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 20, "ignore_eos": True}
LENGTH, STOP = common_pb2.FINISH_REASON_LENGTH, common_pb2.FINISH_REASON_STOP


async def complete(mesh: Mesh, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=mesh.http, timeout=30) as client:
        return await client.post("/v1/completions", json={**BODY, **more})


async def request_counts(mesh: Mesh) -> dict[str, int]:
    """Requests so far, by error_type."""
    async with httpx.AsyncClient(base_url=mesh.http) as client:
        lines = (await client.get("/metrics")).text.splitlines()
    found = (line for line in lines if line.startswith("gen_ai_server_request_duration_seconds_count"))
    return {line.split('error_type="')[1].split('"')[0]: int(float(line.split()[-1])) for line in found}


def test_an_end_without_a_token_gives_out_what_was_kept_back(model_dir: Any) -> None:
    tokenizer = Tokenizer(model_dir)
    answer = Answer(tokenizer.stream, ["END"], 0)
    ids = tokenizer.encode("one EN", add_special=False)
    pieces = [answer.push(token, None, 0) for token in ids]
    assert "".join(p.text for p in pieces) == "one "
    last = answer.end(LENGTH)
    assert (last.text, last.finish_reason, last.stop_sequence) == ("EN", LENGTH, "")
    assert [t.id for p in (*pieces, last) for t in p.tokens] == ids
    assert not any(token.hidden for token in last.tokens)


@pytest.mark.asyncio
@pytest.mark.parametrize("stream", [True, False])
async def test_a_finish_in_a_response_of_its_own_loses_no_text(served: Mesh, stream: bool) -> None:
    worker = served.workers[0]
    worker.bare_finish = True
    ids = served.tokenizer.encode("it is the EN", add_special=False)
    worker.rule = lambda prompt, index, params: ids[index]
    answer = await complete(served, max_tokens=len(ids), stop="END", stream=stream)
    if stream:
        events = [json.loads(e[6:]) for e in answer.text.split("\n\n") if e and e != "data: [DONE]"]
        choices = [event["choices"][0] for event in events]
    else:
        choices = answer.json()["choices"]
    assert "".join(c["text"] for c in choices) == "it is the EN"
    assert choices[-1]["finish_reason"] == "length"


@pytest.mark.asyncio
async def test_a_worker_lost_after_the_last_token_costs_nothing(served: Mesh) -> None:
    worker = served.workers[0]
    worker.bare_finish, worker.fail_after = True, 20
    worker.failure = grpc.StatusCode.UNAVAILABLE
    answer = await complete(served)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 20
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    assert len(worker.requests) == 1


@pytest.mark.asyncio
async def test_metrics_tell_how_requests_ended(bare: Mesh) -> None:
    worker = await bare.add_worker(delay_s=0.02)
    await bare.start_gateway()
    await ready(bare)
    assert (await complete(bare, max_tokens=2, stream=True)).text.endswith("data: [DONE]\n\n")
    assert await request_counts(bare) == {"": 1}
    host, _, port = bare.http.removeprefix("http://").rpartition(":")
    for stream in (True, False):
        _, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({**BODY, "max_tokens": 200, "stream": stream}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await until(lambda: worker.active == 1)
        await asyncio.sleep(0.1)
        writer.close()
        await until(lambda: worker.active == 0)
    async with asyncio.timeout(5):
        while (await request_counts(bare)).get("CANCELLED") != 2:
            await asyncio.sleep(0.01)
    assert await request_counts(bare) == {"": 1, "CANCELLED": 2}


@pytest.mark.asyncio
async def test_a_client_that_does_not_read_is_left_at_the_deadline() -> None:
    closed: list[str] = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                yield b"data: {}\n\n"
        finally:
            closed.append("events")

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":  # its buffers are full
            await asyncio.sleep(3600)

    stack = contextlib.AsyncExitStack()
    stack.callback(closed.append, "place")
    started = time.monotonic()
    scope: dict[str, Any] = {"type": "http", "asgi": {"spec_version": "2.3"}, "janus.request_id": "r"}
    async with asyncio.timeout(5):
        await _EventStream(events(), stack, started + 0.2)(scope, receive, send)
    assert time.monotonic() - started >= 0.2
    assert closed == ["events", "place"]
    assert scope["janus.error"] == "DEADLINE_EXCEEDED"


@pytest.mark.asyncio
async def test_a_body_that_does_not_come_is_not_waited_for(bare: Mesh) -> None:
    await bare.add_worker()
    await bare.start_gateway(request_timeout_s=0.3)
    await ready(bare)
    host, _, port = bare.http.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    async with asyncio.timeout(5):
        answer = (await reader.read()).decode()
    assert answer.startswith("HTTP/1.1 408 ")
    assert "request_too_slow" in answer
    writer.close()
    await writer.wait_closed()


@pytest.mark.asyncio
async def test_a_refusal_is_no_failure(served: Mesh) -> None:
    assert (await complete(served, max_tokens=0)).status_code == 400
    served.workers[0].fail_after, served.workers[0].failure = 1, grpc.StatusCode.INTERNAL
    assert (await complete(served)).status_code == 500
    async with httpx.AsyncClient(base_url=served.http) as client:
        totals = (await client.get("/api/state")).json()["gateway"]
    assert (totals["requests"], totals["rejected"], totals["failed"]) == (2, 1, 1)
