"""Guides made ready beside the stepping thread, which takes them up when they are."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from janus_attention.guide import Guide, GuideError, compile_guide, load_tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_CACHED = 64


class GuideCompiler:
    """One thread that compiles (llguidance lets the interpreter's lock go meanwhile), and a cache.

    ``wake_fd`` becomes readable when a guide is ready, so that a sleeping engine notices.
    """

    def __init__(self, directory: str | Path, vocab_size: int, end_ids: Sequence[int]) -> None:
        self._source = (directory, vocab_size, end_ids)
        self._tokenizer: LLTokenizer | None = None
        self._cache: OrderedDict[str, LLMatcher] = OrderedDict()
        self._executor = ThreadPoolExecutor(1, "guides")
        self._done: queue.SimpleQueue[tuple[int, Guide | GuideError]] = queue.SimpleQueue()
        self.wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closed = weakref.finalize(self, os.close, self.wake_fd)

    def prepare(self) -> None:
        """Read the tokenizer now, while nothing waits for this process."""
        with contextlib.suppress(GuideError):  # then each guided request says so
            self._load()

    def submit(self, number: int, spec: dict[str, Any], tokens: Sequence[int]) -> None:
        """Make a guide ready, already past ``tokens``; :meth:`ready` gives it with ``number``."""
        self._executor.submit(self._work, number, spec, list(tokens))

    def ready(self) -> Iterator[tuple[int, Guide | GuideError]]:
        """What has become ready since the last call."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake_fd)
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._done.get_nowait()

    def _work(self, number: int, spec: dict[str, Any], tokens: list[int]) -> None:
        result: Guide | GuideError
        try:
            result = Guide(self._matcher(spec))
            result.accept(tokens)
        except GuideError as error:
            result = error
        except BaseException as error:  # noqa: BLE001 - a panic of the library is no Exception; its request hears it
            result = GuideError(f"{type(error).__name__}: {error}")
        self._done.put((number, result))
        os.eventfd_write(self.wake_fd, 1)

    def _matcher(self, spec: dict[str, Any]) -> LLMatcher:
        key = json.dumps(spec, sort_keys=True)
        found = self._cache.pop(key, None)
        if found is None:
            found = compile_guide(spec, self._load())
        self._cache[key] = found
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return found.deep_copy()

    def _load(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(*self._source)
        return self._tokenizer
