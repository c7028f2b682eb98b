"""Transport between threads of one process, with the semantics of the real ones. For tests."""

from __future__ import annotations

import os
import select
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

from janus_transport.base import Bytes, PeerLost, Request, Transport, Truncated, WaitTimeout


class _Received(Request):
    __slots__ = ("_error", "_ready", "buffer", "peer")

    def __init__(self, peer: int, buffer: Bytes) -> None:
        self.peer = peer
        self.buffer = buffer
        self._ready = False
        self._error: Exception | None = None

    def finish(self, data: bytes | None, error: Exception | None = None) -> None:
        if data is not None:
            if len(data) > self.buffer.nbytes:
                error = Truncated(f"{len(data)} bytes into a buffer of {self.buffer.nbytes}")
            else:
                self.buffer[: len(data)] = memoryview(data)
        self._error = error
        self._ready = True

    def done(self) -> bool:
        return self._ready

    def check(self) -> None:
        if self._error is not None:
            raise self._error


class _Sent(Request):
    """Already copied."""

    __slots__ = ()

    def done(self) -> bool:
        return True

    def check(self) -> None:
        return None


_SENT = _Sent()


class _Hub:
    """All transports of the process, by address."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.by_address: dict[bytes, InprocTransport] = {}


_HUB = _Hub()


class InprocTransport(Transport):
    """Copies messages between threads; a condition in an eventfd wakes sleepers."""

    name = "inproc"

    def __init__(self, member: int) -> None:
        super().__init__(member)
        self._address = b"inproc:" + os.urandom(8)
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._peers: dict[int, bytes] = {}
        # Both by the sender's member number, guarded by the hub's lock.
        self._posted: defaultdict[int, deque[_Received]] = defaultdict(deque)
        self._unexpected: defaultdict[int, deque[bytes]] = defaultdict(deque)
        self._closed = False
        with _HUB.lock:
            _HUB.by_address[self._address] = self

    @property
    def address(self) -> bytes:
        return self._address

    def describe(self) -> str:
        return "inproc"

    def connect(self, peer: int, address: bytes) -> None:
        self._peers[peer] = address

    def disconnect(self, peer: int) -> None:
        self._peers.pop(peer, None)
        with _HUB.lock:
            for request in self._posted.pop(peer, ()):
                request.finish(None, PeerLost(peer, "disconnected"))

    def alive(self, peer: int) -> bool:
        address = self._peers.get(peer)
        return address is not None and address in _HUB.by_address

    def prepare(self, buffer: Bytes) -> Bytes:
        return buffer

    def send(self, peer: int, handle: Bytes) -> Request:
        with _HUB.lock:
            target = _HUB.by_address.get(self._peers.get(peer, b""))
            if target is None:
                raise PeerLost(peer)
            target._deliver(self.member, handle.tobytes())
        return _SENT

    def recv(self, peer: int, handle: Bytes) -> Request:
        request = _Received(peer, handle)
        with _HUB.lock:
            if self._unexpected[peer]:
                request.finish(self._unexpected[peer].popleft())
            elif peer not in self._peers:
                raise PeerLost(peer, "not connected")
            else:
                self._posted[peer].append(request)
        return request

    def _deliver(self, source: int, data: bytes) -> None:
        if self._posted[source]:
            self._posted[source].popleft().finish(data)
        else:
            self._unexpected[source].append(data)
        self._notify()

    def _notify(self) -> None:
        if not self._closed:
            os.eventfd_write(self._event, 1)

    def wait(
        self,
        ready: Callable[[], bool],
        *,
        deadline: float,
        wake_fds: Sequence[int] = (),
        spin_us: int = 50,
        before_sleep: Callable[[], bool] | None = None,
    ) -> bool:
        del spin_us  # threads of one interpreter gain nothing by spinning
        poller = select.poll()
        for fd in (self._event, *wake_fds):
            poller.register(fd, select.POLLIN)
        last_look = before_sleep or ready
        while True:
            if last_look():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                raise WaitTimeout
            events = [fd for fd, _ in poller.poll(left * 1000 + 1)]
            if self._event in events:
                os.eventfd_read(self._event)
            elif events:
                return False

    def close(self) -> None:
        with _HUB.lock:
            if self._closed:
                return
            self._closed = True
            _HUB.by_address.pop(self._address, None)
            # As on a network: those who talk to us notice.
            for other in _HUB.by_address.values():
                other._notify()
        os.close(self._event)
