"""Tool calls in every format: written by an obvious writer, cut anywhere, spoiled, and as a grammar allows them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from janus_gateway.tools import FORMATS, Function, ToolParser, detect
from janus_gateway.tools.plan import ToolAsk, ToolPlan

NAMES = ("get_weather", "noop", "f-2")
Call = tuple[str, dict[str, Any]]


def write(form: str, calls: list[Call]) -> str:
    """As the models do, by their chat templates."""
    if form == "hermes":
        return "\n".join(
            f"<tool_call>\n{json.dumps({'name': n, 'arguments': a})}\n</tool_call>" for n, a in calls
        )
    if form == "mistral":
        return "[TOOL_CALLS]" + json.dumps([{"name": n, "arguments": a} for n, a in calls])
    if form == "mistral-named":
        return "".join(f"[TOOL_CALLS]{n}[ARGS]{json.dumps(a)}" for n, a in calls)
    if form == "llama":
        return "; ".join(json.dumps({"name": n, "parameters": a}) for n, a in calls)
    inner = "".join(
        "<｜tool▁call▁begin｜>"
        + (
            f"{n}<｜tool▁sep｜>{json.dumps(a)}"
            if form == "deepseek-v3.1"
            else f"function<｜tool▁sep｜>{n}\n```json\n{json.dumps(a)}\n```"
        )
        + "<｜tool▁call▁end｜>"
        for n, a in calls
    )
    return f"<｜tool▁calls▁begin｜>{inner}<｜tool▁calls▁end｜>"


def read(
    form: str, pieces: list[str], *, parallel: bool = True
) -> tuple[str, list[tuple[str, str]], list[str]]:
    """Text, (name, arguments' text) of each call, and ids."""
    parser = ToolParser(FORMATS[form], NAMES, parallel=parallel)
    text, calls, ids = "", {}, []
    for place, piece in enumerate(pieces):
        more, parts = parser.push(piece, last=place == len(pieces) - 1)
        text += more
        for part in parts:
            if part.id:
                assert part.index not in calls, "a call begins once"
                ids.append(part.id)
                calls[part.index] = (part.name, part.arguments)
            else:
                name, arguments = calls[part.index]
                calls[part.index] = (name, arguments + part.arguments)
    assert list(calls) == list(range(len(calls)))
    assert parser.called == bool(calls)
    return text, list(calls.values()), ids


def cut(text: str, draw: random.Random) -> list[str]:
    """Into pieces, some of one character."""
    at = sorted(draw.sample(range(len(text) + 1), draw.randint(0, len(text) + 1)))
    return [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]


def value(draw: random.Random, depth: int = 0) -> Any:
    kind = draw.randrange(8 if depth < 3 else 6)
    if kind < 2:
        return "".join(draw.choice('ab"\\{}[]<>/\n é😀,:;`') for _ in range(draw.randint(0, 12)))
    if kind < 6:
        return [None, True, draw.randint(-99, 99), draw.uniform(-1, 1)][kind - 2]
    if kind == 6:
        return [value(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    return {f"k{i}": value(draw, depth + 1) for i in range(draw.randint(0, 3))}


def random_calls(draw: random.Random) -> list[Call]:
    return [
        (draw.choice(NAMES), {f"a{i}": value(draw) for i in range(draw.randint(0, 3))})
        for _ in range(draw.randint(1, 3))
    ]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(40))
def test_what_was_written_is_read_however_it_is_cut(form: str, seed: int) -> None:
    draw = random.Random(seed)
    calls = random_calls(draw)
    before = "" if form == "llama" else draw.choice(["", "I will look < that [up.", "{ a } <tool_", "é😀"])
    pieces = cut(before + write(form, calls), draw)
    text, found, ids = read(form, pieces)
    assert text == before
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls
    assert len(set(ids)) == len(calls)
    _, first, _ = read(form, pieces, parallel=False)
    assert first == found[:1]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(40))
def test_an_end_anywhere_and_any_damage_raise_nothing_and_depend_on_no_cuts(form: str, seed: int) -> None:
    draw = random.Random(seed)
    text = "so: " * (form != "llama") + write(form, random_calls(draw))
    text = text[: draw.randint(0, len(text))]
    for _ in range(draw.randint(0, 2)):
        at = draw.randint(0, len(text))
        text = text[:at] + draw.choice(["}", '"', "{", "]", "<", "x", "\\"]) + text[at + draw.randint(0, 2) :]
    whole = read(form, [text])[:2]
    assert read(form, cut(text, draw))[:2] == whole
    assert read(form, [*text, ""])[:2] == whole


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "text",
    ["", "Just words.", '{"answer": 5}', '["a", {"b": 1}]', "a <b> [c] {d}\n```json\n{}\n```", "  \n x"],
)
def test_plain_answers_stay_as_they_are(form: str, text: str) -> None:
    assert read(form, [*text, ""])[:2] == (text, [])


