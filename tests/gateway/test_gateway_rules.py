"""Pure decisions: routing, sampling, keys."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from janus_gateway.auth import ApiKeys
from janus_gateway.model import Defaults
from janus_gateway.routing import Candidate, choose
from janus_gateway.sampling import Ask, Names, check, resolve
from janus_runtime.errors import InvalidArgument, Unauthenticated

# -- routing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_choose_takes_a_least_loaded_usable_one(seed: int) -> None:
    draw = random.Random(seed)
    for turn in range(100):
        candidates = [
            Candidate(
                member=i,
                in_flight=draw.randint(0, 3),
                reported=draw.randint(0, 4),
                reported_own=draw.randint(0, 2),
                usable=draw.random() < 0.7,
                retry_at=draw.choice([0.0, 10.0]),
            )
            for i in range(draw.randint(0, 6))
        ]
        chosen = choose(candidates, 5.0, turn)
        callable_now = [c for c in candidates if c.retry_at <= 5.0]
        if not callable_now:
            assert chosen is None
            continue
        assert chosen in callable_now
        rivals = [c for c in callable_now if c.usable] or callable_now
        assert chosen.load == min(c.in_flight + max(0, c.reported - c.reported_own) for c in rivals)
        assert chosen.usable or not any(c.usable for c in callable_now)


def test_equals_take_turns() -> None:
    candidates = [Candidate(member=i, in_flight=0) for i in range(3)]
    assert [choose(candidates, 0.0, turn).member for turn in range(6)] == [0, 1, 2, 0, 1, 2]  # type: ignore[union-attr]


def test_own_sequences_are_not_counted_twice() -> None:
    mine = Candidate(member=1, in_flight=4, reported=4, reported_own=4)
    others = Candidate(member=2, in_flight=0, reported=5, reported_own=0)
    assert (mine.load, others.load) == (4, 5)


# -- sampling -----------------------------------------------------------------------------------------

NAN = math.nan
BAD: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 101.0}, "temperature"),
    ({"temperature": NAN}, "temperature"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": NAN}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 2**31}, "top_k"),
    ({"min_p": -0.1}, "min_p"),
    ({"min_p": 1.5}, "min_p"),
    ({"logprobs": 21}, "logprobs"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"repetition_penalty": NAN}, "repetition_penalty"),
    ({"frequency_penalty": 2.1}, "frequency_penalty"),
    ({"presence_penalty": -2.1}, "presence_penalty"),
    ({"logit_bias": {512: 0.0}}, "logit_bias"),
    ({"logit_bias": {-1: 0.0}}, "logit_bias"),
    ({"logit_bias": {3: NAN}}, "logit_bias[3]"),
    ({"logit_bias": {3: 100.1}}, "logit_bias[3]"),
    ({"logit_bias": dict.fromkeys(range(1025), 0.0)}, "logit_bias"),
    ({"logprobs": -1}, "logprobs"),
    ({"stop": ("x",) * 17}, "stop"),
    ({"stop": ("",)}, "stop"),
    ({"stop": ("x" * 1025,)}, "stop"),
    ({"stop_token_ids": (512,)}, "stop_token_ids"),
    ({"stop_token_ids": (-1,)}, "stop_token_ids"),
    ({"stop_token_ids": (1,) * 65}, "stop_token_ids"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 91}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
]


@pytest.mark.parametrize(("fields", "name"), BAD)
def test_out_of_range_names_field_value_and_range(fields: dict[str, Any], name: str) -> None:
    ask = Ask(**fields)
    with pytest.raises(InvalidArgument) as caught:
        check(ask, Names(prefix="sampling."), 512)
        resolve(ask, Names(prefix="sampling."), Defaults(), prompt_tokens=10, context=100)
    assert caught.value.field == f"sampling.{name}"
    assert caught.value.value is not None
    assert caught.value.allowed


def test_every_edge_is_allowed() -> None:
    for fields in (
        {"temperature": 0.0}, {"temperature": 100.0}, {"top_p": 1e-300}, {"top_p": 1.0}, {"top_k": -1},
        {"top_k": 0}, {"min_p": 0.0}, {"min_p": 1.0}, {"logprobs": 0}, {"logprobs": 20}, {"max_tokens": 1},
        {"max_tokens": 90}, {"min_tokens": 90}, {"stop": ("x" * 1024,) * 16}, {"stop_token_ids": (0, 511)},
    ):  # fmt: skip
        ask = Ask(**fields)  # type: ignore[arg-type]
        check(ask, Names(), 512)
        params = resolve(ask, Names(), Defaults(), prompt_tokens=10, context=100)
        # The worker refuses what a float32 makes of a tiny top_p; see its validation.
        assert 1e-9 <= params.top_p <= 1.0
        assert params.top_k >= 0


def test_defaults_of_the_model_then_of_the_protocol() -> None:
    defaults = Defaults(temperature=0.6, top_k=20, top_p=0.95, min_p=0.1, max_tokens=50)
    params = resolve(Ask(), Names(), defaults, prompt_tokens=10, context=100)
    assert params.temperature == pytest.approx(0.6)
    assert (params.top_k, params.max_tokens) == (20, 50)
    assert (params.top_p, params.min_p) == (pytest.approx(0.95), pytest.approx(0.1))
    params = resolve(Ask(temperature=0.0, max_tokens=3), Names(), defaults, prompt_tokens=10, context=100)
    assert (params.temperature, params.max_tokens) == (0.0, 3)
    params = resolve(Ask(), Names(), Defaults(), prompt_tokens=10, context=100)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (1.0, 1.0, 0, 0.0)
    assert params.max_tokens == 90
    params = resolve(Ask(), Names(), Defaults(), prompt_tokens=10, context=100, default_max_tokens=16)
    assert params.max_tokens == 16
    assert resolve(Ask(), Names(), defaults, prompt_tokens=80, context=100).max_tokens == 20


def test_the_seed_is_fixed_once_and_never_lost() -> None:
    first, second = (resolve(Ask(), Names(), Defaults(), prompt_tokens=1, context=9) for _ in range(2))
    assert first.HasField("seed")
    assert first.seed != second.seed
    assert resolve(Ask(seed=-1), Names(), Defaults(), prompt_tokens=1, context=9).seed == 2**64 - 1
    assert resolve(Ask(seed=0), Names(), Defaults(), prompt_tokens=1, context=9).seed == 0


@pytest.mark.parametrize("prompt", [0, 100, 101, 10**6])
def test_a_prompt_must_leave_room(prompt: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        resolve(Ask(), Names(prompt="messages"), Defaults(), prompt_tokens=prompt, context=100)
    assert caught.value.field == "messages"
    assert caught.value.reason == ("CONTEXT_LENGTH_EXCEEDED" if prompt else "EMPTY_PROMPT")


def test_generation_config_is_read_and_nonsense_in_it_left_out(tmp_path: Path) -> None:
    assert Defaults.read(tmp_path) == Defaults()
    path = tmp_path / "generation_config.json"
    path.write_text(
        json.dumps({"temperature": 0.7, "top_k": 50, "top_p": 0.8, "max_new_tokens": 64, "min_p": 0})
    )
    assert Defaults.read(tmp_path) == Defaults(temperature=0.7, top_k=50, top_p=0.8, max_tokens=64, min_p=0.0)
    path.write_text(json.dumps({"repetition_penalty": 1.05}))
    assert Defaults.read(tmp_path).repetition_penalty == 1.05
    path.write_text(json.dumps({"temperature": "hot", "top_k": -5, "top_p": 0, "max_new_tokens": True}))
    assert Defaults.read(tmp_path) == Defaults()


# -- keys ---------------------------------------------------------------------------------------------


def test_keys() -> None:
    keys = ApiKeys(["one", "two"])
    for good in ("Bearer one", "bearer two", "Bearer  two "):
        keys.check(good)
    for bad in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "one",
        "Basic one",
        "Bearer three",
        "Bearer on",
        "Bearer \udce9",
    ):
        with pytest.raises(Unauthenticated):
            keys.check(bad)
    ApiKeys([]).check(None)
    assert not ApiKeys([]).required
