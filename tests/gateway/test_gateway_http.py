"""The OpenAI-compatible API against a fake attention worker."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from gateway_fakes import CONTEXT, EOS, Mesh, token_rule
from janus_client import AsyncJanusClient, InvalidRequestError
from janus_runtime.errors import InvalidArgument
from janus_wire.v1 import common_pb2

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "Hi", "temperature": 0}


async def post(mesh: Mesh, path: str, body: Any, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=mesh.http, timeout=20) as client:
        if isinstance(body, bytes):
            return await client.post("/v1/" + path, content=body, **more)
        return await client.post("/v1/" + path, json=body, **more)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """Payloads of a whole event stream that ended well."""
    lines = [line for line in answer.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def expected(mesh: Mesh, prompt: str | list[int], count: int, seed: int = 0) -> list[int]:
    """The ids that the fake worker makes of a prompt."""
    ids = mesh.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    params = common_pb2.SamplingParams(temperature=1.0 if seed else 0.0, seed=seed)
    return [token_rule(ids, index, params) for index in range(count)]


# -- what comes back ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    ["Hello", ["Hello", "World"], [5, 6, 7], [[5, 6], [7, 8, 9]]],
    ids=["text", "texts", "ids", "lists"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_of_every_kind(served: Mesh, prompt: Any, stream: bool) -> None:
    body = {**COMPLETION, "prompt": prompt, "max_tokens": 7, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    answer = await post(served, "completions", body)
    assert answer.status_code == 200, answer.text
    one = isinstance(prompt, str) or isinstance(prompt[0], int)
    prompts = [prompt] if one else prompt
    texts = [served.tokenizer.decode(expected(served, p, 7)).rstrip("\ufffd") for p in prompts]
    if stream:
        chunks = events(answer)
        found = [
            "".join(c["text"] for e in chunks for c in e["choices"] if c["index"] == i)
            for i in range(len(prompts))
        ]
        usage = chunks[-1]["usage"]
        assert chunks[-1]["choices"] == []
        assert all(e["usage"] is None for e in chunks[:-1])
    else:
        found = [c["text"] for c in answer.json()["choices"]]
        usage = answer.json()["usage"]
    assert found == texts
    tokens = sum(len(served.tokenizer.encode(p)) if isinstance(p, str) else len(p) for p in prompts)
    assert usage == {
        "prompt_tokens": tokens,
        "completion_tokens": 7 * len(prompts),
        "total_tokens": tokens + 7 * len(prompts),
    }


async def test_n_choices_differ_and_follow_from_the_seed(served: Mesh) -> None:
    body = {**COMPLETION, "temperature": 1, "n": 3, "seed": 41, "max_tokens": 8}
    first = (await post(served, "completions", body)).json()
    second = (await post(served, "completions", body)).json()
    assert [c["index"] for c in first["choices"]] == [0, 1, 2]
    texts = [c["text"] for c in first["choices"]]
    assert len(set(texts)) == 3
    assert texts == [c["text"] for c in second["choices"]]
    assert texts[0] == served.tokenizer.decode(expected(served, "Hi", 8, seed=41)).rstrip("\ufffd")
    assert first["usage"]["completion_tokens"] == 24
    assert first["usage"]["prompt_tokens"] == len(served.tokenizer.encode("Hi"))


@pytest.mark.parametrize("kind", ["chat", "completion"])
async def test_n_streamed_choices_are_those_of_the_whole(served: Mesh, kind: str) -> None:
    more: Any = {"n": 3, "seed": 41, "max_tokens": 8, "temperature": 1, "logprobs": kind == "chat" or None}
    async with openai.AsyncOpenAI(base_url=served.http + "/v1", api_key="x", max_retries=0) as client:
        if kind == "chat":
            create: Any = client.chat.completions.create
            body: dict[str, Any] = {**CHAT, **more}
        else:
            create, body = client.completions.create, {**COMPLETION, **more}
        whole = await create(**body)
        texts = ["", "", ""]
        reasons: list[Any] = [[], [], []]
        async for chunk in await create(**body, stream=True):
            (choice,) = chunk.choices
            text = choice.delta.content if kind == "chat" else choice.text
            texts[choice.index] += text or ""
            reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [c.message.content if kind == "chat" else c.text for c in whole.choices]
    assert [c.index for c in whole.choices] == [0, 1, 2]
    assert reasons == [["length"]] * 3
    seeds = [request.sampling.seed for request in served.workers[0].requests]
    assert len(set(seeds)) == 3
    assert sorted(seeds[:3]) == sorted(seeds[3:])


async def test_choices_of_neighbouring_seeds_have_nothing_in_common(served: Mesh) -> None:
    for seed in range(4):
        body = {**COMPLETION, "temperature": 1, "n": 4, "seed": seed, "max_tokens": 1}
        assert (await post(served, "completions", body)).status_code == 200
    assert len({request.sampling.seed for request in served.workers[0].requests}) == 16


async def test_penalties_and_bias_reach_the_worker(served: Mesh) -> None:
    async with openai.AsyncOpenAI(base_url=served.http + "/v1", api_key="x", max_retries=0) as client:
        await client.chat.completions.create(
            **CHAT,
            max_completion_tokens=2,
            frequency_penalty=0.5,
            presence_penalty=-1.5,
            logit_bias={"7": -100, "9": 2},
            extra_body={"repetition_penalty": 1.25},
        )
    params = served.workers[0].requests[0].sampling
    assert (params.frequency_penalty, params.presence_penalty, params.repetition_penalty) == (0.5, -1.5, 1.25)
    assert dict(params.logit_bias) == {7: -100.0, 9: 2.0}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_echo_is_the_prompt_before_each_answer(served: Mesh, stream: bool) -> None:
    ids = served.tokenizer.encode("Where?")
    for prompt, texts in (("Hi é", ["Hi é"]), (["Hi", "You"], ["Hi", "You"]), (ids, ["Where?"])):
        body = {
            **COMPLETION,
            "prompt": prompt,
            "max_tokens": 5,
            "n": 2,
            "stream": stream,
            "temperature": 1,
            "seed": 4,
        }
        found = []
        for echo in (True, False):
            answer = await post(served, "completions", {**body, "echo": echo})
            parts = [e["choices"][0] for e in events(answer)] if stream else answer.json()["choices"]
            found.append(
                ["".join(p["text"] for p in parts if p["index"] == i) for i in range(2 * len(texts))]
            )
        assert found[0] == [texts[i // 2] + text for i, text in enumerate(found[1])]


SCHEMA = {"type": "object", "properties": {"é": {"type": "string"}}}


@pytest.mark.parametrize(
    ("fields", "kind", "value"),
    [
        ({"response_format": {"type": "text"}}, None, None),
        ({"response_format": {"type": "json_object"}}, "json_object", True),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
                }
            },
            "json_schema",
            SCHEMA,
        ),
        ({"guided_json": SCHEMA}, "json_schema", SCHEMA),
        ({"guided_json": json.dumps(SCHEMA)}, "json_schema", SCHEMA),
        ({"guided_regex": "[ab]+"}, "regex", "[ab]+"),
        ({"guided_grammar": 'start: "a"'}, "grammar", 'start: "a"'),
        ({"guided_choice": ["a", "b"]}, "choice", ["a", "b"]),
    ],
)
@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_guides_reach_the_worker(served: Mesh, path: str, fields: Any, kind: Any, value: Any) -> None:
    body = CHAT if path.startswith("chat") else COMPLETION
    answer = await post(served, path, {**body, **fields, "max_tokens": 2})
    assert answer.status_code == 200, answer.text
    params = served.workers[0].requests[0].sampling
    assert params.HasField("guide") == (kind is not None)
    assert params.guide.WhichOneof("kind") == kind
    if kind:
        found: Any = getattr(params.guide, kind)
        found = list(found.texts) if kind == "choice" else found
        assert (json.loads(found) if kind == "json_schema" else found) == value


async def test_a_guide_that_the_worker_refuses_names_the_clients_field(served: Mesh) -> None:
    served.workers[0].refusal = InvalidArgument(
        "cannot be followed: why", field="sampling.guide", reason="BAD_GUIDE"
    )
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for fields, name in (
        ({"response_format": schema}, "response_format.json_schema.schema"),
        ({"guided_regex": "("}, "guided_regex"),
    ):
        answer = await post(served, "chat/completions", {**CHAT, **fields})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["code"]) == (400, name, "bad_guide")
        assert error["message"] == f"{name}: cannot be followed: why"
    async with AsyncJanusClient(served.grpc) as client:
        with pytest.raises(InvalidRequestError) as caught:
            await client.generate("x", regex="(").result()
    assert caught.value.field == "sampling.guide"


async def test_two_requests_without_a_seed_differ(served: Mesh) -> None:
    body = {**COMPLETION, "temperature": 1}
    texts = {(await post(served, "completions", body)).json()["choices"][0]["text"] for _ in range(3)}
    assert len(texts) == 3


async def test_completions_stop_at_sixteen_and_chat_at_the_context(served: Mesh) -> None:
    answer = (await post(served, "completions", COMPLETION)).json()
    assert answer["usage"]["completion_tokens"] == 16
    answer = (await post(served, "chat/completions", {**CHAT, "temperature": 0})).json()
    assert answer["usage"]["total_tokens"] == CONTEXT
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_chat_goes_through_the_template(served: Mesh) -> None:
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
    ]
    await post(served, "chat/completions", {**CHAT, "messages": messages, "max_completion_tokens": 1})
    text = (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
    assert list(served.workers[0].requests[0].prompt_token_ids) == served.tokenizer.encode(
        text, add_special=False
    )


async def test_extension_fields_and_stop_ids_reach_the_worker(served: Mesh) -> None:
    body = {
        **COMPLETION,
        "ignore_eos": True,
        "min_tokens": 3,
        "top_k": 9,
        "min_p": 0.25,
        "top_p": 0.5,
        "stop": "zzz",
        "stop_token_ids": [7],
    }
    await post(served, "completions", body)
    params = served.workers[0].requests[0].sampling
    assert (params.ignore_eos, params.min_tokens, params.top_k, params.min_p, params.top_p) == (
        True,
        3,
        9,
        0.25,
        0.5,
    )
    assert list(params.stop_token_ids) == [7]
    assert not params.stop


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_across_tokens(served: Mesh, stream: bool) -> None:
    served.workers[0].say(served.tokenizer, "one two STOP three")
    body = {**CHAT, "stop": ["never", "o STOP t"], "stream": stream}
    answer = await post(served, "chat/completions", body)
    if stream:
        chunks = events(answer)
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        text = answer.json()["choices"][0]["message"]["content"]
        reason = answer.json()["choices"][0]["finish_reason"]
    assert (text, reason) == ("one tw", "stop")


async def test_the_end_token_counts_and_has_no_text(served: Mesh) -> None:
    served.workers[0].say(served.tokenizer, "ok")
    answer = (await post(served, "chat/completions", {**CHAT, "logprobs": True})).json()
    ids = served.tokenizer.encode("ok", add_special=False)
    assert answer["choices"][0]["message"]["content"] == "ok"
    assert answer["usage"]["completion_tokens"] == len(ids) + 1
    assert len(answer["choices"][0]["logprobs"]["content"]) == len(ids)


async def test_chat_logprobs(served: Mesh) -> None:
    served.workers[0].say(served.tokenizer, "né")
    async with openai.AsyncOpenAI(base_url=served.http + "/v1", api_key="x", max_retries=0) as client:
        answer = await client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)
        stream = await client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2, stream=True)
        streamed = []
        async for chunk in stream:
            probs = chunk.choices[0].logprobs
            streamed += probs.content or [] if probs else []
    probs = answer.choices[0].logprobs
    assert probs is not None
    content = probs.content
    assert content is not None
    assert b"".join(bytes(entry.bytes or []) for entry in content).decode() == "né"
    assert [entry.logprob for entry in content] == [-0.5] * len(content)
    assert all(len(entry.top_logprobs) == 2 for entry in content)
    assert content[0].top_logprobs[0].token == content[0].token
    assert streamed == content


async def test_completion_logprobs(served: Mesh) -> None:
    served.workers[0].say(served.tokenizer, "one two three")
    answer = (await post(served, "completions", {**COMPLETION, "logprobs": 2})).json()
    choice = answer["choices"][0]
    probs = choice["logprobs"]
    assert "".join(probs["tokens"]) == choice["text"] == "one two three"
    assert probs["text_offset"] == [len("".join(probs["tokens"][:i])) for i in range(len(probs["tokens"]))]
    assert probs["token_logprobs"] == [-0.5] * len(probs["tokens"])
    assert all(len(top) == 2 for top in probs["top_logprobs"])
    assert (await post(served, "completions", COMPLETION)).json()["choices"][0]["logprobs"] is None


async def test_models(served: Mesh) -> None:
    async with openai.AsyncOpenAI(base_url=served.http + "/v1", api_key="x", max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["tiny"]
        assert (await client.models.retrieve("tiny")).owned_by == "janus"
        with pytest.raises(openai.NotFoundError) as caught:
            await client.models.retrieve("some/other")
        assert caught.value.code == "model_not_found"


async def test_headers_and_trace(served: Mesh) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"x-request-id": "mine-1", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    answer = await post(served, "completions", COMPLETION, headers=headers)
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["x-trace-id"] == trace
    assert served.workers[0].requests[0].request_id == "mine-1"
    answer = await post(served, "completions", COMPLETION, headers={"x-request-id": "no blanks allowed"})
    assert answer.headers["x-request-id"].startswith("req-")
    assert len(answer.headers["x-trace-id"]) == 32


# -- what is refused ----------------------------------------------------------------------------------

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


async def test_generation_config_gives_defaults(model_dir: Any, tmp_path: Any) -> None:
    from gateway_fakes import mesh, write_model

    directory = write_model(tmp_path / "m", temperature=0.5, top_k=12, max_new_tokens=5)
    async with mesh(directory) as found:
        await found.add_worker()
        await found.start_gateway()
        answer = await post(found, "completions", {"model": "tiny", "prompt": "x"})
        assert answer.json()["usage"]["completion_tokens"] == 5
        params = found.workers[0].requests[0].sampling
        assert (params.temperature, params.top_k, params.top_p) == (0.5, 12, 1.0)
        assert EOS == 2
