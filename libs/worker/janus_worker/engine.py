"""The loop that both engines share: control messages, cohort adoption, waits that say whom they wait for.

An engine is one thread with a transport and a link to its control process; no gRPC, no Redis. A step that a
new cohort, a lost peer or a newer epoch interrupts is abandoned and, on attention workers, repeated whole; for a
cohort that follows this one with nobody lost the step is finished first.
"""

from __future__ import annotations

import abc
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from janus_transport import Exchange, Frame, PeerLost, Transport, WaitTimeout

from janus_worker.link import ControlLink, Message
from janus_worker.lockstep import (
    CohortInbox,
    EngineCohort,
    Interrupted,
    NewerEpoch,
    Peer,
    ProtocolError,
    members_of,
)

_LOG = logging.getLogger("janus.worker")
_REPORT_S = 1.0
_LOOK_S = 5.0
"""A sleep is interrupted so often to look whether something has come that did not wake it."""
_SPANS_HELD = 4096
LATE_S = 0.7
"""Whom a step has waited for so long is asked after; a long step costs a question, nothing else."""
_LATE_EVERY_S = 2.0
_FINISH_S = 2.0
"""A step is finished before a cohort is taken up that follows this one with nobody lost, unless it takes longer."""


class Stop(Exception):
    """The control process asked the engine to end."""


