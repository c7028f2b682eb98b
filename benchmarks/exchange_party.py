"""One worker of ``bench_exchange_nodes.py``: the real relays and frames, with nothing computed in between."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a worker is told."""

    me: int
    """Worker number: attention ranks first."""
    attention: tuple[str, ...]
    moe: tuple[str, ...]
    """Node labels."""
    hidden: int
    tokens: tuple[int, ...]
    """Rows of the whole cohort, one measurement each."""
    rounds: int
    count: int
    """Layers per scheme and round, at most; the first fifth is not counted."""
    pid: int
    """Whose namespaces to enter; 0: none."""


_ELEMENTS = 3 << 20
"""Hidden states of a turn: of large layers there are fewer."""


def rows_of(total: int, m: int) -> dict[int, int]:
    """Rows by attention rank; with fewer rows than ranks the others are idle."""
    return {rank: total // m + (rank < total % m) for rank in range(m) if total // m + (rank < total % m)}


def most_rows(tokens: Sequence[int], attention: Sequence[str]) -> int:
    """Rows that a frame has room for: all of the fullest node's."""
    crowd = max(attention.count(label) for label in attention)
    return -(-max(tokens) // len(attention)) * crowd


def party(connection: Connection, task: Task) -> None:
    """Sends its address, hears all, measures; says what it found, or ("error", traceback)."""
    try:
        if task.pid:
            from janus_testing.namespaces import enter

            enter(task.pid)
        os.environ["OMP_NUM_THREADS"] = "1"
        import torch
        from janus_kernels import set_num_threads

        torch.set_num_threads(1)
        set_num_threads(1)
        _Worker(connection, task).run()
    except Exception:  # noqa: BLE001 - it is the parent's to raise
        with suppress(OSError):
            connection.send(("error", traceback.format_exc()))


class _Worker:
    """As an engine, to the relays: a member with an exchange, and waits."""

    def __init__(self, connection: Connection, task: Task) -> None:
        from janus_transport import Exchange, create_transport
        from janus_worker.lockstep import CohortInbox

        self.task, self.connection = task, connection
        self.member = task.me + 1
        self.most = most_rows(task.tokens, task.attention)
        self.transport = create_transport("ucx", member=self.member)
        self.exchange = Exchange(
            self.transport, member=self.member, max_payload=8 * task.hidden * self.most, depth=4
        )
        self.inbox = CohortInbox(self.exchange)

    def await_(self, ready: Callable[[], bool], waiting_for: Callable[[], Iterable[int]]) -> None:
        self.exchange.wait(ready, deadline=time.monotonic() + 60, waiting_for=waiting_for)

    def await_frames(self, members: Sequence[int], peek: Callable[[int], Any]) -> list[Any]:
        def ready() -> bool:
            return all(peek(member) is not None for member in members)

        self.await_(ready, lambda: [m for m in members if peek(m) is None])
        return [peek(member) for member in members]

    def run(self) -> None:
        from janus_worker.lockstep import EngineCohort, Peer

        task = self.task
        self.connection.send(self.transport.address)
        addresses: list[bytes] = self.connection.recv()
        m = len(task.attention)
        peers = [
            Peer(member=i + 1, address=address, node=node)
            for i, (address, node) in enumerate(zip(addresses, (*task.attention, *task.moe), strict=True))
        ]
        self.cohort = EngineCohort(
            epoch=1, attention=tuple(peers[:m]), moe=tuple(peers[m:]), gating="moe", scheduling="optimal",
            layout_version=1,
        )  # fmt: skip
        others = self.cohort.moe if task.me < m else self.cohort.attention
        self.inbox.adopt(self.cohort, (*others, *self.cohort.mates(self.member)))
        self.connection.send("ready")
        self.connection.recv()
        links = self._profile()
        layers = self._attention() if task.me < m else self._moe()
        samples: dict[tuple[int, int], list[float]] = {}
        sent: dict[tuple[int, int], tuple[int, int]] = {}
        for total, scheme, seconds, crossed in layers:
            if seconds is not None:
                samples.setdefault((total, scheme), []).append(seconds)
            sent[total, scheme] = crossed
        self.connection.send((samples, sent, links))
        # Large messages need their sender until the last one has arrived.
        self.exchange.wait(
            lambda: False, deadline=time.monotonic() + 600, wake_fds=[self.connection.fileno()]
        )
        self.transport.close()

    def _profile(self) -> Any:
        """The coordinator measures; the others echo until it says that it is done."""
        from janus_transport import Header, Kind
        from janus_worker.profile import measure_links

        m, me = len(self.task.attention), self.task.me
        coordinator = m + 1
        if self.member == coordinator:
            links = measure_links(self, self.cohort)  # type: ignore[arg-type]
            linked = [*range(1, m + 1), *(w + 1 for w in self.cohort.topology.mates(me))]
            done = Header(kind=Kind.WAKE, epoch=1, step=0, source=self.member)
            self.exchange.send(linked, done, self.exchange.allocate())
            return links
        if me < m or not self.cohort.topology.remote(me, m):
            self.await_frames([coordinator], self.inbox.peek)
            self.exchange.pop(coordinator)
        return None

    def _schedule(self) -> Iterator[tuple[int, int, int, bool]]:
        """(rows, scheme, step, counted) of every layer, the same on all workers."""
        step = 0
        for total in self.task.tokens:
            count = max(3, min(self.task.count, _ELEMENTS // (total * self.task.hidden)))
            for _ in range(self.task.rounds):
                for scheme in (0, 1, 2):
                    for i in range(count):
                        step += 1
                        yield total, scheme, step, i >= count // 5

    def _crossed(self, before: tuple[int, int]) -> tuple[int, int]:
        now = self.exchange.internode()
        return now[0] - before[0], now[1] - before[1]

    def _attention(self) -> Iterator[tuple[int, int, float | None, tuple[int, int]]]:
        import torch
        from janus_attention.relay import AttentionRelay
        from janus_kernels.ops import combine
        from janus_transport import Header, Kind
        from janus_worker.packing import Needs

        task, exchange = self.task, self.exchange
        relay = AttentionRelay(self, self.inbox.peek, hidden=task.hidden, topk=1, most=self.most)  # type: ignore[arg-type]
        relay.adopt(self.cohort, Needs((), 0))
        buffer = exchange.allocate()
        moe = [peer.member for peer in self.cohort.moe]
        for total, scheme, step, counted in self._schedule():
            tokens = rows_of(total, len(task.attention))
            mine = tokens.get(task.me, 0)
            if not mine:
                continue
            x_TD = np.ones((mine, task.hidden), np.float32)
            out_TD = torch.empty(mine, task.hidden)
            before = exchange.internode()
            began = time.perf_counter()
            exchange.reclaim(buffer)
            size = x_TD.nbytes
            buffer.payload[:size].view(np.float32).reshape(x_TD.shape)[:] = x_TD
            header = Header(
                kind=Kind.HIDDEN, epoch=1, step=step, layer=1, source=self.member, tokens=mine, topk=1,
                payload_bytes=size, scheme=scheme,
            )  # fmt: skip
            if scheme:
                plan = relay.plan(scheme, tuple(tokens))
                relay.send(plan, header, buffer)
                total_TD, _ = relay.collect(plan, header, lambda frame: None)
                combine([total_TD], out_TD)
            else:
                exchange.send(moe, header, buffer)
                frames = self.await_frames(moe, self.inbox.peek)
                views = [frame.payload.view(np.float64).reshape(mine, task.hidden) for frame in frames]
                combine([torch.from_numpy(view) for view in views], out_TD)
                for member in moe:
                    exchange.pop(member)
            took = time.perf_counter() - began
            yield total, scheme, took if counted else None, self._crossed(before)

    def _moe(self) -> Iterator[tuple[int, int, None, tuple[int, int]]]:
        import torch
        from janus_moe.gather import gather
        from janus_moe.relay import MoeRelay
        from janus_transport import Header, Kind
        from janus_worker.packing import Needs

        task, exchange = self.task, self.exchange
        relay = MoeRelay(  # type: ignore[arg-type]
            self, self.inbox.peek, hidden=task.hidden, topk=1, most=self.most
        )
        relay.adopt(self.cohort, Needs((), 0))
        replies = [exchange.allocate() for _ in task.attention]
        for total, scheme, step, _ in self._schedule():
            tokens = rows_of(total, len(task.attention))
            relay.begin(0, tokens)
            before = exchange.internode()
            answer = Header(
                kind=Kind.PARTIAL, epoch=1, step=step, layer=1, source=self.member, scheme=scheme, digest=1
            )
            if scheme:
                first = relay.await_first(step, 0, last=False)
                assert first is not None and first.scheme == scheme
                relayed = relay.gather(first, lambda frame: None)
                sums_TD = torch.zeros(relayed.x_TD.shape, dtype=torch.float64)
                relay.answer(relayed, answer, sums_TD.numpy())
            else:
                members = [rank + 1 for rank in tokens]
                frames = self.await_frames(members, self.inbox.peek)
                batch = gather(frames, hidden=task.hidden)
                sums_TD = torch.zeros(batch.x_TD.shape, dtype=torch.float64)
                for rank, (start, end) in zip(tokens, batch.spans, strict=True):
                    exchange.reclaim(replies[rank])
                    rows = sums_TD[start:end]
                    size = 8 * rows.numel()
                    replies[rank].payload[:size].view(np.float64).reshape(rows.shape)[:] = rows.numpy()
                    answer.tokens, answer.payload_bytes = end - start, size
                    exchange.send([rank + 1], answer, replies[rank])
                    exchange.pop(rank + 1)
            yield total, scheme, None, self._crossed(before)
