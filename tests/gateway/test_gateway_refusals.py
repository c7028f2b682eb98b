"""What the OpenAI-compatible API refuses, and how it says so; a fake attention worker behind it."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from gateway_fakes import CONTEXT, Mesh
from http_requests import CHAT, COMPLETION, post

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

LONG = "word " * 4000
BAD: list[tuple[str, Any, str | None, str]] = [
    ("completions", {**COMPLETION, "max_tokens": 0}, "max_tokens", "1.."),
    ("completions", {**COMPLETION, "max_tokens": 10**9}, "max_tokens", "1.."),
    ("completions", {**COMPLETION, "max_tokens": 10**40}, "max_tokens", ""),
    ("completions", {**COMPLETION, "max_tokens": -1}, "max_tokens", "1.."),
    ("completions", {**COMPLETION, "max_tokens": "7"}, "max_tokens", "integer"),
    ("completions", {**COMPLETION, "max_tokens": 1.5}, "max_tokens", "integer"),
    ("completions", {**COMPLETION, "max_tokens": True}, "max_tokens", "integer"),
    ("completions", {**COMPLETION, "temperature": "hot"}, "temperature", "number"),
    ("completions", {**COMPLETION, "temperature": -1}, "temperature", "0..100"),
    ("completions", {**COMPLETION, "top_p": 0}, "top_p", "above 0"),
    ("completions", {**COMPLETION, "top_k": -7}, "top_k", "off"),
    ("completions", {**COMPLETION, "min_p": 2}, "min_p", "0..1"),
    ("completions", {**COMPLETION, "priority": 1001}, "priority", "-1000..1000"),
    ("completions", {**COMPLETION, "priority": -(10**9)}, "priority", "lower is earlier"),
    ("completions", {**COMPLETION, "priority": "high"}, "priority", "integer"),
    ("completions", {**COMPLETION, "priority": 1.5}, "priority", "integer"),
    ("completions", {**COMPLETION, "n": 0}, "n", "1..64"),
    ("completions", {**COMPLETION, "n": 65}, "n", "1..64"),
    ("completions", {**COMPLETION, "prompt": ["a", "b"], "n": -3}, "n", "1..32"),
    ("completions", {**COMPLETION, "seed": 2**64}, "seed", ""),
    ("completions", {**COMPLETION, "logprobs": 21}, "logprobs", "0..20"),
    ("completions", {**COMPLETION, "logprobs": True}, "logprobs", "integer"),
    ("completions", {**COMPLETION, "echo": True, "logprobs": 1}, "echo", "prompt tokens"),
    ("completions", {**COMPLETION, "echo": "yes"}, "echo", "boolean"),
    ("completions", {**COMPLETION, "suffix": "x"}, "suffix", "not supported"),
    ("completions", {**COMPLETION, "best_of": 2}, "best_of", "not supported"),
    ("completions", {**COMPLETION, "frequency_penalty": 2.5}, "frequency_penalty", "-2..2"),
    ("completions", {**COMPLETION, "presence_penalty": -3}, "presence_penalty", "-2..2"),
    ("completions", {**COMPLETION, "repetition_penalty": 0}, "repetition_penalty", "above 0"),
    ("completions", {**COMPLETION, "repetition_penalty": 101}, "repetition_penalty", "at most 100"),
    ("completions", {**COMPLETION, "logit_bias": {"512": 1}}, "logit_bias", "0..511"),
    ("completions", {**COMPLETION, "logit_bias": {"5": 100.5}}, "logit_bias[5]", "-100..100"),
    ("completions", {**COMPLETION, "logit_bias": {"5": -101}}, "logit_bias[5]", "-100..100"),
    ("completions", {**COMPLETION, "logit_bias": {"-5": 1}}, "logit_bias", "token ids"),
    ("completions", {**COMPLETION, "logit_bias": {"five": 1}}, "logit_bias", "token ids"),
    ("completions", {**COMPLETION, "logit_bias": {"5": 1, "05": 2}}, "logit_bias", "token ids"),
    ("completions", {**COMPLETION, "logit_bias": [5]}, "logit_bias", ""),
    ("completions", {**COMPLETION, "logit_bias": {"5": None}}, "logit_bias.5", "number"),
    ("completions", {**COMPLETION, "logit_bias": {str(i): 0 for i in range(1025)}}, "logit_bias", "at most 1024"),
    ("completions", {**COMPLETION, "stop": 5}, "stop", "list"),
    ("completions", {**COMPLETION, "stop": ["a", 5]}, "stop[1]", "string"),
    ("completions", {**COMPLETION, "stop": ["x"] * 17}, "stop", "at most 16"),
    ("completions", {**COMPLETION, "stop": ""}, "stop", "1..1024"),
    ("completions", {**COMPLETION, "stop_token_ids": [99999]}, "stop_token_ids", "0..511"),
    ("completions", {**COMPLETION, "stream": "yes"}, "stream", "boolean"),
    ("completions", {**COMPLETION, "stream_options": {"include_usage": True}}, "stream_options", "stream"),
    ("completions", {**COMPLETION, "stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not a field"),
    ("completions", {**COMPLETION, "min_tokens": 99}, "min_tokens", "0..16"),
    ("completions", {**COMPLETION, "colour": "red"}, "colour", "not a field"),
    ("completions", {**COMPLETION, "prompt": None}, "prompt", "a string"),
    ("completions", {**COMPLETION, "prompt": []}, "prompt", "not empty"),
    ("completions", {**COMPLETION, "prompt": [[]]}, "prompt", "tokens"),
    ("completions", {**COMPLETION, "prompt": ["a", 5]}, "prompt", "list of"),
    ("completions", {**COMPLETION, "prompt": [1, True]}, "prompt", "list of"),
    ("completions", {**COMPLETION, "prompt": {"a": 1}}, "prompt", "list of"),
    ("completions", {**COMPLETION, "prompt": [5, 512]}, "prompt", "0..511"),
    ("completions", {**COMPLETION, "prompt": [[5], [-1]]}, "prompt[1]", "0..511"),
    ("completions", {**COMPLETION, "prompt": LONG}, "prompt", "no room"),
    ("completions", {"model": "tiny"}, "prompt", "required"),
    ("completions", {"prompt": "x"}, "model", "required"),
    ("completions", {**COMPLETION, "model": 5}, "model", "string"),
    ("chat/completions", {"model": "tiny"}, "messages", "required"),
    ("chat/completions", {**CHAT, "messages": []}, "messages", "at least 1"),
    ("chat/completions", {**CHAT, "messages": "Hi"}, "messages", "array"),
    ("chat/completions", {**CHAT, "messages": [{"content": "x"}]}, "messages[0].role", "required"),
    ("chat/completions", {**CHAT, "messages": [{"role": "king", "content": "x"}]}, "messages[0].role", "user"),
    ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string"),
    ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
     "messages.content", "no text"),
    ("chat/completions", {**CHAT, "messages": [{"role": "user", "content": LONG}]}, "messages", "no room"),
    ("chat/completions", {**CHAT, "max_tokens": 0}, "max_tokens", "1.."),
    ("chat/completions", {**CHAT, "max_completion_tokens": 0}, "max_completion_tokens", "1.."),
    ("chat/completions", {**CHAT, "max_completion_tokens": 5, "max_tokens": 6}, "max_tokens", "contradicts"),
    ("chat/completions", {**CHAT, "top_logprobs": 3}, "top_logprobs", "logprobs"),
    ("chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 30}, "top_logprobs", "0..20"),
    ("chat/completions", {**CHAT, "logprobs": 3}, "logprobs", "boolean"),
    ("chat/completions", {**CHAT, "tools": [{"type": "function"}]}, "tools[0].function", "required"),
    ("chat/completions", {**CHAT, "functions": [{"name": "f"}]}, "functions", "not supported"),
    ("chat/completions", {**CHAT, "response_format": "json"}, "response_format.type", "json_object"),
    ("chat/completions", {**CHAT, "response_format": {"type": "xml"}}, "response_format.type", "json_schema"),
    ("chat/completions", {**CHAT, "response_format": {"type": "json_schema"}}, "response_format.json_schema", "schema"),
    ("chat/completions", {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
     "response_format.json_schema.schema", "an object"),
    ("completions", {**COMPLETION, "guided_regex": "a", "guided_choice": ["b"]}, "guided_choice", "contradicts"),
    ("completions", {**COMPLETION, "guided_regex": 5}, "guided_regex", "string"),
    ("completions", {**COMPLETION, "guided_choice": "b"}, "guided_choice", "array"),
    ("completions", {**COMPLETION, "guided_json": [5]}, "guided_json", "an object"),
    ("chat/completions", [1, 2], "body", "object"),
    ("chat/completions", b"{", None, "JSON"),
    ("chat/completions", b"", None, "JSON"),
    ("chat/completions", b'{"model": "tiny", "messages": [{"role": "user", "content": "\xff"}]}', None, "JSON"),
    ("chat/completions", b'{"model":"tiny","messages":[{"role":"user","content":"\\ud800"}]}', None, ""),
    ("chat/completions", b"[" * 100_000, None, "JSON"),
    ("completions", b'{"model":"tiny","prompt":"x","temperature":NaN}', "temperature", "finite"),
]  # fmt: skip


async def test_bad_requests_name_the_field_and_harm_nothing(served: Mesh) -> None:
    wrong = []
    for path, body, field, part in BAD:
        answer = await post(served, path, body)
        error = answer.json().get("error", {})
        good = (
            answer.status_code == 400
            and error["type"] == "invalid_request_error"
            and (field is None or error["param"] == field)
            and part.lower() in error["message"].lower()
        )
        if not good:
            wrong.append((str(body)[:80], answer.status_code, error))
    assert not wrong, "\n".join(map(str, wrong))
    assert not served.workers[0].requests
    assert (await post(served, "completions", COMPLETION)).status_code == 200


async def test_neutral_values_of_unsupported_fields_are_taken(served: Mesh) -> None:
    neutral = {
        "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "user": "me", "tools": [],
        "tool_choice": "none", "response_format": {"type": "text"}, "store": False, "metadata": {"a": "b"},
        "seed": None, "stop": None, "stream": None, "max_tokens": 2, "parallel_tool_calls": True,
    }  # fmt: skip
    answer = await post(served, "chat/completions", {**CHAT, **neutral})
    assert answer.status_code == 200, answer.text
    body = {**COMPLETION, "echo": False, "best_of": 1, "suffix": None}
    assert (await post(served, "completions", body)).status_code == 200


async def test_context_errors_say_so(served: Mesh) -> None:
    error = (await post(served, "completions", {**COMPLETION, "prompt": LONG})).json()["error"]
    assert error["code"] == "context_length_exceeded"
    error = (await post(served, "completions", {**COMPLETION, "max_tokens": CONTEXT})).json()["error"]
    assert error["code"] == "context_length_exceeded"


async def test_wrong_urls_methods_and_models(served: Mesh) -> None:
    async with httpx.AsyncClient(base_url=served.http) as client:
        answer = await client.get("/v1/chat/completions")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert answer.json()["error"]["code"] == "method_not_allowed"
        answer = await client.get("/v2/nothing")
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    answer = await post(served, "chat/completions", {**CHAT, "model": "gpt-5"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "tiny" in answer.json()["error"]["message"]


async def test_too_large_a_body_is_refused_unread(bare: Mesh) -> None:
    await bare.add_worker()
    await bare.start_gateway(max_body_bytes=4096)
    answer = await post(bare, "completions", {**COMPLETION, "prompt": "x" * 5000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")

    async def chunked() -> Any:
        for _ in range(10):
            yield b" " * 1000

    async with httpx.AsyncClient(base_url=bare.http) as client:
        answer = await client.post("/v1/completions", content=chunked())
        assert answer.status_code == 413


async def test_the_workers_own_refusal_is_passed_on(served: Mesh) -> None:
    import grpc

    served.workers[0].fail_after, served.workers[0].failure = 0, grpc.StatusCode.INVALID_ARGUMENT
    answer = await post(served, "completions", COMPLETION)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    served.workers[0].failure = grpc.StatusCode.INTERNAL
    answer = await post(served, "completions", COMPLETION)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")


async def test_an_error_in_mid_stream_is_an_event(served: Mesh) -> None:
    import grpc

    served.workers[0].fail_after, served.workers[0].failure = 3, grpc.StatusCode.INTERNAL
    answer = await post(served, "completions", {**COMPLETION, "stream": True, "ignore_eos": True})
    assert answer.status_code == 200
    lines = [line for line in answer.text.split("\n") if line]
    assert json.loads(lines[-1][6:])["error"]["type"] == "server_error"
    assert "[DONE]" not in answer.text
    async with openai.AsyncOpenAI(base_url=served.http + "/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.APIError):
            async for _ in await client.completions.create(**COMPLETION, stream=True):
                pass
