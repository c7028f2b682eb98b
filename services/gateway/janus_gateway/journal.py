"""Requests with an idempotency key: the same key again, at any gateway, is the same answer from the start.

Everything random of such a request follows from its key (seeds, ids), so whichever gateway makes the answer
makes the same tokens. What was made already is in Redis and is not computed again; without it, for Redis may
be away, the answer comes later and is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import re
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from janus_runtime.coordination import Coordination
from janus_runtime.errors import InvalidArgument, JanusError
from janus_wire.v1 import attention_pb2, common_pb2

from janus_gateway.config import GatewaySettings

log = logging.getLogger("janus.gateway")

Response = attention_pb2.AttentionServiceGenerateResponse
FLUSH_S = 0.05
"""Tokens are brought to Redis together, this long after the first of them."""
_AGAIN_S = (0.25, 2.0)
"""What Redis did not take, or has lost, is brought again after this long, doubling from the first to the second."""
_ATTEMPTS = 30
"""In a row."""
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_CHOICE = struct.Struct("<H")
_KEPT = (
    common_pb2.FINISH_REASON_UNSPECIFIED, common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH,
)  # fmt: skip


class Journal:
    """One per gateway."""

    def __init__(self, coordination: Coordination, settings: GatewaySettings) -> None:
        self._store = coordination.journal(
            ttl_s=settings.journal_ttl_s, entries=settings.journal_entries, items=settings.journal_items
        )
        self._items = settings.journal_items
        self._writes: set[asyncio.Task[None]] = set()

    async def open(self, key: str, caller: str, request: bytes, *, field: str) -> Entry:
        """The entry of ``key``, of this caller alone. InvalidArgument when it stands for another request."""
        if not _KEY.fullmatch(key):
            raise InvalidArgument(
                "is not usable",
                field=field,
                value=key,
                allowed="1..255 printable ASCII characters without blanks",
            )
        name = hashlib.blake2b(
            f"{caller}\0{key}".encode(), digest_size=16, person=b"janus.journal"
        ).hexdigest()
        digest = hashlib.sha256(request).hexdigest()
        entry = Entry(self, name, int(time.time()), digest)
        try:
            head, items = await self._store.open(name, entry.head)
            held = json.loads(head)
        except (JanusError, ValueError) as error:
            log.warning("no journal for this request, its answer is the same: %s", error)
            return entry
        if held.get("request") != digest:
            raise InvalidArgument(
                "stands for another request already",
                field=field,
                value=key,
                reason="IDEMPOTENCY_KEY_REUSED",
                next_step="Use a new key for each request, and the same one only to repeat it unchanged.",
            )
        entry.load(int(held.get("created", entry.created)), items)
        return entry

    def write(self, entry: Entry, items: Sequence[bytes]) -> None:
        """Bring items to Redis beside the stream."""
        task = asyncio.get_running_loop().create_task(self._write(entry, items))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write(self, entry: Entry, items: Sequence[bytes]) -> None:
        # A gap would make what follows useless: who is behind brings everything, and copies are no harm.
        whole = len(entry.given) if entry.behind else 0
        try:
            if whole and not await self._reopen(entry):
                entry.stop()
                return
            done = await self._store.append(entry.name, entry.given[:whole] if whole else items)
        except JanusError as error:
            log.debug("journal: %s", error)
            done = False
        entry.written(done, whole)

    async def _reopen(self, entry: Entry) -> bool:
        """Redis was away, and may have come back empty. False: it has as much of the entry as it may have, or the key
        stands for another request by now."""
        head, items = await self._store.open(entry.name, entry.head)
        try:
            ours = json.loads(head).get("request") == entry.digest
        except (ValueError, AttributeError):
            ours = False
        return ours and len(items) < self._items

    async def close(self) -> None:
        """Wait for what is being written."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await asyncio.gather(*self._writes, return_exceptions=True)


