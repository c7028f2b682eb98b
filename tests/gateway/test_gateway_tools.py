"""Tools through both doors, against a fake attention worker: rendered, forced, read back, refused."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from gateway_fakes import EOS, Mesh, mesh, ready, write_model
from janus_client import AsyncJanusClient, InvalidRequestError, Message, Tool, ToolCall
from janus_gateway.config import GatewaySettings
from janus_runtime.errors import InvalidArgument
from tokenizers import AddedToken, Tokenizer

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]

TEMPLATE = """{%- if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>
{% endif %}{%- for m in messages %}<|im_start|>{{ m.role }}{{ " " + m.name if m.name else "" }}
{{ m.content }}{% for call in m.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}{% if m.tool_call_id %} answers {{ m.tool_call_id }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "weather", "description": "Says it.", "parameters": PARAMETERS},
    },
    {"type": "function", "function": {"name": "noop"}},
]
ASK: dict[str, Any] = {
    "model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS, "max_completion_tokens": 200,
}  # fmt: skip
CALLS = (
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo, é"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "noop", "arguments": {}}\n</tool_call>'
)
FOUND = [("weather", '{"city": "Oslo, é"}'), ("noop", "{}")]


@pytest.fixture(scope="module")
def tool_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_model(tmp_path_factory.mktemp("tools") / "tiny", context=2048)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest_asyncio.fixture
async def tooled(tool_model: Path) -> AsyncIterator[Mesh]:
    async with mesh(tool_model) as found:
        await found.add_worker()
        await found.start_gateway()
        await ready(found)
        yield found


def client_of(mesh: Mesh) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=mesh.http + "/v1", api_key="x", max_retries=0)


def prompt_text(mesh: Mesh, place: int = -1) -> str:
    return mesh.tokenizer.decode(list(mesh.workers[0].requests[place].prompt_token_ids), skip_special=False)


async def test_calls_are_taken_out_of_the_text(tooled: Mesh) -> None:
    tooled.workers[0].say(tooled.tokenizer, "Let me see.\n" + CALLS)
    async with client_of(tooled) as client:
        (choice,) = (await client.chat.completions.create(**ASK)).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see.\n"
    calls = choice.message.tool_calls
    assert calls is not None
    assert [(c.function.name, c.function.arguments) for c in calls if c.type == "function"] == FOUND
    assert len({c.id for c in calls}) == 2
    shown = prompt_text(tooled)
    assert '{"type": "function", "function": {"name": "weather", "description": "Says it."' in shown
    assert not tooled.workers[0].requests[0].sampling.HasField("guide"), "auto leaves the model free"


async def test_calls_are_streamed_as_deltas(tooled: Mesh) -> None:
    tooled.workers[0].say(tooled.tokenizer, CALLS)
    found: dict[int, list[str]] = {}
    reasons, arguments_deltas = [], 0
    async with client_of(tooled) as client:
        async for chunk in await client.chat.completions.create(**ASK, stream=True, n=1):
            (choice,) = chunk.choices
            assert not choice.delta.content
            reasons += [choice.finish_reason] if choice.finish_reason else []
            for part in choice.delta.tool_calls or []:
                assert part.function is not None
                if part.id:
                    assert part.type == "function"
                    found[part.index] = [part.function.name or "", ""]
                found[part.index][1] += part.function.arguments or ""
                arguments_deltas += bool(part.function.arguments)
    assert [tuple(found[i]) for i in sorted(found)] == FOUND
    assert reasons == ["tool_calls"]
    assert arguments_deltas > 4, "not all at once"


async def test_the_openai_helpers_understand_it(tooled: Mesh) -> None:
    tooled.workers[0].say(tooled.tokenizer, CALLS)
    async with client_of(tooled) as client, client.chat.completions.stream(**ASK) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls and [(c.function.name, c.function.arguments) for c in calls] == FOUND


async def test_without_a_call_it_is_text(tooled: Mesh) -> None:
    tooled.workers[0].say(tooled.tokenizer, "No <need> {for} it.")
    async with client_of(tooled) as client:
        for more in ({}, {"tool_choice": "none"}, {"tool_choice": "auto"}):
            (choice,) = (await client.chat.completions.create(**{**ASK, **more})).choices
            assert choice.message.content == "No <need> {for} it."
            assert choice.message.tool_calls is None
            assert choice.finish_reason == "stop"
    assert "weather" in prompt_text(tooled, 0)
    assert "weather" not in prompt_text(tooled, 1), "none: the model is not told"


