from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from janus_models.errors import TokenizerError
from janus_models.tokenizer import Tokenizer
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, processors


@pytest.fixture(scope="module")
def tokenizer(tiny: Callable[..., Path]) -> Tokenizer:
    return Tokenizer(tiny())


@pytest.fixture
def copy(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A writable copy of the tiny model's directory, without its weights."""
    return Path(shutil.copytree(tiny(), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@given(text=st.text())
@settings(deadline=None)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


def test_agrees_with_transformers(tiny: Callable[..., Path], tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tiny())
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße 🙂\n\n 12"}]
    assert tokenizer.apply_chat(messages) == reference.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    text = "a b  c\n\n12 <|im_end|>x"
    assert tokenizer.encode(text) == reference(text).input_ids
    assert tokenizer.vocab_size == len(reference) == 512
    assert tokenizer.eos_ids == {0, 2} and tokenizer.bos_id == 0


def test_absent_and_malformed(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be loaded"):
        Tokenizer(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="the tokenizer is absent") as caught:
        Tokenizer(copy)
    assert caught.value.next_step and caught.value.reason == "TOKENIZER_MISSING"


def test_end_ids_fall_back(copy: Path) -> None:
    edit(copy / "generation_config.json", eos_token_id=5)
    assert Tokenizer(copy).eos_ids == {5}
    (copy / "generation_config.json").unlink()
    assert Tokenizer(copy).eos_ids == {2}
    edit(copy / "config.json", eos_token_id=None)
    edit(copy / "tokenizer_config.json", eos_token={"content": "<|endoftext|>"})
    assert Tokenizer(copy).eos_ids == {0}


def test_special_tokens_are_tokenizer_jsons(copy: Path) -> None:
    from transformers import AutoTokenizer

    rust = RustTokenizer.from_file(str(copy / "tokenizer.json"))
    rust.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    rust.enable_truncation(3)
    rust.save(str(copy / "tokenizer.json"))
    edit(copy / "tokenizer_config.json", add_bos_token=False, add_eos_token=True)
    tokenizer, reference = Tokenizer(copy), AutoTokenizer.from_pretrained(copy)
    text = "hello there, everybody"
    assert tokenizer.encode(text) == [0, *tokenizer.encode(text, add_special=False)]
    assert tokenizer.encode(text) == reference(text).input_ids and len(tokenizer.encode(text)) > 3


def stream(tokenizer: Tokenizer, ids: list[int], step: int) -> list[str]:
    detokenizer = tokenizer.stream()
    pieces = [detokenizer.push(ids[i : i + step]) for i in range(0, len(ids), step)]
    return [*pieces, detokenizer.flush()]


@given(text=st.text(max_size=60), step=st.integers(1, 7))
@settings(deadline=None)
def test_stream_of_text_never_splits_a_character(tokenizer: Tokenizer, text: str, step: int) -> None:
    text = text.replace("\ufffd", "?").replace("<|", "<").encode("utf-8", "replace").decode()
    pieces = stream(tokenizer, tokenizer.encode(text), step)
    assert "".join(pieces) == text and not any("\ufffd" in piece for piece in pieces)


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_stream_of_any_ids_is_their_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Also for ids that are no text at all: what is streamed is decode(), save an unfinished end."""
    single_bytes = st.sampled_from([i for i in range(3, 512) if len(tokenizer.token_text(i)) == 1])
    ids = data.draw(st.lists(st.one_of(single_bytes, st.integers(0, 511)), max_size=100))
    text = tokenizer.decode(ids)
    streamed = "".join(stream(tokenizer, ids, data.draw(st.integers(1, 5))))
    assert (
        text.startswith(streamed)
        and set(text[len(streamed) :]) <= {"\ufffd"}
        and len(text) - len(streamed) <= 3
    )


def test_emoji_arrives_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é🙃")
    detokenizer = tokenizer.stream()
    pieces = [detokenizer.push([i]) for i in ids]
    assert len(ids) > 2 and "".join(pieces) == "é🙃" and "🙃" in pieces
    detokenizer.push(ids[:-1])
    assert detokenizer.flush() == "", "an unfinished character is dropped, not shown broken"


def test_sentencepiece_style_spaces(tmp_path: Path) -> None:
    """Metaspace drops the first token's blank and byte tokens join: neighbours matter."""
    tokens = ["<s>", "▁Hello", "▁world", "!", *(f"<0x{i:02X}>" for i in range(256))]
    rust = RustTokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], byte_fallback=True)
    )
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    rust.add_special_tokens(["<s>"])
    rust.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    ids = [0, 1, 0, 2, *(4 + byte for byte in "你🙂".encode()), 3, 2]
    assert stream(tokenizer, ids, 1) == [
        "",
        "Hello",
        "",
        " world",
        "",
        "",
        "你",
        "",
        "",
        "",
        "🙂",
        "!",
        " world",
        "",
    ]
