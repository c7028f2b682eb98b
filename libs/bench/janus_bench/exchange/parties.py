"""What one party of a measurement does: a process of its own, or a thread for the transport in process.

Members 1..m are attention workers, the next n are MoE workers, as in a layer of a step: each attention worker
sends its hidden states to every MoE worker and waits for an answer of the same size from each.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
from janus_transport import Exchange, Header, Kind, Transport, WaitTimeout, create_transport

PATIENCE_S = 60.0
_LINGER_S = 1.0
Turn = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a party is told."""

    member: int
    transport: str
    """``ucx`` or ``inproc``."""
    tls: str
    """UCX_TLS of the process; empty: UCX's own choice."""
    attention: int
    moe: int
    sizes: tuple[int, ...]
    """Payload bytes."""
    rounds: int
    count: int
    bare: bool
    """Also UCXX itself, in turns; a pair only."""


def party(connection: Connection, part: Part) -> None:
    """Sends its address, hears all addresses, says ready, hears go, measures; member 1 sends the samples.

    Samples: {(kind, size): seconds of each}. An error is sent as ("error", traceback).
    """
    try:
        if part.tls:
            os.environ["UCX_TLS"] = part.tls
        transport = create_transport(part.transport, member=part.member)
        connection.send(transport.address)
        addresses: dict[int, bytes] = connection.recv()
        exchange = Exchange(transport, member=part.member, max_payload=max(part.sizes))
        attention = range(1, part.attention + 1)
        moe = range(part.attention + 1, part.attention + part.moe + 1)
        peers = moe if part.member in attention else attention
        exchange.set_peers({member: addresses[member] for member in peers})
        connection.send("ready")
        connection.recv()
        samples: dict[tuple[str, int], list[float]] = {}
        for size in part.sizes:
            turns = {"exchange": _layer(exchange, part.member, peers, size, first=part.member in attention)}
            if part.bare:
                turns["bare"] = _bare(transport, peers[0], size, first=part.member in attention)
            if size == part.sizes[0]:
                # The first messages find connections and memory that are not ready yet.
                for turn in (*turns.values(),) * part.count:
                    turn()
            for _, (kind, turn) in itertools.product(range(part.rounds), turns.items()):
                for i in range(part.count):
                    began = time.perf_counter()
                    turn()
                    if i >= part.count // 10:
                        samples.setdefault((kind, size), []).append(time.perf_counter() - began)
        if part.member == 1:
            connection.send(samples)
        try:
            # Peers may still wait for our part of the last message.
            exchange.wait(lambda: False, deadline=time.monotonic() + _LINGER_S)
        except WaitTimeout:
            transport.close()
    except Exception:  # noqa: BLE001 - it is the other side's to raise
        with contextlib.suppress(OSError):  # unless that has failed itself
            connection.send(("error", traceback.format_exc()))


def _layer(exchange: Exchange, member: int, peers: Sequence[int], size: int, *, first: bool) -> Turn:
    """One layer, as an attention worker (``first``) or a MoE worker sees it."""
    buffer = exchange.allocate()
    step = itertools.count()
    held: list[bool] = []
    """Not empty: the last answers are still in their buffers."""
    kind = Kind.HIDDEN if first else Kind.PARTIAL

    def send() -> None:
        exchange.reclaim(buffer)
        header = Header(kind=kind, epoch=1, step=next(step), layer=0, source=member, payload_bytes=size)
        exchange.send(peers, header, buffer)

    def receive() -> None:
        exchange.wait(
            lambda: all(exchange.peek(peer) is not None for peer in peers),
            deadline=time.monotonic() + PATIENCE_S,
            waiting_for=lambda: [peer for peer in peers if exchange.peek(peer) is None],
        )

    def release() -> None:
        for peer in peers:
            exchange.pop(peer)

    def turn() -> None:
        # As the engines do: buffers are given back while the other side has something to do.
        if first:
            send()
            if held:
                release()
            receive()
            held.append(True)
        else:
            receive()
            send()
            release()

    return turn


def _bare(transport: Transport, peer: int, size: int, *, first: bool) -> Turn:
    """A round trip over UCXX itself: the same wait loop without frames, rings, liveness checks or deadlines."""
    from janus_transport.ucx import UcxTransport

    assert isinstance(transport, UcxTransport)
    ucx, array, worker = transport._ucx, transport._array, transport._worker
    endpoint = transport._endpoints[peer]
    out, into = np.zeros(max(size, 1), np.uint8), np.zeros(max(size, 1), np.uint8)
    # Tags of their own, so that the exchange's posted receives do not take these messages.
    there, back = ucx.UCXXTag(0x1000 + transport.member), ucx.UCXXTag(0x1000 + peer)

    def finish(*requests: object) -> None:
        spin = time.monotonic() + 50e-6
        while True:
            worker.progress()
            if all(r.completed for r in requests):  # type: ignore[attr-defined]
                return
            if time.monotonic() < spin:
                os.sched_yield()
            else:
                worker.progress_worker_event(100)

    def ping() -> None:
        receive = endpoint.tag_recv(array(into), back)
        finish(endpoint.tag_send(array(out), there), receive)

    def pong() -> None:
        finish(endpoint.tag_recv(array(into), back))
        finish(endpoint.tag_send(array(out), there))

    return ping if first else pong
