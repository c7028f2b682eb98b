"""What users of an OpenAI-compatible server expect, with the official client, of real processes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
from janus_client import InvalidRequestError, JanusClient
from janus_testing import LocalMesh
from openai import BadRequestError, OpenAI, pydantic_function_tool
from pydantic import BaseModel

pytestmark = pytest.mark.timeout(300)
PROMPT = [5, 9, 17, 33, 4, 8]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "sizes": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "sizes"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}


TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "parameters": {
        "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "maximum": 9}},
        "required": ["city"], "additionalProperties": False}}},
    {"type": "function", "function": {"name": "noop", "parameters": {"properties": {}, "additionalProperties": False}}},
]  # fmt: skip


@pytest.fixture(scope="module")
def mesh(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMesh]:
    directory = tmp_path_factory.mktemp("api") / "tiny"
    shutil.copytree(tiny, directory)
    template = "{% for tool in tools or [] %}<tool_call>{{ tool.function.name }}{% endfor %}{{ messages[-1].content }}"
    (directory / "chat_template.jinja").write_text(template)
    with LocalMesh(directory, attention=2, experts=2, start_deadline_s=150) as mesh:
        yield mesh


@pytest.fixture
def client(mesh: LocalMesh) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"http://{mesh.http}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def model(client: OpenAI) -> str:
    return client.models.list().data[0].id


def check(text: str | None) -> None:
    value = json.loads(text or "")
    assert set(value) == {"name", "sizes"}
    assert len(value["name"]) <= 8
    assert len(value["sizes"]) <= 3 and all(type(size) is int and 0 <= size <= 99 for size in value["sizes"])


@pytest.mark.parametrize("seed", range(3))
def test_a_schema_is_kept_whole_and_streamed(client: OpenAI, model: str, seed: int) -> None:
    ask: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": "hello"}], "response_format": FORMAT,
        "seed": seed, "n": 2, "max_completion_tokens": 1500,
    }  # fmt: skip
    whole = client.chat.completions.create(**ask)
    assert [c.finish_reason for c in whole.choices] == ["stop", "stop"]
    for choice in whole.choices:
        check(choice.message.content)
    texts = ["", ""]
    for chunk in client.chat.completions.create(**ask, stream=True):
        for part in chunk.choices:
            texts[part.index] += part.delta.content or ""
    assert texts == [c.message.content for c in whole.choices]


class Size(BaseModel):
    width: Literal[1, 20, 300]
    unit: Literal["cm", "m"]


class Thing(BaseModel):
    kind: Literal["box", "ball"]
    size: Size
    fragile: bool | None


def test_the_clients_own_parsing_of_a_model_class(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": "hello"}], response_format=Thing, seed=1
    )
    assert isinstance(answer.choices[0].message.parsed, Thing)
    tool = pydantic_function_tool(Thing, name="thing")
    answer = client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": "hello"}], tools=[tool], tool_choice="required", seed=2,
        parallel_tool_calls=False,
    )  # fmt: skip
    (call,) = answer.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Thing)


def test_other_guides(client: OpenAI, model: str) -> None:
    for fields, pattern in (
        ({"guided_regex": "[A-C]{3}-[0-9]{1,4}"}, "[A-C]{3}-[0-9]{1,4}"),
        ({"guided_choice": ["red", "green"]}, "red|green"),
        ({"guided_grammar": 'start: "<" /[a-f]{1,3}/ ">"'}, "<[a-f]{1,3}>"),
    ):
        answer = client.completions.create(
            model=model, prompt=PROMPT, max_tokens=50, extra_body={**fields, "ignore_eos": True}
        )
        assert re.fullmatch(pattern, answer.choices[0].text), fields
        assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "name", "reason"),
    [
        ({"guided_regex": "[a-"}, "guided_regex", "unclosed"),
        ({"guided_grammar": "start: nowhere"}, "guided_grammar", "unknown name"),
        ({"guided_json": {"type": "integer", "minimum": 2, "maximum": 1}}, "guided_json", "greater"),
        ({"guided_json": {"type": "array", "uniqueItems": True}}, "guided_json", "uniqueItems"),
        ({"guided_json": "{"}, "guided_json", "line 1"),
        ({"guided_choice": []}, "guided_choice", "1..1024"),
        ({"guided_choice": ["a", ""]}, "guided_choice", "empty"),
        ({"guided_regex": "x" * 300_000}, "guided_regex", "262144"),
    ],
)
def test_guides_that_cannot_be_followed_are_refused_and_harm_nobody(
    mesh: LocalMesh, client: OpenAI, model: str, fields: Any, name: str, reason: str
) -> None:
    with JanusClient(mesh.grpc) as other:
        stream = other.generate(PROMPT, max_tokens=60, temperature=0.0, ignore_eos=True)
        expected = other.generate(PROMPT, max_tokens=60, temperature=0.0, ignore_eos=True).result()
        with pytest.raises(BadRequestError) as caught:
            client.completions.create(model=model, prompt=PROMPT, max_tokens=50, extra_body=fields)
        assert caught.value.param == name
        assert reason in str(caught.value)
        assert stream.result().token_ids == expected.token_ids
        with pytest.raises(InvalidRequestError) as refused:
            other.generate(PROMPT, regex="(").result()
        assert refused.value.field == "sampling.guide"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_call_of_a_random_model_obeys(client: OpenAI, model: str, choice: Any) -> None:
    ask: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": "hello"}], "tools": TOOLS, "tool_choice": choice,
        "seed": 3, "max_completion_tokens": 900, "parallel_tool_calls": False,
    }  # fmt: skip
    (whole,) = client.chat.completions.create(**ask).choices
    assert whole.finish_reason == "tool_calls"
    (call,) = whole.message.tool_calls or []
    arguments = json.loads(call.function.arguments)  # type: ignore[union-attr]
    if call.function.name == "weather":  # type: ignore[union-attr]
        assert arguments["city"] in ("Oslo", "Rome") and set(arguments) <= {"city", "days"}
    else:
        assert choice == "required" and arguments == {}
    streamed = ""
    for chunk in client.chat.completions.create(**ask, stream=True):
        for part in chunk.choices[0].delta.tool_calls or []:
            streamed += part.function.arguments or ""  # type: ignore[union-attr]
    assert streamed == call.function.arguments  # type: ignore[union-attr]


def test_guided_sampled_streams_survive_the_loss_of_a_worker(mesh: LocalMesh) -> None:
    ask: dict[str, Any] = {
        "regex": "([a-z]{1,9} ){60}", "seed": 5, "temperature": 1.0, "frequency_penalty": 0.3,
        "repetition_penalty": 1.1, "logit_bias": {70: 1.5},
    }  # fmt: skip
    with JanusClient(mesh.grpc) as client:
        expected = client.generate(PROMPT, **ask).result()
        assert re.fullmatch(ask["regex"], expected.text)
        before = resumed(mesh)
        streams = [client.generate(PROMPT, **ask) for _ in range(2)]  # one on each worker
        tokens: list[int] = []
        while len(tokens) < 10:
            tokens += next(streams[0]).token_ids
        pid = mesh.kill("attention-0")
        tokens += streams[0].result().token_ids
        assert tuple(tokens) == expected.token_ids
        assert streams[1].result().token_ids == expected.token_ids
        assert resumed(mesh) > before
    mesh.wait_restarted("attention-0", pid, timeout_s=90)


def resumed(mesh: LocalMesh) -> float:
    """Streams that went on at another worker, so far."""
    text = httpx.get(f"http://{mesh.http}/metrics").text
    return sum(
        float(line.split()[-1]) for line in text.splitlines() if line.startswith("janus_gateway_resumed")
    )
