from __future__ import annotations

import random

import pytest
from gateway_fakes import EOS, write_model
from janus_gateway.answer import Answer, Piece
from janus_gateway.stops import StopScanner
from janus_models.tokenizer import Tokenizer
from janus_wire.v1 import common_pb2

STOP, LENGTH = common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The slow obvious way: the shortest beginning of the text that ends in a stop string."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@pytest.mark.parametrize("seed", range(40))
def test_scanner_against_the_reference(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(200):
        stops = ["".join(draw.choices("ab", k=draw.randint(1, 4))) for _ in range(draw.randint(0, 3))]
        text = "".join(draw.choices("abc", weights=(4, 4, 1), k=draw.randint(0, 20)))
        scanner, given, met, at = StopScanner(stops), "", None, 0
        while at < len(text) and met is None:
            size = draw.randint(1, 4)
            out, met = scanner.push(text[at : at + size])
            given += out
            at += size
            expected, _ = reference(text, stops)
            assert expected.startswith(given), "a part of a stop string was given out"
        if met is None:
            given += scanner.flush()
        assert (given, met) == reference(text, stops), (stops, text)


def test_scanner_holds_back_no_more_than_it_must() -> None:
    scanner = StopScanner(["END"])
    assert scanner.push("abc") == ("abc", None)
    assert scanner.push("abE") == ("ab", None)
    assert scanner.held == 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_model(tmp_path_factory.mktemp("stops") / "tiny"))


def run(
    tokenizer: Tokenizer, ids: list[int], stops: list[str], last: int, min_tokens: int = 0
) -> list[Piece]:
    answer = Answer(tokenizer.stream, stops, min_tokens)
    pieces = []
    for index, token in enumerate(ids):
        pieces.append(answer.push(token, None, last if index == len(ids) - 1 else 0))
        if pieces[-1].finish_reason:
            break
    return pieces


@pytest.mark.parametrize("text", ["plain words, nothing else", "naïve 東京 🙂🙂 end", "", "a\nb\n\nc"])
@pytest.mark.parametrize("last", [STOP, LENGTH])
def test_without_stop_strings_all_text_comes_out(tokenizer: Tokenizer, text: str, last: int) -> None:
    ids = tokenizer.encode(text, add_special=False)
    ids += [EOS] if last == STOP or not ids else []
    pieces = run(tokenizer, ids, [], last)
    assert "".join(p.text for p in pieces) == text
    assert [t.id for p in pieces for t in p.tokens] == ids
    assert pieces[-1].finish_reason == last
    hidden = [t.id for p in pieces for t in p.tokens if t.hidden]
    assert hidden == ([EOS] if last == STOP else [])
    assert "\ufffd" not in "".join(p.text for p in pieces)


@pytest.mark.parametrize("seed", range(20))
def test_stop_strings_across_token_borders(tokenizer: Tokenizer, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(50):
        text = "".join(draw.choices(["the ", "st", "op", "é", "🙂", "\n", "here"], k=draw.randint(1, 12)))
        whole = "".join(draw.choices(["stop", "the st", "🙂", "\nhere", "zzz"], k=1))
        ids = [*tokenizer.encode(text, add_special=False), EOS]
        expected, met = reference(text, [whole])
        pieces = run(tokenizer, ids, [whole], STOP)
        given = ""
        for piece in pieces:
            given += piece.text
            assert expected.startswith(given)
        assert given == expected
        assert pieces[-1].stop_sequence == (met or "")
        tokens = [t for p in pieces for t in p.tokens]
        assert [t.id for t in tokens] == ids[: len(tokens)], "every token exactly once, in order"
        shown = [t for t in tokens if not t.hidden]
        assert all(t.start <= len(given) for t in shown)


def test_min_tokens_comes_before_stop_strings(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("stop stop stop", add_special=False)
    first = len(tokenizer.encode("stop", add_special=False))
    pieces = run(tokenizer, [*ids, EOS], ["stop"], STOP, min_tokens=first)
    assert "".join(p.text for p in pieces) == "stop "


def test_a_token_is_given_out_with_its_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("E", add_special=False) + tokenizer.encode("N", add_special=False)
    ids += tokenizer.encode("x", add_special=False)
    pieces = run(tokenizer, [*ids, EOS], ["END"], STOP)
    assert [(p.text, [t.id for t in p.tokens]) for p in pieces] == [
        ("", []),
        ("", []),
        ("ENx", ids),
        ("", [EOS]),
    ]


def test_tokens_of_the_stop_string_are_hidden(tokenizer: Tokenizer) -> None:
    ids = [i for c in "abEND" for i in tokenizer.encode(c, add_special=False)]
    pieces = run(tokenizer, [*ids, EOS], ["END"], STOP)
    tokens = [t for p in pieces for t in p.tokens]
    assert [t.hidden for t in tokens] == [False, False, True, True, True]
    assert pieces[-1].finish_reason == STOP
