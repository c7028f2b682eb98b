"""What of a keyed request has been given out, in Redis, so that any gateway can go on with it.

Per entry a head (what the request was) and a list of items, both with a time to live; an index by age bounds
their number, and each list its length. What is not there is computed again: losing it costs time, no token.
"""

from __future__ import annotations

from collections.abc import Sequence

from janus_runtime._redis import RedisCalls

_OPEN = """
-- KEYS: head, items, index. ARGV: head json, ttl s, entries kept, entry, prefix. Returns {head in force, items}.
redis.call('SET', KEYS[1], ARGV[1], 'NX')
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) * 1e-6
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - tonumber(ARGV[2]))
redis.call("ZADD", KEYS[3], string.format("%.6f", now), ARGV[4])
redis.call('EXPIRE', KEYS[3], ARGV[2])
local surplus = redis.call('ZCARD', KEYS[3]) - tonumber(ARGV[3])
if surplus > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[3], surplus)
  for i = 1, #oldest, 2 do redis.call('DEL', ARGV[5] .. oldest[i], ARGV[5] .. oldest[i] .. ':items') end
end
return {redis.call('GET', KEYS[1]) or ARGV[1], redis.call('LRANGE', KEYS[2], 0, -1)}
"""

_APPEND = """
-- KEYS: head, items. ARGV: ttl s, items kept, then the items. Returns 1; 0 when the entry is gone or full.
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('LLEN', KEYS[2]) >= tonumber(ARGV[2]) then return 0 end
for i = 3, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 1
"""


class JournalStore:
    """Made by :meth:`Coordination.journal`. Every call raises JanusError while Redis is away."""

    def __init__(self, redis: RedisCalls, prefix: str, *, ttl_s: int, entries: int, items: int) -> None:
        """At most ``entries`` requests, each with about ``items`` items, each for ``ttl_s`` after its last use."""
        self._redis = redis
        self._prefix = prefix
        self._ttl_s, self._entries, self._items = ttl_s, entries, items

    async def open(self, entry: str, head: str) -> tuple[str, list[bytes]]:
        """The head in force, ``head`` where there was none, and the items so far."""
        key = f"{self._prefix}{entry}"
        args: list[str | int | bytes] = [head, self._ttl_s, self._entries, entry, self._prefix]
        held, items = await self._redis.script(
            "open journal", _OPEN, [key, f"{key}:items", f"{self._prefix}index"], args
        )
        return held.decode(), list(items)

    async def append(self, entry: str, items: Sequence[bytes]) -> bool:
        """Keep more items; False when the entry is full or gone, and further ones need not be brought."""
        key = f"{self._prefix}{entry}"
        done = await self._redis.script(
            "append to journal", _APPEND, [key, f"{key}:items"], [self._ttl_s, self._items, *items]
        )
        return bool(done)