async def test_none_leaves_what_looks_like_a_call_in_the_text(tooled: Mesh) -> None:
    tooled.workers[0].say(tooled.tokenizer, CALLS)
    async with client_of(tooled) as client:
        (choice,) = (await client.chat.completions.create(**ASK, tool_choice="none")).choices
    assert choice.message.content == CALLS


async def test_one_call_when_several_are_unwelcome_and_length_when_it_is_cut(tooled: Mesh) -> None:
    tooled.workers[0].say(tooled.tokenizer, CALLS)
    async with client_of(tooled) as client:
        (choice,) = (await client.chat.completions.create(**ASK, parallel_tool_calls=False)).choices
        assert [c.function.name for c in choice.message.tool_calls or []] == ["weather"]  # type: ignore[union-attr]
        prefix = len(tooled.tokenizer.encode(CALLS[:50], add_special=False))
        cut = {**ASK, "max_completion_tokens": prefix}
        (choice,) = (await client.chat.completions.create(**cut)).choices
        assert choice.finish_reason == "length"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "noop"}}])
async def test_a_forced_call_is_guided(tooled: Mesh, choice: Any) -> None:
    tooled.workers[0].say(tooled.tokenizer, CALLS)
    async with client_of(tooled) as client:
        await client.chat.completions.create(**ASK, tool_choice=choice)
    grammar = tooled.workers[0].requests[0].sampling.guide.grammar
    assert "start: calls\n" in grammar
    assert ("weather" in grammar) == (choice == "required")
    assert "noop" in grammar
    async with AsyncJanusClient(tooled.grpc) as client:
        tools = [Tool(name="weather", description="Says it.", parameters=PARAMETERS), Tool(name="noop")]
        named = choice if isinstance(choice, str) else "noop"
        whole = await client.chat("Hi", tools=tools, tool_choice=named).result()
    assert tooled.workers[0].requests[1].sampling.guide.grammar == grammar
    assert prompt_text(tooled, 0) == prompt_text(tooled, 1), "both doors ask the same"
    assert [(c.name, c.arguments) for c in whole.tool_calls] == FOUND
    assert (whole.finish_reason, whole.text) == ("tool_calls", "")


async def test_json_or_a_call(tooled: Mesh) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    for answer, called in (('{"a": 1}', False), (CALLS, True)):
        tooled.workers[0].say(tooled.tokenizer, answer)
        async with client_of(tooled) as client:
            (choice,) = (await client.chat.completions.create(**ASK, response_format=schema)).choices  # type: ignore[call-overload]
        assert (choice.message.content == answer, bool(choice.message.tool_calls)) == (not called, called)
    assert "start: calls | body\n" in tooled.workers[0].requests[0].sampling.guide.grammar


async def test_a_conversation_with_calls_goes_through_the_template(tooled: Mesh) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]  # fmt: skip
    async with client_of(tooled) as client:
        await client.chat.completions.create(**{**ASK, "messages": messages, "max_completion_tokens": 1})
    shown = prompt_text(tooled)
    assert "<|im_start|>user me\nHi<|im_end|>" in shown
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in shown
    assert "<|im_start|>tool\nrain answers call_1<|im_end|>" in shown
    async with AsyncJanusClient(tooled.grpc) as janus:
        call = ToolCall(id="call_1", name="weather", arguments='{"city": "Oslo"}')
        said = [
            Message(role="user", content="Hi", name="me"),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content="rain", tool_call_id="call_1"),
        ]
        tools = [Tool(name="weather", description="Says it.", parameters=PARAMETERS), Tool(name="noop")]
        await janus.chat(said, max_tokens=1, tools=tools).result()
    assert prompt_text(tooled) == shown


CALL = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": "{"}}
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{"type": "function"}]}, "tools[0].function", "required"),
    ({"tools": [{"type": "magic", "function": {"name": "x"}}]}, "tools[0].type", "function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "a-z"),
    ({"tools": [TOOLS[1], TOOLS[1]]}, "tools[1].function.name", "twice"),
    ({"tools": [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]}, "tools", "at most 128"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]}, "tools[0].function.parameters",
     "an object"),
    ({"tool_choice": "maybe"}, "tool_choice", "required"),
    ({"tool_choice": {"type": "function"}}, "tool_choice", "required"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice", "noop, weather"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tools": None, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "names no tool"),
    ({"guided_regex": "a+"}, "tools", "JSON guide only"),
    ({"messages": [{"role": "assistant", "tool_calls": [CALL]}]}, "messages[0].tool_calls[0].function.arguments",
     "JSON object"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]}, "messages[0].tool_calls[0].function", ""),
]  # fmt: skip


