"""One answer as it grows: token ids in, text out, stop strings kept back. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from janus_models.detokenizer import IncrementalDetokenizer
from janus_wire.v1 import common_pb2

from janus_gateway.stops import StopScanner
from janus_gateway.tools import CallPart


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token of the answer."""

    id: int
    start: int
    """Characters of the answer's text before this token's."""
    logprobs: common_pb2.TokenLogprobs | None = None
    hidden: bool = False
    """It ended the answer, or is part of the stop string: counted, but none of its text is given out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What became known of an answer."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish_reason: int = common_pb2.FINISH_REASON_UNSPECIFIED
    """Set in the last piece."""
    stop_sequence: str = ""
    """The stop string that ended the answer."""
    calls: tuple[CallPart, ...] = ()
    """Parts of tool calls; their text is not in ``text``."""


class Answer:
    """Feed every token once; a token is given out together with the last of its text."""

    def __init__(
        self,
        detokenizer: Callable[[], IncrementalDetokenizer],
        stops: Sequence[str],
        min_tokens: int,
        markers: Mapping[int, str] | None = None,
    ) -> None:
        """``markers``: special tokens that have a text here, which those of ``detokenizer`` leave out."""
        self._new_detokenizer = detokenizer
        self._detokenizer = detokenizer()
        self._markers = markers or {}
        self._scanner = StopScanner(stops)
        self._min_tokens = min_tokens
        self._waiting: deque[tuple[Token, int]] = deque()
        self._produced = 0
        self._given = 0
        self.ids: list[int] = []
        """Every token so far: what another worker needs to go on."""

    def push(self, token_id: int, logprobs: common_pb2.TokenLogprobs | None, finish: int) -> Piece:
        """``finish``: the worker's finish reason; STOP means that this token is the one that ended it."""
        self.ids.append(token_id)
        ending = finish == common_pb2.FINISH_REASON_STOP
        text = "" if ending else self._text(token_id)
        self._take(token_id, logprobs, text, hidden=ending)
        exempt = len(self.ids) <= self._min_tokens
        out, stop = (text, None) if exempt else self._scanner.push(text)
        if stop is None and finish:
            more, stop = self._rest(owned=not ending)
            out += more
        self._given += len(out)
        if stop is not None:
            return self._last(out, common_pb2.FINISH_REASON_STOP, stop)
        if finish:
            return self._last(out, finish, "")
        tokens = []
        while self._waiting and self._waiting[0][1] <= self._given:
            tokens.append(self._waiting.popleft()[0])
        return Piece(text=out, tokens=tuple(tokens))

    def end(self, finish: int) -> Piece:
        """It ended after the tokens it has: what was kept back comes out."""
        out, stop = self._rest(owned=True)
        self._given += len(out)
        return self._last(out, common_pb2.FINISH_REASON_STOP if stop is not None else finish, stop or "")

    def _text(self, token_id: int) -> str:
        if token_id not in self._markers:
            return self._detokenizer.push([token_id])
        before = self._detokenizer.flush()
        self._detokenizer = self._new_detokenizer()
        return before + self._markers[token_id]

    def _rest(self, *, owned: bool) -> tuple[str, str | None]:
        """All text still kept back, and the stop string in it; ``owned``: it is the last token's."""
        rest = self._detokenizer.flush()
        self._produced += len(rest)
        out, stop = self._scanner.push(rest)
        if stop is None:
            out += self._scanner.flush()
        if rest and owned and self._waiting:
            token, end = self._waiting.pop()
            self._waiting.append((token, end + len(rest)))
        return out, stop

    def _take(
        self, token_id: int, logprobs: common_pb2.TokenLogprobs | None, text: str, hidden: bool
    ) -> None:
        token = Token(id=token_id, start=self._produced, logprobs=logprobs, hidden=hidden)
        self._produced += len(text)
        self._waiting.append((token, self._produced))

    def _last(self, text: str, finish: int, stop: str) -> Piece:
        tokens = [
            Token(
                id=t.id, start=t.start, logprobs=t.logprobs, hidden=t.hidden or t.start >= self._given < end
            )
            for t, end in self._waiting
        ]
        self._waiting.clear()
        return Piece(text=text, tokens=tuple(tokens), finish_reason=finish, stop_sequence=stop)
