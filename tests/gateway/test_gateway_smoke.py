from __future__ import annotations

import asyncio

import grpc
import httpx
import openai
import pytest
from gateway_fakes import Mesh
from grpc_health.v1 import health_pb2, health_pb2_grpc
from janus_wire.v1 import common_pb2, generation_pb2, generation_pb2_grpc

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


async def test_chat_streamed_and_whole_by_the_openai_client(served: Mesh) -> None:
    served.workers[0].say(served.tokenizer, "Paris, naïve café — 東京 is elsewhere.")

    def ask() -> tuple[str, str, object]:
        with openai.OpenAI(base_url=served.http + "/v1", api_key="none", max_retries=0) as client:
            return _ask(client)

    def _ask(client: openai.OpenAI) -> tuple[str, str, object]:
        messages = [{"role": "user", "content": "What is the capital of France?"}]
        whole = client.chat.completions.create(model="tiny", messages=messages)  # type: ignore[arg-type]
        stream = client.chat.completions.create(
            model="tiny",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        )
        chunks = list(stream)
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert chunks[-1].usage == whole.usage
        assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
        return whole.choices[0].message.content or "", text, whole

    whole, text, response = await asyncio.to_thread(ask)
    assert whole == text == "Paris, naïve café — 東京 is elsewhere."
    expected = len(served.tokenizer.encode(whole, add_special=False)) + 1  # the end token counts
    assert response.usage.completion_tokens == expected  # type: ignore[attr-defined]


async def test_completion_streamed_equals_whole(served: Mesh) -> None:
    async with openai.AsyncOpenAI(base_url=served.http + "/v1", api_key="none", max_retries=0) as client:
        whole = await client.completions.create(model="tiny", prompt="Hello", max_tokens=20, temperature=0)
        stream = await client.completions.create(
            model="tiny", prompt="Hello", max_tokens=20, temperature=0, stream=True
        )
        text = "".join([chunk.choices[0].text async for chunk in stream])
    assert text == whole.choices[0].text != ""
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None and whole.usage.completion_tokens == 20


async def test_grpc_generate_and_health(served: Mesh) -> None:
    served.workers[0].say(served.tokenizer, "one two three")
    async with grpc.aio.insecure_channel(served.grpc) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="janus.v1.GenerationService"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        responses = [r async for r in stub.Generate(generation_pb2.GenerateRequest(prompt="Hi"))]
    assert "".join(r.text for r in responses) == "one two three"
    assert responses[-1].finish_reason == common_pb2.FINISH_REASON_STOP
    assert responses[-1].usage.completion_tokens == sum(len(r.token_ids) for r in responses)
    assert len(responses[0].trace_id) == 32


async def test_not_ready_until_a_cohort_exists(bare: Mesh) -> None:
    await bare.start_gateway()
    async with httpx.AsyncClient(base_url=bare.http) as client:
        assert (await client.get("/health/live")).status_code == 200
        answer = await client.get("/health/ready")
        assert answer.status_code == 503 and "cohort" in answer.json()["reasons"][0]
        body = {"model": "tiny", "prompt": "x"}
        refused = await client.post("/v1/completions", json=body)
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "no_cohort"
        assert refused.headers["retry-after"] == "1"
