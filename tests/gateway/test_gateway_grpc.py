"""The gRPC door, and what both doors share: keys, metrics, state, traces."""

from __future__ import annotations

import re
from typing import Any

import grpc
import httpx
import pytest
from gateway_fakes import CONTEXT, Mesh, ready, token_rule
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from janus_client import AsyncJanusClient, AuthenticationError, InvalidRequestError, JanusError, NotFoundError
from janus_wire.v1 import common_pb2, generation_pb2, generation_pb2_grpc

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


async def test_text_ids_and_chat(served: Mesh) -> None:
    async with AsyncJanusClient(served.grpc) as client:
        whole = await client.generate([5, 6, 7], max_tokens=12, temperature=0.0).result()
        greedy = common_pb2.SamplingParams(temperature=0.0)
        assert list(whole.token_ids) == [token_rule([5, 6, 7], i, greedy) for i in range(12)]
        assert whole.text == served.tokenizer.decode(whole.token_ids).rstrip("\ufffd")
        assert (whole.finish_reason, whole.usage.prompt_tokens, whole.usage.completion_tokens) == (
            "length",
            3,
            12,
        )
        assert re.fullmatch("[0-9a-f]{32}", whole.trace_id)
        await client.chat("Hi", max_tokens=1).result()
        assert await client.count_tokens("Hi there") == len(served.tokenizer.encode("Hi there"))
        chat = list(served.workers[0].requests[-1].prompt_token_ids)
        assert await client.count_chat_tokens("Hi") == len(chat)
        assert chat == served.tokenizer.apply_chat([{"role": "user", "content": "Hi"}])


async def test_stop_logprobs_and_the_end_token(served: Mesh) -> None:
    served.workers[0].say(served.tokenizer, "one two three")
    async with AsyncJanusClient(served.grpc) as client:
        whole = await client.generate("x", logprobs=1).result()
        assert (whole.text, whole.finish_reason) == ("one two three", "stop")
        assert whole.token_ids[-1] == 2
        assert whole.usage.completion_tokens == len(whole.token_ids) == len(whole.logprobs)
        assert all(len(entry.top) == 1 for entry in whole.logprobs)
        whole = await client.generate("x", stop=["o th"]).result()
        assert (whole.text, whole.stop_sequence, whole.finish_reason) == ("one tw", "o th", "stop")
        assert whole.usage.completion_tokens == len(whole.token_ids)


async def test_n_answers_with_indices_and_one_usage(served: Mesh) -> None:
    async with AsyncJanusClient(served.grpc) as client:
        options: dict[str, Any] = {"seed": 41, "max_tokens": 6, "temperature": 1.0}
        chunks = [chunk async for chunk in client.generate([5, 6], n=3, **options)]
        whole = await client.generate([5, 6], n=3, **options).results()
        alone = await client.generate([5, 6], **options).result()
    assert len({answer.token_ids for answer in whole}) == 3
    assert whole[0].token_ids == alone.token_ids, "the first choice is what n = 1 gives"
    assert [a.finish_reason for a in whole] == ["length"] * 3
    assert [c.usage is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert whole[0].usage == chunks[-1].usage
    assert (whole[0].usage.prompt_tokens, whole[0].usage.completion_tokens) == (2, 18)
    for index, answer in enumerate(whole):
        assert "".join(c.text for c in chunks if c.index == index) == answer.text
        assert sum(bool(c.finish_reason) for c in chunks if c.index == index) == 1


async def test_model_info(served: Mesh) -> None:
    async with AsyncJanusClient(served.grpc) as client:
        info = await client.model_info()
    assert (info.model, info.family, info.context_length, info.vocab_size) == (
        "tiny",
        "mixtral",
        CONTEXT,
        512,
    )
    assert (info.num_layers, info.num_experts, info.experts_per_token) == (2, 8, 2)
    assert (info.dtype, info.fingerprint) == ("float32", "abcd/float32/512")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"temperature": -1.0}, "sampling.temperature"),
        ({"temperature": float("nan")}, "sampling.temperature"),
        ({"top_p": 0.0}, "sampling.top_p"),
        ({"max_tokens": 0}, "sampling.max_tokens"),
        ({"max_tokens": 2**32 - 1}, "sampling.max_tokens"),
        ({"stop": [""]}, "sampling.stop"),
        ({"logprobs": 21}, "sampling.logprobs"),
        ({"min_tokens": 2**31}, "sampling.min_tokens"),
        ({"repetition_penalty": -1.0}, "sampling.repetition_penalty"),
        ({"frequency_penalty": 2.5}, "sampling.frequency_penalty"),
        ({"presence_penalty": float("nan")}, "sampling.presence_penalty"),
        ({"logit_bias": {512: 1.0}}, "sampling.logit_bias"),
        ({"logit_bias": {5: 1000.0}}, "sampling.logit_bias[5]"),
        ({"priority": -1001}, "priority"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"request_id": "has blanks"}, "request_id"),
        ({"request_id": "x" * 129}, "request_id"),
    ],
)
async def test_bad_options_name_the_field(served: Mesh, options: dict[str, Any], field: str) -> None:
    async with AsyncJanusClient(served.grpc) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.generate("x", **options).result()
    assert caught.value.field == field
    assert caught.value.allowed
    assert not served.workers[0].requests


