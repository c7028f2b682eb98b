"""Transport over UCX through UCXX's synchronous API: shared memory, TCP, and on their hosts RDMA and NVLink.

The only module that touches UCXX, whose Python API is private (``ucxx._lib``) and pinned. UCX reads its
environment when a context is made: the defaults below are set here, once, before the import, and never over
what the user has set.

What UCX does not see, only leases and deadlines do: a peer that is stopped or cut off, and over shared memory
a killed one that its parent has not reaped.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import select
import time
from collections.abc import Callable, Sequence
from typing import Any

from janus_transport.address import seal, unseal
from janus_transport.base import Bytes, PeerLost, Request, Transport, TransportError, Truncated, WaitTimeout

_DEFAULTS = {
    # Without it UCX silently drops shared memory for tcp once error handling is on.
    "UCX_MM_ERROR_HANDLING": "y",
    # A killed peer is noticed after one round.
    "UCX_KEEPALIVE_INTERVAL": "1s",
    # Else the first large message waits for the peer's answer over a lane that keepalive does not check, and
    # a peer killed meanwhile is never noticed.
    "UCX_RESOLVE_REMOTE_EP_ID": "y",
    # A blocking connect to a host that is cut off stands still for minutes. And one that is refused fails the making
    # of the endpoint, which leaves UCX an endpoint without lanes that its next round of keepalive follows to address 0.
    "UCX_TCP_CONN_NB": "y",
    "UCX_RNDV_THRESH": "256k",
    "UCX_TCP_TX_SEG_SIZE": "256k",
    "UCX_TCP_RX_SEG_SIZE": "256k",
    "UCX_TCP_SNDBUF": "4m",
    "UCX_TCP_RCVBUF": "4m",
    # The wheels set a variable that this UCX does not know, and warn of it in every process.
    "UCX_WARN_UNUSED_ENV_VARS": "n",
}
_CPU_TLS = "shm,tcp"
_TAG_KIND = 0x4A4E5331 << 32
"""High half of every tag: "JNS1". The low half is the sender's member number."""
_SLEEP_S = 5.0
"""UCX's keepalive wakes a sleeper each second by itself; more of our own would only cost an idle mesh."""
_SLEEP_RETIRED_S = 0.5
_STUCK_S = 0.05
_STUCK_LAME_S = 0.001
_NAP_S = 0.01
_RESOURCE = re.compile(r"^#\s+resource \d+ .*\s(\S+)/\S+\s*$", re.MULTILINE)
"""A line of a context's description, ``#  resource 0 : md 0 dev 0 flags -- tcp/eth0``: the transport's name."""


def _has_accelerator_or_rdma() -> bool:
    return os.path.exists("/dev/nvidiactl") or os.path.isdir("/sys/class/infiniband")


def _set_environment() -> None:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    if not _has_accelerator_or_rdma():
        os.environ.setdefault("UCX_TLS", _CPU_TLS)


def _load() -> tuple[Any, Any]:
    _set_environment()
    try:
        from ucxx._lib import libucxx
        from ucxx._lib.arr import Array
    except ImportError as error:
        raise TransportError(
            f"UCXX cannot be imported ({error}); install janus-mesh-transport[ucx], or a UCXX build for this machine"
        ) from error
    return libucxx, Array


def _poller(*fds: int) -> select.poll:
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return poller


class _UcxRequest(Request):
    __slots__ = ("_ucx", "buffer", "peer")

    def __init__(self, ucx: Any, buffer: Any, peer: int) -> None:
        self._ucx = ucx
        self.buffer = buffer  # UCX writes to it until the request has completed
        self.peer = peer

    def done(self) -> bool:
        completed: bool = self._ucx.completed
        return completed

    def check(self) -> None:
        try:
            self._ucx.check_error()
        except Exception as error:
            # UCXX's errors share no public base class.
            if type(error).__name__ in ("UCXXMessageTruncatedError", "UCXMessageTruncatedError"):
                raise Truncated(str(error)) from error
            raise PeerLost(self.peer, f"{type(error).__name__}: {error}") from error


