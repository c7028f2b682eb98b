"""What a transport offers: byte messages between members, in order per pair, and waits with deadlines.

::

    TransportError
    ├── PeerLost       the peer's endpoint failed or was closed
    ├── Truncated      a message was larger than the receive buffer posted for it
    ├── WaitTimeout    the deadline passed; names the members waited for
    └── FrameError     bytes that are no frame (framing.py)
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
"""Contiguous uint8 [n]."""


class TransportError(Exception):
    """Base of this package's errors."""


class PeerLost(TransportError):
    """A peer is gone; ``member`` names it."""

    def __init__(self, member: int, cause: str = "") -> None:
        super().__init__(f"member {member} is gone" + (f": {cause}" if cause else ""))
        self.member = member


class Truncated(TransportError):
    """A message did not fit the receive buffer; its content is undefined."""


class WaitTimeout(TransportError):
    """A wait's deadline passed."""

    def __init__(self, members: Sequence[int] = ()) -> None:
        names = ", ".join(str(member) for member in members) or "nothing in particular"
        super().__init__(f"the deadline passed while waiting for members: {names}")
        self.members = tuple(members)


class Request(abc.ABC):
    """A send or receive under way. Holds its buffer until it has completed."""

    __slots__ = ()

    @abc.abstractmethod
    def done(self) -> bool:
        """Whether it has completed, well or not. Cheap; makes no progress by itself."""

    @abc.abstractmethod
    def check(self) -> None:
        """Raise PeerLost or Truncated when it failed. Only once it is done."""


class Transport(abc.ABC):
    """Messages between members. One thread uses it; another may read ``address``."""

    name: str
    """Registry name."""

    def __init__(self, member: int) -> None:
        self.member = member

    @property
    @abc.abstractmethod
    def address(self) -> bytes:
        """What peers need to connect, good for this process's life."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Name and the channels in use, for people."""

    @abc.abstractmethod
    def connect(self, peer: int, address: bytes) -> None:
        """Make ``peer`` reachable, anew when it was connected. Returns at once.

        A bad address or a dead peer shows as PeerLost, here or later.
        """

    @abc.abstractmethod
    def disconnect(self, peer: int) -> None:
        """Forget ``peer``; what is under way with it is cancelled. Unknown peers are ignored."""

    @abc.abstractmethod
    def alive(self, peer: int) -> bool:
        """Whether the endpoint to ``peer`` is usable as far as is known."""

    @abc.abstractmethod
    def prepare(self, buffer: Bytes) -> Any:
        """A handle of a buffer for :meth:`send` and :meth:`recv`, which may be used again and again."""

    @abc.abstractmethod
    def send(self, peer: int, handle: Any) -> Request:
        """Start sending a prepared buffer, which must not change until done. Raises PeerLost."""

    @abc.abstractmethod
    def recv(self, peer: int, handle: Any) -> Request:
        """Post a receive into a prepared buffer for the next message of ``peer``. Raises PeerLost."""

    @abc.abstractmethod
    def wait(
        self,
        ready: Callable[[], bool],
        *,
        deadline: float,
        wake_fds: Sequence[int] = (),
        spin_us: int = 50,
        before_sleep: Callable[[], bool] | None = None,
    ) -> bool:
        """Make progress until ``ready()``.

        Spins ``spin_us`` microseconds, giving the core away, then sleeps until something happens: waiting
        uses no CPU.

        Args:
            deadline: time.monotonic() value; WaitTimeout after it.
            wake_fds: file descriptors that end the wait when readable.
            before_sleep: a dearer form of ``ready``, asked in its place before every sleep, after everything
                that has happened so far was seen: what it overlooks is slept through.

        Returns:
            True when ``ready()`` or ``before_sleep()``, False when one of ``wake_fds`` is readable.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release everything. Peers see the loss."""
