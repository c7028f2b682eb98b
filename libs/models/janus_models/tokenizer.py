"""Text to token ids and back, for one checkpoint. Torch-free: the ``tokenizers`` library and jinja2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from janus_models._fields import Fields, read_json
from janus_models.chat import ChatTemplate, load_template
from janus_models.detokenizer import IncrementalDetokenizer
from janus_models.errors import ChatTemplateError, TokenizerError
from janus_models.generation import read_end_ids

__all__ = ["IncrementalDetokenizer", "Tokenizer"]


class Tokenizer:
    """``tokenizer.json``, and what tokenizer_config.json, generation_config.json and the template add to it.

    Raises TokenizerError, naming the file, when ``tokenizer.json`` is absent or unusable; the other
    files are optional. Safe to use from several threads.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        path = self.directory / "tokenizer.json"
        if not path.is_file():
            raise TokenizerError(
                f"{path} does not exist: the tokenizer is absent",
                reason="TOKENIZER_MISSING",
                next_step="Put the model's tokenizer.json into its directory (a SentencePiece "
                "tokenizer.model alone is not read; transformers' save_pretrained converts it)",
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as cause:  # the library raises bare Exception for every malformed file
            raise TokenizerError(
                f"{path} cannot be loaded: {cause}",
                reason="TOKENIZER_INVALID",
                next_step="Fetch the file again",
            ) from cause
        # Files may carry the truncation and padding of their training; serving wants neither.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._config = self._optional("tokenizer_config.json")

    @property
    def vocab_size(self) -> int:
        """Number of token ids, added tokens included: one past the largest id."""
        return self._vocab_size

    @cached_property
    def _vocab_size(self) -> int:
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def bos_id(self) -> int | None:
        """Beginning-of-sequence id, None when the model has none."""
        token = self._special("bos_token")
        return None if token is None else self._tokenizer.token_to_id(token)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end an answer: generation_config.json's, else config.json's, else the eos_token."""
        ids = read_end_ids(self.directory) or self._optional("config.json").ids("eos_token_id")
        token = self._special("eos_token")
        number = None if token is None else self._tokenizer.token_to_id(token)
        return frozenset(ids) or frozenset(() if number is None else (number,))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of special tokens: never part of decoded text."""
        added = self._tokenizer.get_added_tokens_decoder()
        return frozenset(number for number, token in added.items() if token.special)

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of ``text``; ``add_special`` adds what its post-processor adds (often a BOS).

        As in transformers, add_bos_token in tokenizer_config.json has no say where there is a tokenizer.json.
        """
        return list(self._tokenizer.encode(text, add_special_tokens=add_special).ids)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ``ids``. Bytes that are no complete character become U+FFFD, as everywhere."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def token_text(self, token_id: int) -> str:
        """A token as the vocabulary spells it ('' for an unknown id); for logprobs and displays."""
        return self._tokenizer.id_to_token(token_id) or ""

    def stream(self, skip_special: bool = True) -> IncrementalDetokenizer:
        """A detokenizer for one answer."""
        return IncrementalDetokenizer(self._tokenizer, skip_special=skip_special)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The model's template, None when it has none. Raises TokenizerError when it does not compile."""
        return load_template(self.directory, self._config)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str:
        """The prompt text of a conversation. Raises ChatTemplateError with the template's own words."""
        if self.chat_template is None:
            raise ChatTemplateError(
                f"{self.directory} has no chat template",
                field="messages",
                reason="NO_CHAT_TEMPLATE",
                next_step="Use plain completion with this model, or add chat_template.jinja to its directory",
            )
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        special = {name: token for name in names if (token := self._special(name)) is not None}
        return self.chat_template.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, **{**special, **variables}
        )

    def apply_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Token ids of a conversation, ready to be continued by the assistant.

        The template writes the special tokens itself, so none is added to its text.
        """
        text = self.render_chat(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables
        )
        return self.encode(text, add_special=False)

    def _optional(self, name: str) -> Fields:
        path = self.directory / name
        return Fields(read_json(path, TokenizerError) if path.is_file() else {}, str(path), TokenizerError)

    def _special(self, name: str) -> str | None:
        value = self._config.get(name)
        if isinstance(value, Mapping):  # older files write an AddedToken object
            value = value.get("content")
        return value if isinstance(value, str) else None