class Entry:
    """One request's place in the journal."""

    def __init__(self, journal: Journal, name: str, created: int, digest: str = "") -> None:
        self._journal = journal
        self.name = name
        self.digest = digest
        """Of the request."""
        self.given: list[bytes] = []
        """All items that Redis should have."""
        self.behind = False
        """Redis did not take some of them, or has lost them."""
        self._bringing = False
        """All of them are on their way."""
        self._failed = 0
        """Attempts in a row."""
        self._made: dict[int, list[Response]] = {}
        self._pending: dict[int, list[Response]] = {}
        self._known: dict[int, int] = {}
        self._stopped = False
        self._timer: asyncio.TimerHandle | None = None
        self.created = created
        """Seconds since the Unix epoch, when the key was first seen."""

    def load(self, created: int, items: Sequence[bytes]) -> None:
        """What Redis has of it."""
        self.created = created
        self.given += items
        for item in items:
            try:
                (choice,) = _CHOICE.unpack_from(item)
                self._made.setdefault(choice, []).append(Response.FromString(item[_CHOICE.size :]))
            except (struct.error, DecodeError) as error:
                log.error("journal entry %s holds what Janus did not write: %s", self.name, error)
                return

    @property
    def head(self) -> str:
        """What Redis keeps of the request."""
        return json.dumps({"request": self.digest, "created": self.created})

    @property
    def id(self) -> str:
        """For the answer's id."""
        return self.name[:24]

    def seed(self, place: int) -> int:
        """For the prompt at this place, where the request names no seed."""
        text = f"{self.name}/{place}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def made(self, choice: int) -> list[Response]:
        """What was made of a choice, in order and without a gap; two gateways may have written at once."""
        found: list[Response] = []
        known = 0
        for response in sorted(self._made.get(choice, ()), key=lambda r: (r.first_index, len(r.token_ids))):
            end = response.first_index + len(response.token_ids)
            if response.first_index > known:
                break
            if end > known or (response.finish_reason and not response.token_ids and end == known):
                found.append(response)
                known = end
        self._known[choice] = known
        return found

    def record(self, choice: int, response: Response) -> None:
        """Keep what a worker has sent."""
        if self._stopped or response.finish_reason not in _KEPT:
            return
        pending = self._pending.setdefault(choice, [])
        if not response.token_ids:  # an end of its own means something else than one with the last token
            pending.append(
                Response(first_index=self._known.get(choice, 0), finish_reason=response.finish_reason)
            )
        elif pending:
            pending[-1].token_ids.extend(response.token_ids)
            pending[-1].logprobs.extend(response.logprobs)
            pending[-1].finish_reason = response.finish_reason
        else:
            kept = Response(first_index=response.first_index, finish_reason=response.finish_reason)
            kept.token_ids.extend(response.token_ids)
            kept.logprobs.extend(response.logprobs)
            pending.append(kept)
        self._known[choice] = max(self._known.get(choice, 0), response.first_index + len(response.token_ids))
        if self._timer is None and not self.behind:
            self._later(FLUSH_S)  # who is behind has a timer, or writes

    def _later(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self.flush)

    def flush(self) -> None:
        """Bring what is kept to Redis."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending = self._pending, {}
        if self._stopped:
            return
        items = [
            _CHOICE.pack(choice) + response.SerializeToString()
            for choice, responses in pending.items()
            for response in responses
        ]
        self.given += items
        if self.behind:
            if self.given and not self._bringing:
                self._bringing = True
                self._journal.write(self, ())
        elif items:
            self._journal.write(self, items)

    def written(self, done: bool, whole: int) -> None:
        """A write is over: whether Redis has it; ``whole``: it was of so many items, all that were given by then."""
        if whole:
            self._bringing = False
            if done:
                self.behind, self._failed = False, 0
                if self.given[whole:]:
                    self._journal.write(self, self.given[whole:])
        if done:
            return
        self.behind = True
        if self._bringing:
            return
        self._failed += 1
        if self._failed > _ATTEMPTS:
            log.warning("no journal for request %s any more: Redis has not taken it for long", self.id)
            self.stop()
        elif self._timer is None:
            self._later(min(_AGAIN_S[0] * 2 ** (self._failed - 1), _AGAIN_S[1]))

    def stop(self) -> None:
        """Nothing more is brought to Redis."""
        self._stopped = True
        self.given.clear()


def received(text: str, choices: int) -> list[int]:
    """``Last-Event-ID``: how many events of each choice the client has; zeros when it is none of ours."""
    counts = [int(part) if part.isdecimal() else 0 for part in text.split(",")]
    return counts if len(counts) == choices else [0] * choices


def canonical(path: str, model: str, body: Mapping[str, Any]) -> bytes:
    """A JSON request as bytes, whatever the order of its fields."""
    return json.dumps([path, model, body], sort_keys=True).encode()
