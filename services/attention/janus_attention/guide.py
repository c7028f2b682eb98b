"""Guided output: which tokens may come next, so that the text stays within a schema, a regex or a grammar.

The automata are llguidance's (https://github.com/guidance-ai/llguidance, MIT). It is imported where it is first
needed: a worker without guided requests pays nothing for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

FIELD = "sampling.guide"
_BLANKS = {"whitespace_pattern": r"[ \n\r\t]{0,40}"}
"""Between JSON's parts. Unbounded, a model can go on with blanks until its tokens are spent."""
_SHOWN = 300


class GuideError(Exception):
    """The guide cannot be used, or its state grew beyond its bounds: this request fails, the others go on."""


class Guide:
    """The state of one stream in its guide: a function of the tokens accepted so far, on any worker."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def ended(self) -> bool:
        """Whether the text is complete and nothing can follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> bytes:
        """Bit v: whether token v may come next (lowest bit of a byte first); an end token where the text may end."""
        bits = self._matcher.compute_bitmask()
        self._check()
        return bits

    def accept(self, tokens: Iterable[int]) -> None:
        """Go on by tokens. GuideError when they leave the guide."""
        self._matcher.consume_tokens(list(tokens))
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GuideError(_short(self._matcher.get_error()))


def load_tokenizer(directory: str | Path, vocab_size: int, end_ids: Sequence[int]) -> LLTokenizer:
    """Of a checkpoint directory; takes about a second for 100k tokens, holding the interpreter's lock."""
    from llguidance import LLTokenizer

    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise GuideError(f"guided output needs {path}, which this worker does not have")
    try:
        return LLTokenizer(str(path), n_vocab=vocab_size, eos_token=list(end_ids) or None)
    except ValueError as error:
        raise GuideError(f"{path} cannot be used for guided output: {_short(str(error))}") from error


def compile_guide(spec: dict[str, Any], tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at the start of a guide; copies of it are cheap.

    ``spec``: ``kind``, and its ``text`` or ``texts`` (see janus.v1.Guide). Raises GuideError when it is malformed,
    uses what is not supported, allows no text at all, or is too complex.
    """
    from llguidance import LLMatcher, LLParserLimits

    # Lexer states take 1 to 2 kB each and grow with use. Fuel and items bound the time that a token of a hostile
    # guide can take from its neighbours: some tens of milliseconds, while useful ones take well below one.
    limits = LLParserLimits(
        max_lexer_states=20_000, step_lexer_fuel=100_000, step_max_items=15_000, verbose_errors=False
    )
    matcher = LLMatcher(tokenizer, _grammar(spec), log_level=0, limits=limits)
    matcher.compute_bitmask()
    error = matcher.get_error()
    if error.startswith("NoExtension") or (matcher.is_stopped() and not matcher.is_accepting() and not error):
        raise GuideError("no text satisfies it")
    if error:
        raise GuideError(_short(error))
    return matcher


def _grammar(spec: dict[str, Any]) -> str:
    from llguidance import LLMatcher

    kind = spec["kind"]
    if kind == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, spec["texts"])))
    text = spec["text"]
    if kind in ("json_schema", "json_object"):
        schema = text if kind == "json_schema" else '{"type": "object"}'
        if schema.strip() == "true":  # any JSON; options can only be put into an object
            schema = "{}"
        try:
            return LLMatcher.grammar_from_json_schema(schema, overrides=_BLANKS)
        except ValueError as error:
            raise GuideError(_short(str(error))) from error
    if kind == "regex":
        return LLMatcher.grammar_from_regex(text)
    return LLMatcher.grammar_from_lark(text)


def _short(error: str) -> str:
    """llguidance's reason without its internal state."""
    line = " ".join(error.split("<non-verbose/>")[0].split())
    return line if len(line) <= _SHOWN else f"{line[:100]} ... {line[-200:]}"