async def test_bad_inputs_name_the_field(served: Mesh) -> None:
    async with AsyncJanusClient(served.grpc) as client:
        for call, field in (
            (client.generate([5, 512]), "prompt_tokens.ids"),
            (client.generate([]), "prompt_tokens"),
            (client.generate(""), "prompt"),
            (client.generate("word " * 4000), "prompt"),
            (client.chat([]), "messages"),
            (client.chat([{"role": "king", "content": "x"}]), "chat.messages[0].role"),
        ):
            with pytest.raises(InvalidRequestError) as caught:
                await call.result()
            assert caught.value.field == field
        with pytest.raises(NotFoundError):
            await client.generate("x", model="gpt-5").result()
    async with grpc.aio.insecure_channel(served.grpc) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as raw:
            await stub.CountTokens(generation_pb2.CountTokensRequest())
        assert raw.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "input" in (raw.value.details() or "")


async def test_reflection_finds_the_service_and_its_methods(served: Mesh) -> None:
    async with grpc.aio.insecure_channel(served.grpc) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def ask(**field: Any) -> Any:
            async for answer in stub.ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(**field)])
            ):
                return answer
            raise AssertionError("no answer")

        listed = await ask(list_services="")
        names = {service.name for service in listed.list_services_response.service}
        assert {"janus.v1.GenerationService", "grpc.health.v1.Health"} <= names
        found = await ask(file_containing_symbol="janus.v1.GenerationService")
        assert found.file_descriptor_response.file_descriptor_proto


async def test_keys_guard_both_doors(bare: Mesh) -> None:
    await bare.add_worker()
    await bare.start_gateway(api_keys="one, two")
    await ready(bare)  # health needs no key
    body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
    async with httpx.AsyncClient(base_url=bare.http) as client:
        for headers in ({}, {"authorization": "Bearer three"}, {"authorization": "one"}):
            for answer in (
                await client.post("/v1/completions", json=body, headers=headers),
                await client.get("/v1/models", headers=headers),
                await client.get("/api/state", headers=headers),
                await client.get("/api/activity", headers=headers),
            ):
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
                assert answer.headers["www-authenticate"] == "Bearer"
        answer = await client.post("/v1/completions", json=body, headers={"authorization": "Bearer two"})
        assert answer.status_code == 200
        for open_path in ("/", "/metrics", "/health/live"):
            assert (await client.get(open_path)).status_code == 200
    async with AsyncJanusClient(bare.grpc, api_key="one") as good, AsyncJanusClient(bare.grpc) as bad:
        await good.generate("x", max_tokens=1).result()
        calls: list[Any] = [
            bad.generate("x").result,
            bad.model_info,
            lambda: bad.count_tokens("x"),
        ]
        for call in calls:
            with pytest.raises(AuthenticationError):
                await call()
    assert len(bare.workers[0].requests) == 2