def test_what_models_write_besides() -> None:
    call = '{"name": "noop", "arguments": {"a": 1}}'
    for form, text, rest, calls in (
        ("hermes", f"<tool_call>{call}</tool_call>", "", [("noop", '{"a": 1}')]),
        ("hermes", f"<tool_call>\n{call}\n</tool_call>\n\n", "", [("noop", '{"a": 1}')]),
        ("hermes", f"<tool_call>\n{call}\n</tool_call> done", " done", [("noop", '{"a": 1}')]),
        ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "noop"}</tool_call>', "", [("noop", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "noop"}</tool_call>', "", [("noop", "{}")]),
        ("hermes", '<tool_call>{"name": "noop", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("noop", '{"a": 1}')]),
        ("hermes", '<tool_call>{"name": "noop", "arguments": {"a": 1', "", [("noop", '{"a": 1')]),
        ("hermes", "<tool_call>no JSON</tool_call>", "<tool_call>no JSON</tool_call>", []),
        ("mistral", f"[TOOL_CALLS] [{call}, {call}]", "", [("noop", '{"a": 1}')] * 2),
        ("mistral", "[TOOL_CALLS]noop[CALL_ID]abc[ARGS]{}", "", [("noop", "{}")]),
        ("llama", '<|python_tag|>{"name": "noop", "parameters": {"a": 1}}', "", [("noop", '{"a": 1}')]),
        ("llama", '{"name": "unknown", "parameters": {}}', '{"name": "unknown", "parameters": {}}', []),
        ("llama", '{"name": "noop", "parameters": {}}\nand more', "\nand more", [("noop", "{}")]),
    ):  # fmt: skip
        assert read(form, [*text, ""])[:2] == (rest, calls), text
    for number in range(5):
        (identity,) = read("mistral", [f"[TOOL_CALLS][{call}]"])[2]
        assert len(identity) == 9 and identity.isalnum(), number


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("special", [False, True], ids=["text", "special"])
@pytest.mark.parametrize("seed", range(3))
def test_a_forced_call_is_read_back_and_obeys(form: str, special: bool, seed: int, model_dir: Any) -> None:
    """Random tokens within the plan's grammar; ``special``: the markers are tokens of their own."""
    from llguidance import LLMatcher, LLTokenizer

    functions = (
        Function(
            name="get_weather",
            parameters={
                "type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
                "additionalProperties": False,
            },
        ),
        Function(name="noop", parameters={"properties": {}, "additionalProperties": False}),
    )  # fmt: skip
    markers = FORMATS[form].markers
    ids = {marker: 300 + place for place, marker in enumerate(markers)} if special else {}
    draw = random.Random(seed)
    name = draw.choice(["", "get_weather"])
    ask = ToolAsk(functions=functions, mode="required", name=name, parallel=bool(draw.getrandbits(1)))
    plan = ToolPlan(form=FORMATS[form], ask=ask, special=ids)
    guide = plan.guide(None)
    assert guide is not None
    tokenizer = LLTokenizer(str(model_dir / "tokenizer.json"), n_vocab=512, eos_token=2)
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(guide.grammar), log_level=0)
    text, run = "", []
    for _ in range(2000):
        if matcher.is_stopped():
            break
        bits = matcher.compute_bitmask()
        allowed = [v for v in range(512) if bits[v // 8] >> v % 8 & 1]
        token = 2 if 2 in allowed else draw.choice(allowed)  # several calls end after the first, mostly
        matcher.consume_token(token)
        if token in plan.markers or token == 2:
            text += tokenizer.decode_str(run) + plan.markers.get(token, "")
            run = []
        else:
            run.append(token)
    assert not matcher.is_error(), matcher.get_error()
    assert matcher.is_stopped()
    text, calls, _ = read(form, [text + tokenizer.decode_str(run)])
    assert text.strip() == ""
    assert calls
    for called, arguments in calls:
        assert called == (name or called)
        assert json.loads(arguments) in (
            [{"city": "Oslo"}, {"city": "Rome"}] if called == "get_weather" else [{}]
        )


def test_formats_are_known_by_their_templates() -> None:
    for template, expected in (
        ("{% if tools %}<tool_call></tool_call>{% endif %}", "hermes"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS] [", "mistral"),
        ("{% if tools %}{% endif %}[TOOL_CALLS]name[ARGS]", "mistral"),
        ("{% if tools %}{% endif %}Environment: ipython {\"parameters\"", "llama"),
        ("{{ tools }}<｜tool▁calls▁begin｜>'\\n```json\\n'", "deepseek"),
        ("{{ tools }}<｜tool▁calls▁begin｜>", "deepseek"),
        ("{% for message in messages %}", None),
        ("<tool_call>", None),
    ):  # fmt: skip
        found = detect(template)
        assert (found.name if found else None) == expected
    assert detect("tools [TOOL_CALLS] [ARGS]") is FORMATS["mistral-named"]
    assert detect("tools <｜tool▁calls▁begin｜>") is FORMATS["deepseek-v3.1"]
