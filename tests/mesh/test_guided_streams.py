"""Guided streams on a mesh: they obey, end, resume anywhere, and refuse what cannot be followed; others go on."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from janus_models.tokenizer import Tokenizer
from janus_testing.inprocess import InProcessMesh

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer"},
        "b": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 4},
    },
    "required": ["a", "b"],
    "additionalProperties": False,
}
SPECS: list[dict[str, Any]] = [
    {"kind": "json_schema", "text": json.dumps(SCHEMA)},
    {"kind": "regex", "text": r"[A-F]{4}-[0-9]{2,6}"},
    {"kind": "choice", "texts": ["alpha", "alphabet", "beta"]},
    {"kind": "grammar", "text": 'start: "(" start ")" | /[uvw]{2}/'},
]


def obeys(spec: dict[str, Any], text: str) -> bool:
    if spec["kind"] == "json_schema":
        value = json.loads(text)
        return set(value) == {"a", "b"} and type(value["a"]) is int and set(value["b"]) <= {"x", "y"}
    if spec["kind"] == "choice":
        return text in spec["texts"]
    return re.fullmatch(spec["text"] if spec["kind"] == "regex" else r"\(*[uvw]{2}\)*", text) is not None


def options(number: int) -> dict[str, Any]:
    ends = [2] if number % 2 else []  # with and without ignore_eos
    return {
        "seed": number,
        "temperature": 1.0,
        "stop_token_ids": ends,
        "max_tokens": 300,
        "min_tokens": number,
    }


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
def test_texts_obey_and_go_on_elsewhere_token_for_token(mixtral: Path, shape: tuple[int, int]) -> None:
    draw = random.Random(shape[1])
    asked = [([draw.randrange(3, 500) for _ in range(9)], SPECS[i % 4], options(i)) for i in range(8)]
    free = {"seed": 9, "temperature": 1.0, "max_tokens": 20}
    tokenizer = Tokenizer(mixtral)
    with InProcessMesh(mixtral, attention=shape[0], experts=shape[1]) as mesh:
        alone = mesh.answer(mesh.submit([7, 8], **free)).tokens
        numbers = [mesh.submit(p, worker=i % shape[0], guide=g, **o) for i, (p, g, o) in enumerate(asked)]
        beside = mesh.submit([7, 8], **free)
        answers = [mesh.answer(number) for number in numbers]
        assert mesh.answer(beside).tokens == alone, "an unguided neighbour notices nothing"
        for (prompt, spec, more), answer in zip(asked, answers, strict=True):
            if answer.finish == "length":  # a grammar may go on for ever
                assert len(answer.tokens) == 300
                continue
            assert answer.finish == "stop"
            assert obeys(spec, tokenizer.decode(answer.tokens)), spec
            cut = draw.randint(0, len(answer.tokens))
            number = mesh.submit(prompt, worker=shape[0] - 1, guide=spec, resumed=answer.tokens[:cut], **more)
            again = mesh.answer(number)
            assert (answer.tokens[:cut] + again.tokens, again.finish) == (answer.tokens, "stop")
    assert sum(answer.finish == "stop" for answer in answers) >= 5


def test_a_guide_ends_with_stop_even_at_the_limit(mixtral: Path) -> None:
    spec = {"kind": "regex", "text": "[a-c]"}
    with InProcessMesh(mixtral) as mesh:
        answer = mesh.answer(mesh.submit([5], guide=spec, max_tokens=1))
        assert (len(answer.tokens), answer.finish) == (1, "stop")


def test_what_cannot_be_followed_fails_alone(mixtral: Path) -> None:
    bad = [
        ({"kind": "regex", "text": "("}, []),
        ({"kind": "json_schema", "text": '{"type": "integer", "minimum": 2, "maximum": 1}'}, []),
        ({"kind": "regex", "text": "[a-c]{4}"}, [9, 9]),
    ]
    with InProcessMesh(mixtral, attention=2, experts=2) as mesh:
        good = mesh.submit([5, 6], max_tokens=30)
        numbers = [mesh.submit([5], worker=i % 2, guide=g, resumed=r) for i, (g, r) in enumerate(bad)]
        for number in numbers:
            answer = mesh.answer(number)
            assert (answer.finish, answer.tokens) == ("error", [])
            assert answer.error
        assert len(mesh.answer(good).tokens) == 30


def test_cancelled_while_it_is_compiled(mixtral: Path) -> None:
    with InProcessMesh(mixtral) as mesh:
        for wait in (False, True):
            number = mesh.submit([5], guide={"kind": "json_object", "text": ""}, max_tokens=2000)
            if wait:
                mesh.pump(lambda number=number: len(mesh.peek(number).tokens) > 2, "tokens")
            mesh.cancel(number)
            assert mesh.answer(number).finish == "cancelled"
        assert mesh.generate([[5, 6]], max_tokens=3)[0].finish == "length"