class UcxTransport(Transport):
    """One UCX worker and an endpoint per peer, driven by the thread that steps."""

    name = "ucx"

    def __init__(self, member: int) -> None:
        super().__init__(member)
        self._ucx, self._array = _load()
        features = (self._ucx.Feature.TAG, self._ucx.Feature.WAKEUP)
        self._context = self._ucx.UCXContext({}, feature_flags=features)
        self._worker = self._ucx.UCXWorker(self._context)
        self._worker.init_blocking_progress_mode()
        self._address = seal(self.name, bytes(self._worker.address.tobytes()))
        self._endpoints: dict[int, Any] = {}
        self._tags: dict[int, Any] = {}
        self._send_tag = self._ucx.UCXXTag(_TAG_KIND | member)
        # Requests of closed endpoints, held until UCX lets go of their buffers.
        self._retired: list[_UcxRequest] = []
        self._open: dict[int, list[_UcxRequest]] = {}
        self._kept: list[Any] = []
        """Endpoints that were closed: few, and destroyed last."""
        self._failed = False
        self._closed = False
        self._pollers: tuple[tuple[int, ...], select.poll, select.poll] | None = None
        """Of the latest wait: wake fds, poller without and with UCX's descriptor."""

    @property
    def address(self) -> bytes:
        return self._address

    def describe(self) -> str:
        """``ucx: tcp, sysv, posix, cma``: what UCX has opened here; each pair takes the best both have."""
        opened = dict.fromkeys(_RESOURCE.findall(self._context.info))  # a transport has a row per device
        return f"ucx: {', '.join(opened) or os.environ.get('UCX_TLS', 'auto')}"

    def connect(self, peer: int, address: bytes) -> None:
        self.disconnect(peer)
        try:
            remote = self._ucx.UCXAddress.create_from_buffer(unseal(self.name, address))
            endpoint = self._ucx.UCXEndpoint.create_from_worker_address(self._worker, remote, True)
        except Exception as error:  # UCXX's errors share no public base class
            raise PeerLost(peer, f"cannot connect: {type(error).__name__}: {error}") from error
        self._endpoints[peer] = endpoint
        self._tags[peer] = self._ucx.UCXXTag(_TAG_KIND | peer)
        self._open[peer] = []

    def disconnect(self, peer: int) -> None:
        endpoint = self._endpoints.pop(peer, None)
        if endpoint is None:
            return
        # The blocking kind, which forces and takes microseconds even when the peer is stopped: the other leaves
        # the posted receives behind, and they take the messages of a peer that comes back with its number.
        if endpoint.alive:
            endpoint.close_blocking()
        else:
            self._failed = True
        self._kept.append(endpoint)
        self._retire(peer)

    def _retire(self, peer: int) -> None:
        self._retired = [r for r in (*self._retired, *self._open.pop(peer, ())) if not r.done()]

    def alive(self, peer: int) -> bool:
        endpoint = self._endpoints.get(peer)
        return endpoint is not None and bool(endpoint.alive)

    def prepare(self, buffer: Bytes) -> Any:
        if not buffer.flags.c_contiguous:
            raise ValueError("a transport buffer must be contiguous")
        return self._array(buffer)

    def send(self, peer: int, handle: Any) -> Request:
        endpoint = self._endpoints.get(peer)
        if endpoint is None or not endpoint.alive:
            raise self._unusable(peer)
        try:
            ucx = endpoint.tag_send(handle, self._send_tag)
        except Exception as error:  # UCXX's errors share no public base class
            raise PeerLost(peer, f"{type(error).__name__}: {error}") from error
        return self._track(_UcxRequest(ucx, handle, peer))

    def recv(self, peer: int, handle: Any) -> Request:
        endpoint = self._endpoints.get(peer)
        if endpoint is None or not endpoint.alive:
            raise self._unusable(peer)
        try:
            ucx = endpoint.tag_recv(handle, self._tags[peer])
        except Exception as error:  # UCXX's errors share no public base class
            raise PeerLost(peer, f"{type(error).__name__}: {error}") from error
        return self._track(_UcxRequest(ucx, handle, peer))

    def _unusable(self, peer: int) -> PeerLost:
        return PeerLost(peer, "its endpoint has failed" if peer in self._endpoints else "not connected")

    def _track(self, request: _UcxRequest) -> _UcxRequest:
        under_way = self._open[request.peer]
        under_way.append(request)
        if len(under_way) > 64:
            self._open[request.peer] = [r for r in under_way if not r.done()]
        return request

    def wait(
        self,
        ready: Callable[[], bool],
        *,
        deadline: float,
        wake_fds: Sequence[int] = (),
        spin_us: int = 50,
        before_sleep: Callable[[], bool] | None = None,
    ) -> bool:
        worker = self._worker
        progress = worker.progress
        last_look = before_sleep or ready
        progress()
        if ready():
            return True
        spin_until = time.monotonic() + spin_us * 1e-6
        stuck_since = 0.0
        while True:
            progress()
            if ready():
                return True
            now = time.monotonic()
            if now >= deadline:
                raise WaitTimeout
            if now < spin_until:
                os.sched_yield()
                continue
            if self._pollers is None or self._pollers[0] != tuple(wake_fds):
                sleeper = _poller(worker.epoll_file_descriptor, *wake_fds)
                self._pollers = (tuple(wake_fds), _poller(*wake_fds), sleeper)
            _, napper, sleeper = self._pollers
            # Arming fails while something is pending: then there is progress to make first. What completes
            # before arm() raises no event, hence the last look.
            armed = worker.arm()
            if last_look():
                return True
            if armed:
                stuck_since = 0.0
                longest = _SLEEP_RETIRED_S if self._retired else _SLEEP_S
                events = sleeper.poll(math.ceil(min(deadline - now, longest) * 1000))
            else:
                stuck_since = stuck_since or now
                if now - stuck_since < (_STUCK_LAME_S if self._lame() else _STUCK_S):
                    os.sched_yield()
                    continue
                # UCX's descriptor says nothing, or cries all the time, while it is not armed.
                events = napper.poll(math.ceil(min(deadline - now, (now - stuck_since) / 2, _NAP_S) * 1000))
            if any(fd in wake_fds for fd, _ in events):
                return False
            if self._retired:
                self._retired = [r for r in self._retired if not r.done()]

    def _lame(self) -> bool:
        """Whether a peer has failed. One killed amid a transfer over shared memory leaves UCX with a flush that
        it tries again for ever; it then cannot be armed, and waits nap in between instead of spinning."""
        return self._failed or not all(endpoint.alive for endpoint in self._endpoints.values())

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for peer in list(self._endpoints):
            self.disconnect(peer)
        # No progress from here on, and nothing is destroyed: what UCX may still write to outlives it, until the
        # process ends.
        for kept in (self._context, self._worker, self._retired, self._kept):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