class CohortEngine(abc.ABC):
    """Base of :class:`janus_attention.engine.AttentionEngine` and :class:`janus_moe.engine.MoeEngine`."""

    def __init__(
        self, transport: Transport, link: ControlLink, *, member: int, max_payload: int, stall_s: float
    ) -> None:
        self.member = member
        self.transport = transport
        self.exchange = Exchange(transport, member=member, max_payload=max_payload)
        self.inbox = CohortInbox(self.exchange)
        self.cohort: EngineCohort | None = None
        self.step = 0
        self.asleep = True
        self.wake_fds = [link.fileno()]
        """What ends a wait when readable, for :meth:`intake` to look at."""
        self._link = link
        self._stall_s = stall_s
        self.amid = False
        """Between a step's first exchange and its last: a cohort that follows with nobody lost waits for its end."""
        self.only_layout = False
        """Whether the cohort that is taken up differs from the one before in its layout alone."""
        self._announced: Message | None = None
        self._finish_until = 0.0
        self._why = "the first one"
        self._told = False
        """Somebody was told of whom this step waits for."""
        self._late_told = self._stall_told = 0.0
        self._spans: list[dict[str, Any]] = []
        self._reported = 0.0

    # What an engine adds ----------------------------------------------------------------------

    @abc.abstractmethod
    def hello(self) -> dict[str, Any]:
        """What the control process must know before the lease says ready."""

    @abc.abstractmethod
    def adopt(self, cohort: EngineCohort, body: dict[str, Any]) -> int | None:
        """Take up a cohort; the rank in it, or None when this worker is not a member."""

    def prepare(self, peers: Sequence[Peer]) -> None:
        """Link to these, of a cohort that this worker is not in yet: when it joins they are made, on both sides."""
        try:
            self.exchange.prepare({peer.member: peer.address for peer in peers})
        except (PeerLost, WaitTimeout) as error:
            _LOG.info("links are made when they are needed: %s", error)

    @abc.abstractmethod
    def run_step(self) -> None:
        """One step of the cohort, or a sleep until there is one."""

    @abc.abstractmethod
    def handle(self, message: Message) -> None:
        """A control message other than cohort and stop."""

    @abc.abstractmethod
    def statistics(self) -> dict[str, Any]:
        """Cumulative counters and gauges for the control process: numbers, and what GetStats has besides."""

    # The loop ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until the control process stops the engine; raises ChildGone when it goes away."""
        self._link.send(
            {
                "t": "hello",
                "address": self.transport.address.hex(),
                "transport": self.transport.describe(),
                **self.hello(),
            }
        )
        while True:
            self.amid = False
            try:
                if self._announced is not None:
                    self._take_up(self._announced)
                elif self.cohort is None:
                    self._wait_for_cohort()
                else:
                    self.run_step()
            except Stop:
                self._link.flush()
                return
            except Interrupted:
                continue
            except NewerEpoch as newer:
                _LOG.info("step %d abandoned: %s", self.step, newer)
                self._leave(str(newer))
            except PeerLost as lost:
                self._fault(lost.member, "is gone")
            except ProtocolError as error:
                self._fault(error.member, str(error))

    def _take_up(self, message: Message) -> None:
        self._announced = None
        cohort = EngineCohort.from_message(message.body)
        self.cohort = None
        rank = self.adopt(cohort, message.body)
        if rank is None:
            self._leave(f"this worker is not in epoch {cohort.epoch}")
            return
        self.cohort, self.step, self.asleep = cohort, 0, True
        self._link.send(
            {"t": "epoch", "epoch": cohort.epoch, "rank": rank, "layout_version": cohort.layout_version}
        )
        self.report(force=True)

    def _fault(self, member: int, reason: str) -> None:
        name = self.cohort.name(member) if self.cohort else f"member {member}"
        _LOG.warning("step %d abandoned: %s %s; waiting for a new cohort", self.step, name, reason)
        self._link.send({"t": "fault", "member": member, "reason": f"{name} {reason}"})
        self._leave(f"{name} {reason}")

    def _leave(self, why: str) -> None:
        """Serve no cohort until the next one is announced; the loop then waits for it."""
        self.cohort = None
        self._why = why

    def _wait_for_cohort(self) -> None:
        self._link.send({"t": "waiting", "detail": f"a cohort: {self._why}"})
        self.report(force=True)
        while self._announced is None:
            self.wait(lambda: False, waiting_for=tuple, quiet=True)

    # Waiting ----------------------------------------------------------------------------------

    def wait(
        self,
        ready: Callable[[], bool],
        *,
        waiting_for: Callable[[], Iterable[int]],
        quiet: bool = False,
        since: float | None = None,
    ) -> bool:
        """Wait for ``ready()``; True when it is, False after control messages were handled.

        Each ``stall_s`` it says whom it waits for, and once before that who is late, unless ``quiet`` (nothing is
        due). ``since``: when a wait that goes on began (time.monotonic()), as messages may come more often than that.
        Raises Interrupted, Stop, NewerEpoch, PeerLost.
        """
        now = time.monotonic()
        started = now if since is None else since
        stalled = now + _LOOK_S if quiet else max(started, self._stall_told) + self._stall_s
        while True:
            late = max(started + LATE_S, self._late_told + _LATE_EVERY_S)
            deadline = stalled if quiet or self._late_told > started else min(late, stalled)
            if self._announced is not None:
                deadline = min(deadline, self._finish_until)
            try:
                if self.exchange.wait(
                    ready, deadline=deadline, waiting_for=waiting_for, wake_fds=self.wake_fds
                ):
                    if self._told:
                        self._told = False
                        self._link.send({"t": "resumed"})
                    return True
                self.intake()
                return False
            except WaitTimeout:
                if self._announced is not None:  # whom the step waits for may have taken it up already
                    raise Interrupted from None
                now = time.monotonic()
                if quiet:
                    stalled = now + _LOOK_S
                    if ready():
                        _LOG.warning(
                            "a frame of epoch %d had come and did not wake this worker", self.inbox.epoch
                        )
                    continue
                if now < stalled:
                    self._told, self._late_told = True, now
                    self._link.send({"t": "late", "members": list(waiting_for())})
                else:
                    self._stall_told, stalled = now, now + self._stall_s
                    self._stalled(now - started, waiting_for())

    def await_(self, ready: Callable[[], bool], waiting_for: Callable[[], Iterable[int]]) -> None:
        """Wait for ``ready()``, control messages handled meanwhile."""
        since = time.monotonic()
        while not self.wait(ready, waiting_for=waiting_for, since=since):
            pass

    def await_frames(self, members: Sequence[int], peek: Callable[[int], Frame | None]) -> list[Frame]:
        """One frame of each member, as ``peek`` sees it; not consumed."""
        frames: list[Frame] = []

        def ready() -> bool:
            # A frame stays until it is consumed, so who has sent one is not asked again.
            while len(frames) < len(members) and (frame := peek(members[len(frames)])) is not None:
                frames.append(frame)
            return len(frames) == len(members)

        if not ready():
            self.await_(ready, lambda: [m for m in members if peek(m) is None])
        return frames

    def _stalled(self, seconds: float, members: Iterable[int]) -> None:
        waited_for = list(members)
        names = ", ".join(self.cohort.name(m) if self.cohort else f"member {m}" for m in waited_for)
        detail = f"step {self.step} of epoch {self.inbox.epoch} has waited {seconds:.0f} s for {names}"
        _LOG.warning("%s", detail)
        self._told = True
        self._link.send({"t": "stall", "detail": detail, "members": waited_for})

    def intake(self) -> None:
        """Handle control messages. Raises Stop, or Interrupted for a cohort that does not wait for the step's end."""
        for message in self._link.poll():
            kind = message.body.get("t")
            if kind == "stop":
                raise Stop
            if kind == "cohort":
                follows = message.body.get("follows")
                # Two may come within a step; the second then follows the first, which is skipped.
                skipped = self._finish_until if self._announced is not None else 0.0
                after = self._announced.body["epoch"] if skipped and self._announced is not None else None
                self._announced = message
                self.only_layout = self.cohort is not None and self.cohort.members == members_of(message.body)
                orderly = self.only_layout or (
                    self.cohort is not None and follows is not None and follows in (self.cohort.epoch, after)
                )
                finish = skipped or time.monotonic() + _FINISH_S
                self._finish_until = finish if orderly else 0.0
            else:
                self.handle(message)
        if self._announced is not None and not (self.amid and time.monotonic() < self._finish_until):
            raise Interrupted

    @property
    def announced(self) -> bool:
        """Whether a new cohort waits for the step's end."""
        return self._announced is not None

    # Reports ----------------------------------------------------------------------------------

    def tell(self, body: dict[str, Any], blob: bytes = b"") -> None:
        """Send a message to the control process."""
        self._link.send(body, blob)

    def span(self, **span: Any) -> None:
        """Keep a measured span until the next report; beyond a bound the oldest reports go first."""
        self._spans.append(span)
        if len(self._spans) >= _SPANS_HELD:
            self._flush_spans()

    def report(self, *, force: bool = False) -> None:
        """Statistics and spans to the control process, at most once a second unless forced."""
        now = time.monotonic()
        if not force and now - self._reported < _REPORT_S:
            return
        self._reported = now
        self._flush_spans()
        exchange = self.exchange
        messages, size = exchange.internode()
        self._link.send(
            {
                "t": "stats",
                "stats": {
                    **self.statistics(),
                    "exchange_bytes_sent": exchange.bytes_sent,
                    "exchange_messages_sent": exchange.messages_sent,
                    "internode_messages_sent": messages,
                    "internode_bytes_sent": size,
                    "exchange_bytes_received": exchange.bytes_received,
                    "rejected_messages": exchange.rejected + self.inbox.stale,
                },
            }
        )

    def _flush_spans(self) -> None:
        if self._spans:
            spans, self._spans = self._spans, []
            self._link.send({"t": "spans", "spans": spans})
