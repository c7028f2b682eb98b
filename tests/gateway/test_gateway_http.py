"""The OpenAI-compatible API against a fake attention worker."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from gateway_fakes import CONTEXT, EOS, Mesh, token_rule
from http_requests import CHAT, COMPLETION, events, post
from janus_client import AsyncJanusClient, InvalidRequestError
from janus_runtime.errors import InvalidArgument
from janus_wire.v1 import common_pb2

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


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
        "priority": -3,
    }
    await post(served, "completions", body)
    assert served.workers[0].requests[0].priority == -3
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
