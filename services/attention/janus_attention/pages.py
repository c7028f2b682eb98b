"""Memory of the KV cache, made ready a little before it is written.

The cache is reserved, not filled: its pages cost memory once tokens are written to them. A large page has to be cleared
by the system at the first write, 6 ms on a virtual machine, and all layers come to their next one in the same step,
which took 0.4 s longer for that (docs/lab-notes.md). So a thread asks for pages before they are needed, one by one, and
ends when there is nothing to make ready. Prompts that are ahead of it wait while others decode (Batcher.ready_blocks).
"""

from __future__ import annotations

import threading
import time

from janus_models.kvcache import KvCache


class PagesAhead:
    """Keeps pages ready for as many blocks beyond those in use as one large page holds."""

    def __init__(self, kv: KvCache) -> None:
        self._kv = kv
        self._ahead = kv.large_blocks
        self._wanted = 0
        self.ready = 0
        """Blocks, from the first, that are ready."""
        self._thread: threading.Thread | None = None
        self.reach(0)

    def reach(self, used: int) -> None:
        """Blocks from ``used`` on were never written to; returns at once."""
        if used + self._ahead // 2 < self._wanted or self._wanted == self._kv.num_blocks:
            return
        if self._thread is None or not self._thread.is_alive():
            self._wanted = min(self._kv.num_blocks, used + self._ahead)
            self._thread = threading.Thread(
                target=self._work, args=(self._wanted,), name="pages", daemon=True
            )
            self._thread.start()

    def _work(self, wanted: int) -> None:
        try:
            for first in range(self.ready, wanted, self._ahead):
                last = min(first + self._ahead, wanted)
                for layer in range(len(self._kv.layers)):
                    began = time.perf_counter()
                    self._kv.back(layer, first, last)
                    time.sleep(time.perf_counter() - began)  # the step under way needs its core
                self.ready = last
        finally:
            self.ready = wanted  # to be slow at the first write is no error

    def join(self, timeout_s: float) -> bool:
        """Wait until what was asked for is ready; whether it is."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return self._thread is None or not self._thread.is_alive()