async def test_bad_tools_name_the_field_and_harm_nothing(tooled: Mesh) -> None:
    wrong = []
    async with httpx.AsyncClient(base_url=tooled.http) as client:
        for body, field, part in BAD:
            answer = await client.post("/v1/chat/completions", json={**ASK, **body})
            error = answer.json().get("error", {})
            if answer.status_code != 400 or error["param"] != field or part not in error["message"]:
                wrong.append((str(body)[:90], answer.status_code, error))
        body = json.dumps(
            {**ASK, "tools": [{"type": "function", "function": {"name": "f", "description": "\ud800"}}]}
        )
        answer = await client.post("/v1/chat/completions", content=body.encode())
        assert answer.status_code == 400, answer.text
    assert not wrong, "\n".join(map(str, wrong))
    assert not tooled.workers[0].requests


async def test_bad_tools_over_grpc(tooled: Mesh) -> None:
    async with AsyncJanusClient(tooled.grpc) as client:
        for options, field in (
            ({"tools": [Tool(name="a b")]}, "chat.tools[0].name"),
            ({"tools": [Tool(name="a")], "tool_choice": "b"}, "chat.tool_choice"),
            ({"tool_choice": "required"}, "chat.tool_choice"),
            ({"tools": [Tool(name="a")], "regex": "x"}, "chat.tools"),
        ):
            with pytest.raises(InvalidRequestError) as caught:
                await client.chat("Hi", **options).result()  # type: ignore[arg-type]
            assert caught.value.field == field
        bad = Message(role="assistant", tool_calls=(ToolCall(id="c", name="f", arguments="5"),))
        with pytest.raises(InvalidRequestError) as caught:
            await client.chat([bad]).result()
        assert caught.value.field == "chat.messages[0].tool_calls[0].arguments"
    assert not tooled.workers[0].requests


async def test_a_models_template_without_tools_says_so(served: Mesh) -> None:
    async with client_of(served) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**ASK)
        assert (caught.value.param, caught.value.code) == ("tools", "tools_unsupported")
        served.workers[0].say(served.tokenizer, "ok")
        await client.chat.completions.create(**ASK, tool_choice="none")


async def test_special_tokens_mark_calls_that_the_text_never_shows(tmp_path: Path) -> None:
    """Mistral's marker is a special token, which decoding leaves out."""
    directory = write_model(tmp_path / "tiny", context=2048)
    path = str(directory / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    vocabulary = tokenizer.get_vocab_size()
    spare = [AddedToken("[TOOL_CALLS]", special=True), AddedToken("[OTHER]", special=True)]
    if vocabulary + 2 > 512:  # the model's vocabulary ends there
        state = json.loads(Path(path).read_text())
        names = sorted(state["model"]["vocab"], key=state["model"]["vocab"].get)
        gone = set(names[-2:])
        state["model"]["vocab"] = {n: i for n, i in state["model"]["vocab"].items() if n not in gone}
        state["model"]["merges"] = [m for m in state["model"]["merges"] if "".join(m) not in gone]
        tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens(spare)
    tokenizer.save(path)
    (directory / "chat_template.jinja").write_text("{{ tools }}[TOOL_CALLS]{{ messages[0].content }}")
    async with mesh(directory) as found:
        worker = await found.add_worker()
        await found.start_gateway()
        await ready(found)
        mark, other = tokenizer.token_to_id("[TOOL_CALLS]"), tokenizer.token_to_id("[OTHER]")
        encode = found.tokenizer.encode
        rest = encode('[{"name": "weather", "arguments": {"city": "é"}}]', add_special=False)
        ids = [*encode("See", add_special=False), other, mark, *rest, EOS]
        worker.rule = lambda prompt, index, params: ids[min(index, len(ids) - 1)]
        async with client_of(found) as client:
            (choice,) = (await client.chat.completions.create(**ASK)).choices
            await client.chat.completions.create(**ASK, tool_choice="required")
        assert choice.message.content == "See"
        (call,) = choice.message.tool_calls or []
        assert call.type == "function" and json.loads(call.function.arguments) == {"city": "é"}
        assert len(call.id) == 9
        assert f"<[{mark}]>" in worker.requests[-1].sampling.guide.grammar


async def test_a_tool_format_that_is_unknown_is_refused_at_the_start(tool_model: Path) -> None:
    settings = GatewaySettings(model=str(tool_model), tool_format="morse")
    with pytest.raises(InvalidArgument) as caught:
        settings.checked_model()
    assert caught.value.field == "--tool-format"
