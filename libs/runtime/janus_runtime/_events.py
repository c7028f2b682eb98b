"""Listening to ``{ns}:events``: one subscription per process, waking whoever waits; outlives Redis."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from redis import exceptions as rx

from janus_runtime._redis import RedisCalls, end_if_cancelled, open_client, to_janus

log = logging.getLogger("janus.coordination")

POLL_S = 5.0
"""Without any event, watchers look at Redis this often: an event can be lost with the connection."""
LEASED_POLL_S = 60.0
"""The same in a process that keeps a lease: each renewal brings the epoch in force, see ``wake``."""
RETRY_S = (0.05, 1.0)
"""Between attempts to reach a Redis that has gone, doubling from the first to the second."""


class Watcher:
    """One waiter: ``await wait()`` returns at the next event (True) or after ``timeout_s`` (False)."""

    def __init__(self, prefixes: tuple[str, ...]) -> None:
        self.prefixes = prefixes
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Let wait() return."""
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """True when something happened since the last call, False at the time-out."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


class EventHub:
    """Subscribes while anyone watches; after a lost connection it wakes every watcher on the new one."""

    def __init__(self, redis: RedisCalls, channel: str, on_back: Callable[[], None] | None = None) -> None:
        """``on_back``: Redis had gone, perhaps with all it held, and answers again."""
        self._redis = redis
        self._on_back = on_back
        self._channel = channel
        self._watchers: set[Watcher] = set()
        self._task: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def watch(self, *prefixes: str) -> Iterator[Watcher]:
        """A watcher of events that begin with one of ``prefixes`` (none: all)."""
        watcher = Watcher(prefixes)
        self._watchers.add(watcher)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._listen(), name="janus-events")
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def wake(self, text: str) -> None:
        """Wake those who watch for ``text``, as its event does."""
        for watcher in self._watchers:
            if not watcher.prefixes or text.startswith(watcher.prefixes):
                watcher.wake()

    async def _listen(self) -> None:
        client = open_client(self._redis.url, retries=0)
        try:
            await self._follow(client)
        finally:
            await client.aclose()

    async def _follow(self, client: Any) -> None:
        lost, pause = False, RETRY_S[0]
        while True:
            pubsub = client.pubsub(ignore_subscribe_messages=True)
            try:
                await pubsub.subscribe(self._channel)
                if lost:
                    log.info("Redis is back")
                    if self._on_back is not None:
                        self._on_back()
                lost, pause = False, RETRY_S[0]
                for watcher in self._watchers:  # what happened while nobody listened
                    watcher.wake()
                while True:
                    # None: block on the socket with no timer; a dead peer is seen by the ping below.
                    message = await pubsub.get_message(timeout=30.0)
                    if message is not None:
                        self.wake(message["data"].decode("utf-8", "replace"))
                    else:
                        await pubsub.ping()
                    end_if_cancelled()
            except (rx.RedisError, OSError, TimeoutError) as error:
                if not lost:
                    log.warning(
                        "events: %s Retrying every %.0f s at least.",
                        to_janus(error, self._redis.url, "lost"),
                        RETRY_S[1],
                    )
                lost = True
            finally:
                with contextlib.suppress(rx.RedisError, OSError, TimeoutError):
                    await pubsub.aclose()
            end_if_cancelled()
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_S[1])

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