async def test_metrics_have_the_genai_names(served: Mesh) -> None:
    async with httpx.AsyncClient(base_url=served.http) as client:
        for _ in range(2):
            await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 5})
        await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 0})
        async with AsyncJanusClient(served.grpc) as grpc_client:
            await grpc_client.generate("x", max_tokens=3).result()
            with pytest.raises(JanusError):
                await grpc_client.generate("x", max_tokens=0).result()
        seen = (await client.get("/metrics")).text
    labels = (
        'gen_ai_operation_name="text_completion",gen_ai_provider_name="janus",gen_ai_request_model="tiny"'
    )
    for line in (
        f'gen_ai_server_request_duration_seconds_count{{error_type="",{labels}}} 2.0',
        f'gen_ai_server_request_duration_seconds_count{{error_type="INVALID_ARGUMENT",{labels}}} 1.0',
        f"gen_ai_server_time_to_first_token_seconds_count{{{labels}}} 2.0",
        f"gen_ai_server_time_per_output_token_seconds_count{{{labels}}} 2.0",
        f'gen_ai_client_token_usage_sum{{{labels},gen_ai_token_type="output"}} 10.0',
        'janus_gateway_rejected_requests_total{code="INVALID_ARGUMENT"} 2.0',
        "janus_gateway_in_flight_sequences 0.0",
        f"janus_gateway_cohort_epoch {float(served.epoch)}",
        "janus_gateway_queue_seconds_count 3.0",
    ):
        assert line in seen, f"{line}\n{seen}"
    assert 'gen_ai_operation_name="generate_content"' in seen


async def test_state_tells_the_mesh(served: Mesh) -> None:
    async with httpx.AsyncClient(base_url=served.http) as client:
        await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 5})
        state = (await client.get("/api/state")).json()
        page = await client.get("/")
    assert state["ready"] is True
    assert state["cohort"]["epoch"] == served.epoch
    assert (state["cohort"]["attention"], state["cohort"]["moe"], state["cohort"]["layout_version"]) == (
        1,
        1,
        1,
    )
    roles = {worker["worker_id"]: worker for worker in state["workers"]}
    assert (roles["attention-0"]["rank"], roles["attention-0"]["state"]) == (0, "ready")
    assert roles["gateway-0"]["http_address"] in served.http
    assert state["gateway"]["requests"] == 1
    assert state["gateway"]["completion_tokens"] == 5
    assert page.headers["content-type"].startswith("text/html")
    assert "api/state" in page.text
    assert "function heat" in page.text
    assert "/* charts.js */" not in page.text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.text), (
        "the page loads nothing from elsewhere"
    )


async def test_one_request_is_one_trace(bare: Mesh, tmp_path: Any) -> None:
    from janus_runtime.telemetry import read_trace, shutdown_telemetry

    await bare.add_worker()
    shutdown_telemetry()  # a provider of an earlier test in this process would stay in force
    await bare.start_gateway(trace_dir=str(tmp_path))
    await ready(bare)
    async with httpx.AsyncClient(base_url=bare.http) as client:
        answer = await client.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 5})
    async with AsyncJanusClient(bare.grpc) as grpc_client:
        other = (await grpc_client.generate("x", max_tokens=3).result()).trace_id
    sent = [metadata["traceparent"] for metadata in bare.workers[0].metadata]
    await bare.stop_gateway()
    for trace_id, root, parent in (
        (answer.headers["x-trace-id"], "POST /v1/completions", sent[0]),
        (other, "janus.v1.GenerationService/Generate", sent[1]),
    ):
        spans = read_trace(tmp_path, trace_id)
        assert [span["name"] for span in spans] == [root, "tokenize", "stream", "queue"]
        by_name = {span["name"]: span for span in spans}
        assert (
            by_name["tokenize"]["parent_span_id"]
            == by_name["stream"]["parent_span_id"]
            == by_name[root]["span_id"]
        )
        assert by_name["queue"]["parent_span_id"] == by_name["stream"]["span_id"]
        assert by_name["queue"]["attributes"]["janus.worker"] == "attention-0"
        assert parent.split("-")[1:3] == [trace_id, by_name["stream"]["span_id"]]
