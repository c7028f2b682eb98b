"""The Redis client: every call bounded in time, every failure an Unavailable that says where."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis.asyncio as aioredis
from redis import exceptions as rx
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from janus_runtime.errors import FailedPrecondition, InvalidArgument, JanusError, Unavailable
from janus_runtime.startup import Startup

T = TypeVar("T")

CALL_TIMEOUT_S = 5.0
"""No single Redis call takes longer."""
_SCHEMES = ("redis://", "rediss://", "unix://")
_NEXT_STEP = "Start Redis 6.2 or later there, or correct --redis-url (REDIS_URL)."


_REFUSED = (rx.AuthenticationError, rx.AuthorizationError, rx.NoPermissionError)
_PASSING = (rx.BusyLoadingError, rx.ReadOnlyError, rx.ConnectionError, rx.TimeoutError, OSError, TimeoutError)


def end_if_cancelled() -> None:
    """Raise CancelledError when this task was cancelled and a library swallowed it.

    Before Python 3.12 ``asyncio.wait_for``, which redis-py uses, loses a cancellation that coincides with the
    result; a loop that goes on after it would never end. Call it at each turn of a loop of Redis calls.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def shown_url(url: str) -> str:
    """The URL without user name and password, for people."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url.partition("?")[0]
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def open_client(url: str, timeout_s: float = CALL_TIMEOUT_S, *, retries: int = 1) -> Any:
    """A client for ``url``; connects at the first call. InvalidArgument for an URL that cannot be one.

    ``retries``: at once, when a connection breaks. Who has to know that it broke asks for none.
    """
    allowed = "redis://host:port/db, rediss://host:port/db or unix:///path/to/socket"
    if not url.startswith(_SCHEMES):
        raise InvalidArgument("not a Redis URL", field="--redis-url", value=shown_url(url), allowed=allowed)
    try:
        return aioredis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s / 2,
            # One retry, at once: the pooled connection of a Redis that was restarted is dead.
            retry=Retry(NoBackoff(), retries, supported_errors=(rx.ConnectionError,)),
        )
    except ValueError as error:
        raise InvalidArgument(
            f"not a Redis URL: {error}", field="--redis-url", value=shown_url(url), allowed=allowed
        ) from error


def to_janus(error: BaseException, url: str, what: str) -> JanusError:
    """What a failed Redis call means for the caller."""
    where = f"Redis at {shown_url(url)}"
    # redis-py wraps what happened while connecting: the cause tells what it was.
    if isinstance(error, _REFUSED) or isinstance(error.__cause__, _REFUSED):
        return FailedPrecondition(
            f"{where} refused the credentials: {error}", reason="REDIS_AUTH",
            next_step="Put user and password into the URL: redis://user:password@host:port/db.",
        )  # fmt: skip
    if isinstance(error, _PASSING):
        cause = str(error) or type(error).__name__
        return Unavailable(
            f"{where}: {what}: {cause}", reason="REDIS_UNAVAILABLE", next_step=_NEXT_STEP, retry_after_s=1.0
        )
    return FailedPrecondition(
        f"{where}: {what}: {error}", reason="REDIS_ERROR",
        next_step="Janus needs Redis 6.2 or later with Lua scripts and streams, and keys of its own.",
    )  # fmt: skip


class RedisCalls:
    """A client whose calls have a deadline and raise JanusError."""

    def __init__(self, url: str, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.url = url
        self._timeout_s = timeout_s
        # Any: redis-py types answers as str or bytes whatever decode_responses says; ours are bytes.
        self.client: Any = open_client(url, timeout_s)
        self._scripts: dict[str, Any] = {}

    async def call(self, what: str, make: Callable[[], Awaitable[T]]) -> T:
        """Await ``make()``; ``what`` names it in the error."""
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        try:
            async with asyncio.timeout(2 * self._timeout_s):
                result = await make()
                if task and task.cancelling() > before:
                    raise asyncio.CancelledError  # swallowed on the way, see end_if_cancelled
                return result
        except (rx.RedisError, OSError, TimeoutError) as error:
            raise to_janus(error, self.url, what) from error

    async def script(self, what: str, source: str, keys: list[str], args: list[str | int | bytes]) -> Any:
        """Run a Lua script (loaded again by itself after Redis lost it)."""
        if source not in self._scripts:
            self._scripts[source] = self.client.register_script(source)
        return await self.call(what, lambda: self._scripts[source](keys=keys, args=args))

    async def wait_until_up(self, startup: Startup, wait_s: float) -> None:
        """Ping until Redis answers; Unavailable after ``wait_s``, FailedPrecondition on bad credentials."""
        deadline = time.monotonic() + wait_s
        while True:
            try:
                await self.call("connect", self._ping)
            except Unavailable as error:
                startup.waiting(f"Redis at {shown_url(self.url)}")
                if time.monotonic() >= deadline:
                    startup.done()
                    raise Unavailable(
                        f"{error.message} (waited {wait_s:g} s)",
                        reason="REDIS_UNAVAILABLE",
                        next_step=_NEXT_STEP,
                    ) from error
                await asyncio.sleep(min(0.25, max(0.0, deadline - time.monotonic())))
            else:
                startup.done()
                return

    async def _ping(self) -> None:
        await self.client.execute_command("PING")

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()
