"""Framed messages between an engine and its peers, with preallocated buffers.

Receives are posted ahead, ``depth`` per peer; a frame is looked at in place (:meth:`Exchange.peek`) and its
buffer posted again when it is consumed (:meth:`Exchange.pop`). Everything a peer sends is checked before
anyone sees it: what is malformed is counted, logged once per peer, and dropped.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from janus_transport.base import Bytes, PeerLost, Request, Transport, TransportError, Truncated, WaitTimeout
from janus_transport.framing import HEADER_BYTES, FrameError, Header, Kind, decode, wipe

_LOG = logging.getLogger("janus.transport")
_RECLAIM_S = 1.0
_SEND_AGAIN_S = 30.0
_HANDLES = 64
_PARKED = 16


@dataclass(slots=True)
class Frame:
    """A received frame, valid until it is consumed."""

    header: Header
    payload: Bytes
    """uint8 [header.payload_bytes], a view on the receive buffer."""


class SendBuffer:
    """A frame to fill: header and payload in one piece of memory."""

    __slots__ = ("handles", "payload", "raw", "requests")

    def __init__(self, max_payload: int) -> None:
        self.renew(HEADER_BYTES + max_payload)

    def renew(self, size: int) -> None:
        """Take fresh memory. What is still under way keeps the old until the transport lets go of it."""
        self.raw: Bytes = np.empty(size, np.uint8)
        self.payload: Bytes = self.raw[HEADER_BYTES:]
        """uint8 [max_payload]. Take it anew after every :meth:`Exchange.reclaim`."""
        self.requests: list[Request] = []
        self.handles: dict[int, Any] = {}
        """Prepared views on the first so many bytes; steps repeat a few sizes."""

    def busy(self) -> bool:
        """Whether a send of it is under way."""
        for request in self.requests:  # noqa: SIM110 - a generator costs more than the rest, in every layer
            if not request.done():
                return True
        return False


class _Link:
    """Receives from one peer, oldest first."""

    __slots__ = ("complained", "frame", "lost", "ring")

    def __init__(self) -> None:
        self.ring: deque[tuple[Request, Bytes, Any]] = deque()
        self.frame: Frame | None = None
        self.lost = False
        self.complained = False


def _whole(request: Request) -> bool:
    """Whether a receive has completed well."""
    if not request.done():
        return False
    try:
        request.check()
    except TransportError:
        return False
    return True


class Exchange:
    """Frames to and from the members of a cohort. Not thread safe."""

    def __init__(self, transport: Transport, *, member: int, max_payload: int, depth: int = 4) -> None:
        """``max_payload``: bytes; ``depth``: frames that a peer may have under way to us."""
        self._transport = transport
        self.member = member
        self._max_payload = max_payload
        self._depth = depth
        self._links: dict[int, _Link] = {}
        self._parked: dict[int, _Link] = {}
        """Members that left, oldest first."""
        self._guests: set[int] = set()
        """Members linked beside the peers, as :meth:`invite` says."""
        self._addresses: dict[int, bytes] = {}
        """Of members linked or parked."""
        self._remote: frozenset[int] = frozenset()
        self.bytes_received = 0
        self.messages_received = 0
        self.sent: dict[tuple[Kind, bool], list[int]] = {}
        """[messages, bytes] by kind and whether they went to another node."""
        self._counts: dict[int, list[int]] = {}
        """The same rows by twice the kind, plus one for another node: hashing an enum is Python code."""
        self.rejected = 0
        """Frames dropped: malformed, oversized, or of a sender that is not who it says."""

    def set_peers(self, peers: Mapping[int, bytes], *, remote: Iterable[int] = ()) -> None:
        """Talk to exactly these members; those who stay are left as they are. ``remote``: those on other nodes.

        The link of a living member that leaves is parked, as it may return: closing it would break the other
        side's. A link that has failed is closed, and one of a member that stays is then made anew; what had come
        over it counts, since the other side may have been first to make it anew, and send. Raises
        PeerLost when one cannot be made; those not yet connected then wait for the next call.
        """
        self._remote = frozenset(remote)
        came = {}
        for member in [m for m, a in self._addresses.items() if peers.get(m, a) != a or self._failed(m)]:
            came[member] = self._close(member, peers.get(member))
        for member in [m for m in self._links if m not in peers and m not in self._guests]:
            self._parked[member] = self._links.pop(member)
        while len(self._parked) > _PARKED:
            self._close(next(iter(self._parked)))
        for member, address in peers.items():
            if member in self._parked:
                self._links[member] = self._parked.pop(member)
            elif member not in self._links:
                self._connect(member, address, came.get(member))

    def invite(self, member: int, address: bytes) -> None:
        """Talk to a member beside the peers, whoever these are, until :meth:`dismiss`. Raises PeerLost."""
        came = None
        if member in self._addresses and (self._addresses[member] != address or self._failed(member)):
            came = self._close(member, address)
        if member in self._parked:
            self._links[member] = self._parked.pop(member)
        elif member not in self._links:
            self._connect(member, address, came)
        self._guests.add(member)

    def dismiss(self, member: int) -> None:
        """A guest is one no more: its link goes, unless it is a peer's, with the next set of peers."""
        self._guests.discard(member)

    def prepare(self, peers: Mapping[int, bytes]) -> None:
        """Link to members who may become peers, and keep the links parked. Each is sent a note that means nothing, for
        what a transport settles with its peer at the first message. Raises PeerLost, WaitTimeout."""
        note = SendBuffer(0)
        header = Header(kind=Kind.PROBE, epoch=0, step=0, source=self.member, payload_bytes=0)
        for member, address in list(peers.items())[:_PARKED]:
            if member in self._links or member in self._parked:
                continue
            self._connect(member, address)
            self.send([member], header, note)
            self._parked[member] = self._links.pop(member)

    def _connect(self, member: int, address: bytes, came: _Link | None = None) -> None:
        """``came``: the member's last link, of which whole frames are taken over, oldest first."""
        self._transport.connect(member, address)
        self._addresses[member] = address
        link = self._links[member] = _Link()
        if came is not None:
            link.ring.extend(entry for entry in came.ring if _whole(entry[0]))
            link.frame = came.frame
        for _ in range(self._depth):
            buffer = np.empty(HEADER_BYTES + self._max_payload, np.uint8)
            self._post(member, link, buffer, self._transport.prepare(buffer))

    def _close(self, member: int, address: bytes | None = None) -> _Link | None:
        """Its link, where it is to be made anew to the same ``address``."""
        self._transport.disconnect(member)
        same = self._addresses.pop(member) == address
        link = self._links.pop(member, None) or self._parked.pop(member)
        return link if same else None

    def allocate(self) -> SendBuffer:
        """A buffer for frames of up to ``max_payload`` bytes."""
        return SendBuffer(self._max_payload)

    def reclaim(self, buffer: SendBuffer) -> None:
        """Make ``buffer`` writable: wait for its earlier sends or, after a second, give it fresh memory.

        A send to a peer that is stopped or gone may never be over, and its memory must not change under it.
        """
        if buffer.requests and buffer.busy():
            try:
                self._transport.wait(lambda: not buffer.busy(), deadline=time.monotonic() + _RECLAIM_S)
            except WaitTimeout:
                buffer.renew(buffer.raw.nbytes)
        buffer.requests.clear()

    def send(self, peers: Sequence[int], header: Header, buffer: SendBuffer) -> None:
        """Start sending the same frame to each of ``peers``.

        Call :meth:`reclaim` before filling the buffer again. Where that was left out, this waits for the
        buffer's earlier sends, WaitTimeout after 30 s. Raises PeerLost, FrameError for a header out of range.
        """
        if header.payload_bytes > buffer.payload.nbytes:
            raise FrameError(f"payload of {header.payload_bytes} bytes; at most {buffer.payload.nbytes} fit")
        if buffer.requests and buffer.busy():
            self._transport.wait(lambda: not buffer.busy(), deadline=time.monotonic() + _SEND_AGAIN_S)
        header.encode_into(buffer.raw)
        size = HEADER_BYTES + header.payload_bytes
        message = buffer.handles.get(size)
        if message is None:
            if len(buffer.handles) >= _HANDLES:
                buffer.handles.clear()
            message = buffer.handles[size] = self._transport.prepare(buffer.raw[:size])
        for peer in peers:
            if peer not in self._links:
                raise PeerLost(peer, "not a peer")
            buffer.requests.append(self._transport.send(peer, message))
            remote = peer in self._remote
            count = self._counts.get(2 * header.kind + remote)
            if count is None:
                count = self._counts[2 * header.kind + remote] = self.sent[header.kind, remote] = [0, 0]
            count[0] += 1
            count[1] += size

    @property
    def bytes_sent(self) -> int:
        """Headers included."""
        return sum(size for _, size in self.sent.values())

    @property
    def messages_sent(self) -> int:
        """To peers on any node."""
        return sum(count for count, _ in self.sent.values())

    def internode(self, kind: Kind | None = None) -> tuple[int, int]:
        """(messages, bytes) sent to other nodes, of one kind or all."""
        rows = [row for (of, remote), row in self.sent.items() if remote and kind in (None, of)]
        return sum(row[0] for row in rows), sum(row[1] for row in rows)

    def peek(self, peer: int) -> Frame | None:
        """Oldest frame of ``peer`` that has not been consumed; None when there is none."""
        link = self._links.get(peer)
        if link is None:
            return None
        if link.frame is None:
            while link.ring and link.ring[0][0].done():
                frame = self._take(peer, link)
                if frame is not None:
                    link.frame = frame
                    break
        return link.frame

    def pop(self, peer: int) -> None:
        """Consume the frame that :meth:`peek` gives."""
        link = self._links[peer]
        if link.frame is None:
            raise TransportError(f"no frame of member {peer} to consume")
        link.frame = None
        _, buffer, handle = link.ring.popleft()
        if len(link.ring) < self._depth:
            self._post(peer, link, buffer, handle)

    def pluck(self, peer: int, kind: Kind) -> Header | None:
        """Header of the oldest frame of a kind among those that wait, which is consumed out of turn; or None."""
        link = self._links.get(peer)
        for i, (request, buffer, handle) in enumerate(link.ring if link else ()):
            if not request.done():
                break
            try:
                request.check()
                header = decode(buffer)
            except TransportError:
                continue  # it is dropped in its turn
            if header.kind is kind and header.source == peer:
                assert link is not None
                del link.ring[i]
                self._post(peer, link, buffer, handle)
                self.messages_received += 1
                self.bytes_received += HEADER_BYTES + header.payload_bytes
                return header
        return None

    def _take(self, peer: int, link: _Link) -> Frame | None:
        """Frame in the oldest, completed receive; None after dropping it."""
        request, buffer, handle = link.ring[0]
        try:
            request.check()
            header = decode(buffer)
            if header.source != peer:
                raise FrameError(f"source is {header.source}")
        except PeerLost:
            link.lost = True
            link.ring.popleft()
            return None
        except (Truncated, FrameError) as error:
            self.rejected += 1
            if not link.complained:
                link.complained = True
                _LOG.warning(
                    "dropped a frame of member %d: %s (said once; see rejected_messages)", peer, error
                )
            link.ring.popleft()
            self._post(peer, link, buffer, handle)
            return None
        self.messages_received += 1
        self.bytes_received += HEADER_BYTES + header.payload_bytes
        return Frame(header, buffer[HEADER_BYTES : HEADER_BYTES + header.payload_bytes])

    def _post(self, peer: int, link: _Link, buffer: Bytes, handle: Any) -> None:
        wipe(buffer)
        try:
            link.ring.append((self._transport.recv(peer, handle), buffer, handle))
        except PeerLost:
            link.lost = True

    def lost(self, peer: int) -> bool:
        """Whether ``peer`` is known to be gone."""
        return peer not in self._links or self._failed(peer)

    def _failed(self, peer: int) -> bool:
        link = self._links.get(peer) or self._parked[peer]
        return link.lost or not self._transport.alive(peer)

    def wait(
        self,
        ready: Callable[[], bool],
        *,
        deadline: float,
        waiting_for: Callable[[], Iterable[int]] = tuple,
        wake_fds: Sequence[int] = (),
    ) -> bool:
        """Make progress until ``ready()``: True; False when a wake fd is readable.

        Raises WaitTimeout, naming the members that ``waiting_for()`` gives, at ``deadline`` (time.monotonic()),
        and PeerLost when one of those is gone and has left no frame that would have made us ready.
        """
        if ready():
            return True
        gone: list[int] = []

        def ready_or_lost() -> bool:
            if ready():
                return True
            gone.extend(peer for peer in waiting_for() if self.lost(peer))
            return bool(gone)

        try:
            result = self._transport.wait(
                ready, deadline=deadline, wake_fds=wake_fds, before_sleep=ready_or_lost
            )
        except WaitTimeout:
            raise WaitTimeout(tuple(waiting_for())) from None
        if gone and not ready():
            raise PeerLost(gone[0])
        return result
