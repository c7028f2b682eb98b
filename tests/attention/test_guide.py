"""Guides against slow, obvious judges: Python's re and json on every text that a token could make."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_attention.guide import Guide, GuideError, compile_guide, load_tokenizer
from janus_attention.guide_compiler import GuideCompiler
from janus_attention.sampler import BadLogits, choose
from janus_attention.sequence import Sampling, Sequence
from janus_models.tiny import write_tokenizer
from janus_models.tokenizer import Tokenizer

VOCAB, EOS = 512, 2
JSON_OBJECT = {"kind": "json_object", "text": ""}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("guide")
    write_tokenizer(found)
    return found


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Any:
    return load_tokenizer(directory, VOCAB, [EOS])


@pytest.fixture(scope="module")
def text_of(directory: Path) -> dict[int, bytes]:
    """Each token's bytes; special ones are absent."""
    names = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    from janus_gateway.model import _BYTE_OF

    special = Tokenizer(directory).special_ids
    return {i: bytes(_BYTE_OF[c] for c in name) for name, i in names.items() if i not in special}


def guide(spec: dict[str, Any], tokenizer: Any) -> Guide:
    return Guide(compile_guide(spec, tokenizer).deep_copy())


def allowed(found: Guide) -> set[int]:
    bits = found.allowed()
    return {v for v in range(VOCAB) if v // 8 < len(bits) and bits[v // 8] >> v % 8 & 1}


def walk(found: Guide, draw: random.Random, most: int = 40) -> Iterator[tuple[set[int], int | None]]:
    """(allowed tokens, the one drawn of them) until the end; shorter tokens are a little likelier."""
    for _ in range(most):
        if found.ended:
            return
        tokens = allowed(found)
        token = draw.choice(sorted(tokens))
        yield tokens, token
        if token == EOS:
            return
        found.accept([token])


# A pattern, and the same with every part optional in order: what a beginning of a match looks like.
PATTERNS = [
    (r"[0-9]{3}-[0-9]{2}", r"([0-9]{0,3}|[0-9]{3}-[0-9]{0,2})"),
    (r"(yes|no|maybe)", r"(|y|ye|yes|n|no|m|ma|may|mayb|maybe)"),
    (r"a+b?c", r"(|a+|a+b|a+b?c)"),
    (r"\w{1,4}", r"\w{0,4}"),
]


@pytest.mark.parametrize(("pattern", "beginning"), PATTERNS)
@pytest.mark.parametrize("seed", range(3))
def test_a_regex_allows_exactly_the_tokens_that_keep_a_match_possible(
    pattern: str, beginning: str, seed: int, tokenizer: Any, text_of: dict[int, bytes]
) -> None:
    so_far = b""
    for tokens, token in walk(guide({"kind": "regex", "text": pattern}, tokenizer), random.Random(seed)):
        possible, judged = set(), set()
        for candidate, more in text_of.items():
            try:
                text = (so_far + more).decode()
            except UnicodeDecodeError:
                continue  # half a character: \w allows the beginnings of letters, re cannot judge them
            judged.add(candidate)
            if re.fullmatch(beginning, text):
                possible.add(candidate)
        if (tokens & judged) != possible:
            # Where only one text can follow, llguidance allows the tokens in which the model would write it.
            assert len(tokens) == 1 and tokens < possible, (so_far, tokens, possible)
            longest = max((text_of[t] for t in possible), key=len)
            assert all(longest.startswith(text_of[t]) for t in possible)
        try:
            whole = re.fullmatch(pattern, so_far.decode())
        except UnicodeDecodeError:
            whole = None
        assert (EOS in tokens) == bool(whole)
        assert token is not None
        so_far += text_of.get(token, b"")


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


def obeys(value: Any) -> bool:
    """SCHEMA, by hand."""
    return (
        isinstance(value, dict)
        and set(value) <= set(SCHEMA["properties"])  # type: ignore[call-overload]
        and isinstance(value.get("name"), str)
        and len(value["name"]) <= 5
        and type(value.get("age")) is int
        and 0 <= value["age"] <= 120
        and (
            "tags" not in value
            or (
                isinstance(value["tags"], list)
                and len(value["tags"]) <= 3
                and set(value["tags"]) <= {"a", "b"}
            )
        )
        and type(value.get("ok", True)) is bool
    )


@pytest.mark.parametrize("seed", range(15))
def test_random_tokens_within_a_schema_make_an_object_of_it(
    seed: int, tokenizer: Any, text_of: dict[int, bytes]
) -> None:
    """Logits of noise, chosen as the engine chooses: whatever the model wants, the text obeys."""
    noise = torch.Generator().manual_seed(seed)
    spec = {"kind": "json_schema", "text": json.dumps(SCHEMA)}
    seq = Sequence(
        id=1, prompt=1, tokens=[5], guide=guide(spec, tokenizer),
        sampling=Sampling(seed=seed, temperature=1.0, min_tokens=5, stop_token_ids=frozenset({EOS})),
    )  # fmt: skip
    assert seq.guide is not None
    while not seq.guide.ended and len(seq.tokens) < 600:
        token = choose(seq, torch.randn(VOCAB, generator=noise)).token
        seq.guide.accept([token])
        seq.tokens.append(token)
    assert seq.guide.ended
    text = b"".join(text_of.get(t, b"") for t in seq.tokens[1:]).decode()
    assert obeys(json.loads(text)), text


@pytest.mark.parametrize("seed", range(5))
def test_blanks_between_the_parts_of_json_have_an_end(
    seed: int, tokenizer: Any, text_of: dict[int, bytes]
) -> None:
    found = guide(JSON_OBJECT, tokenizer)
    blanks = 0
    for _ in range(100):
        tokens = [t for t in allowed(found) if text_of.get(t, b"x").isspace()]
        if not tokens:
            break
        token = random.Random(seed).choice(tokens)
        found.accept([token])
        blanks += len(text_of[token])
    assert blanks <= 40


@pytest.mark.parametrize("seed", range(5))
def test_a_state_is_a_function_of_the_tokens(seed: int, tokenizer: Any) -> None:
    """What a stream has when it goes on at another worker is what it had here."""
    matcher = compile_guide({"kind": "json_schema", "text": json.dumps(SCHEMA)}, tokenizer)
    seen: list[int] = []
    for tokens, token in walk(Guide(matcher.deep_copy()), random.Random(seed), most=25):
        resumed = Guide(matcher.deep_copy())
        resumed.accept(seen)
        assert allowed(resumed) == tokens
        seen.append(token)  # type: ignore[arg-type]


def test_choices_and_grammars(tokenizer: Any, text_of: dict[int, bytes], directory: Path) -> None:
    texts = ['say "hi"', "a\\b\n", "naïve 😀", "a", "ab"]
    encode = Tokenizer(directory).encode
    for text in texts:
        found = guide({"kind": "choice", "texts": texts}, tokenizer)
        found.accept(encode(text, add_special=False))
        assert found.ended or EOS in allowed(found)
    with pytest.raises(GuideError, match="grammar"):
        guide({"kind": "choice", "texts": texts}, tokenizer).accept(encode("ac", add_special=False))
    found = guide({"kind": "grammar", "text": 'start: "(" start ")" | "x"'}, tokenizer)
    found.accept(encode("((x)", add_special=False))
    assert not found.ended
    assert EOS not in allowed(found)
    found.accept(encode(")", add_special=False))
    assert found.ended


BAD: list[tuple[str, str, str]] = [
    ("json_schema", "{", "line 1"),
    ("json_schema", "", "EOF"),
    ("json_schema", "[1]", "object"),
    ("json_schema", '{"type": "nonsense"}', "nonsense"),
    ("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}', "greater than"),
    ("json_schema", "false", "object"),
    ("json_schema", '{"properties": {"a": false}, "required": ["a"], "type": "object"}', "nsatisfiable"),
    ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    ("json_schema", '{"$ref": "https://example.com/s.json"}', "retriev"),
    ("json_schema", '{"items":' * 20_000 + "{}" + "}" * 20_000, "recursion"),
    ("regex", "[a-z", "unclosed"),
    ("regex", r"[^\s\S]", "no text"),
    ("regex", "(" * 20_000 + "a" + ")" * 20_000, "invalid regex"),
    ("regex", "(?=a)b", "look-around"),
    ("grammar", "start: nowhere", "unknown name"),
    ("grammar", "begin: 'a'", ""),
    ("grammar", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000, "nested"),
]


@pytest.mark.parametrize(("kind", "text", "reason"), BAD, ids=lambda v: v[:20])
def test_guides_that_cannot_be_followed_say_why(kind: str, text: str, reason: str, tokenizer: Any) -> None:
    started = time.monotonic()
    with pytest.raises(GuideError) as caught:
        guide({"kind": kind, "text": text}, tokenizer)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400
    assert time.monotonic() - started < 5


HOSTILE: list[dict[str, Any]] = [
    {"kind": "grammar", "text": 'start: start start | "a" | ""'},
    {"kind": "grammar", "text": 'start: "abc def " start'},
    {"kind": "regex", "text": "(.*a.{50}b.*){20}"},
    {"kind": "regex", "text": "([a-z]{0,200}[0-9]{0,200}){0,200}"},
    {"kind": "regex", "text": ".*a.{0,300}b"},
]


@pytest.mark.parametrize("spec", HOSTILE, ids=lambda s: s["text"][:20])
def test_a_hostile_guide_cannot_hold_the_step(spec: dict[str, Any], tokenizer: Any) -> None:
    """It works, or fails its own request; no token of it takes long. (The bound is wide: machines are shared.)"""
    draw, slowest = random.Random(1), 0.0
    try:
        found = guide(spec, tokenizer)
        for _ in range(150):
            started = time.thread_time()
            tokens = allowed(found) - {EOS}
            if not tokens:
                break
            found.accept([draw.choice(sorted(tokens))])
            slowest = max(slowest, time.thread_time() - started)
            if found.ended:
                break
    except GuideError as error:
        assert str(error)
    assert slowest < 0.5


def test_a_guide_that_leaves_no_likely_token_fails_its_request(tokenizer: Any) -> None:
    logits = torch.zeros(VOCAB)
    seq = Sequence(id=1, prompt=1, tokens=[5], sampling=Sampling(temperature=0.0))
    seq.guide = guide({"kind": "regex", "text": "[xyz]+"}, tokenizer)
    logits[sorted(allowed(seq.guide))] = float("-inf")
    with pytest.raises(BadLogits, match="guide"):
        choose(seq, logits)


def test_the_compiler_works_beside_its_caller_and_wakes_it(directory: Path) -> None:
    import select

    compiler = GuideCompiler(directory, VOCAB, [EOS])
    good = {"kind": "regex", "text": "[ab]{3}"}
    tokens = Tokenizer(directory).encode("aa", add_special=False)
    specs = [(good, []), ({"kind": "regex", "text": "("}, []), (good, tokens), (good, [9, 9, 9])]
    for number, (spec, resumed) in enumerate(specs):
        compiler.submit(number, spec, resumed)
    found: dict[int, Any] = {}
    while len(found) < len(specs):
        assert select.select([compiler.wake_fd], [], [], 10)[0], "nothing became ready"
        found |= dict(compiler.ready())
    assert not select.select([compiler.wake_fd], [], [], 0)[0]
    assert [isinstance(found[n], Guide) for n in range(4)] == [True, False, True, False]
    assert allowed(found[0]) > allowed(found[2])  # pairs of letters are no longer possible


def test_without_a_tokenizer_each_request_hears_it(tmp_path: Path) -> None:
    compiler = GuideCompiler(tmp_path, VOCAB, [EOS])
    compiler.prepare()
    compiler.submit(1, JSON_OBJECT, [])
    while not (found := dict(compiler.ready())):
        time.sleep(0.01)
    assert "tokenizer.json" in str(found[1])
