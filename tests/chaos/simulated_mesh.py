"""A mesh in virtual time: the real Publisher, membership and CohortInbox; Redis, links and engines are models.

One seed is one history: delays, lost notices, crashes, links that break, schedulers that hang, Redis that comes
back empty. Attention engines make tokens; the gateway's rules (no gap, no token twice) check every one.
"""

from __future__ import annotations

import base64
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from janus_runtime.coordination import Look
from janus_runtime.errors import StaleLeader, Unavailable
from janus_runtime.records import CohortRecord, LayoutRecord, Lease, Role, WorkerState
from janus_scheduler import publisher as module
from janus_scheduler.membership import Rules
from janus_scheduler.publisher import Publisher
from janus_transport.framing import Header, Kind
from janus_worker.lockstep import CohortInbox, EngineCohort, NewerEpoch, cohort_message

TTL_S, SETTLE_S, FINISH_S, SLOTS, EXPERTS = 5.0, 0.3, 2.0, 4, 8
Frame = SimpleNamespace


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """A coroutine that never waits, to its end."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


@dataclass
class World:
    """The clock and what is to happen."""

    rng: random.Random
    now: float = 0.0
    queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    order: itertools.count[int] = field(default_factory=itertools.count)

    def later(self, delay: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (self.now + delay, next(self.order), what))

    def run_until(self, done: Callable[[], bool], limit: float) -> bool:
        while self.queue and not done():
            at, _, what = heapq.heappop(self.queue)
            if at > limit:
                return False
            self.now = at
            what()
        return done()


class Redis:
    """Coordination's calls on a dictionary; atomic, as the scripts are."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.down = False
        self.numbers = itertools.count(1)
        self.empty()

    def empty(self) -> None:
        self.leases: dict[str, tuple[Lease, float]] = {}
        self.record: CohortRecord | None = None
        self.layouts: dict[int, LayoutRecord] = {}
        self.office: tuple[int, str, float] | None = None
        self.last_epoch = 0

    def up(self) -> None:
        if self.down:
            raise Unavailable("Redis is away")
        now = self.world.now
        self.leases = {k: v for k, v in self.leases.items() if v[1] > now}
        if self.office is not None and self.office[2] <= now:
            self.office = None

    async def look(self, worker_id: str, token: int, ttl_s: float) -> Look | None:
        self.up()
        if self.office is None or self.office[:2] != (token, worker_id):
            return None
        self.office = (token, worker_id, self.world.now + ttl_s)
        ends = [end - self.world.now for _, end in self.leases.values()]
        leases = tuple(lease for lease, _ in self.leases.values())
        return Look(cohort=self.record, leases=leases, expires_s=min(ends, default=float("inf")))

    async def acquire_leader(self, worker_id: str, ttl_s: float) -> int | None:
        self.up()
        if self.office is not None:
            return None
        self.office = (next(self.numbers), worker_id, self.world.now + ttl_s)
        return self.office[0]

    async def leader(self) -> str | None:
        self.up()
        return self.office[1] if self.office else None

    async def cohort(self) -> CohortRecord | None:
        self.up()
        return self.record

    async def layout(self, version: int) -> LayoutRecord | None:
        self.up()
        return self.layouts.get(version)

    async def next_epoch(self, floor: int = 0) -> int:
        self.up()
        self.last_epoch = max(self.last_epoch, floor) + 1
        return self.last_epoch

    async def publish_cohort(self, record: CohortRecord, layout: LayoutRecord, token: int) -> None:
        self.up()
        late = self.record is not None and self.record.epoch > record.epoch
        if self.office is None or self.office[0] != token or late:
            raise StaleLeader("refused")
        self.record, self.layouts[layout.version] = record, layout
        self.last_epoch = max(self.last_epoch, record.epoch)


class Links:
    """The exchange of one engine: in order per pair; a link that breaks loses what is under way."""

    def __init__(self, member: int) -> None:
        self.member = member
        self.frames: dict[int, deque[Frame]] = {}

    def set_peers(self, peers: dict[int, bytes], remote: Iterable[int] = ()) -> None:
        self.frames = {m: self.frames.get(m, deque()) for m in peers}

    def peek(self, peer: int) -> Frame | None:
        queue = self.frames.get(peer)
        return queue[0] if queue else None

    def pop(self, peer: int) -> None:
        self.frames[peer].popleft()


class Worker:
    """One incarnation of an engine with its control process."""

    def __init__(self, mesh: SimulatedMesh, name: str) -> None:
        self.mesh, self.name = mesh, name
        self.role = Role.ATTENTION if name.startswith("attention") else Role.MOE
        self.member = next(mesh.redis.numbers)
        self.links = Links(self.member)
        self.inbox = CohortInbox(self.links)  # type: ignore[arg-type]
        self.cohort: EngineCohort | None = None
        self.alive, self.adopted, self.step = True, 0, 0
        self.streams: dict[int, int] = {}
        """Attention: index of the next token of each stream."""
        self.sent: list[tuple[int, int]] | None = None
        self.next: tuple[CohortRecord, LayoutRecord] | None = None
        """A cohort that waits for the end of the step under way."""
        self.renew()
        self.watch()

    # -- control process ---------------------------------------------------------------------------

    def lease(self) -> Lease:
        return Lease(
            worker_id=self.name, member=self.member, role=self.role, pid=1, grpc_address="x:1", transport="ucx",
            transport_address=base64.b64encode(b"x").decode(), model="m", slots=SLOTS, moe_layers=1,
            num_experts=EXPERTS, state=WorkerState.READY, epoch=self.adopted,
        )  # fmt: skip

    def renew(self) -> None:
        if self.alive:
            self.write()
            self.mesh.world.later(TTL_S / 3, self.renew)

    def write(self) -> None:
        held = self.mesh.redis.leases.get(self.name)
        if self.alive and not self.mesh.redis.down and (held is None or held[0].member <= self.member):
            self.mesh.redis.leases[self.name] = (self.lease(), self.mesh.world.now + TTL_S)

    def watch(self) -> None:
        """Notices may be lost: then the next poll tells."""
        if not self.alive:
            return
        redis = self.mesh.redis
        if not redis.down and redis.record is not None and redis.record.epoch > self.adopted:
            self.announce(redis.record, redis.layouts[redis.record.layout_version])
        self.mesh.world.later(self.mesh.world.rng.choice((0.01, 0.05, 1.0)), self.watch)

    # -- engine ------------------------------------------------------------------------------------

    def announce(self, record: CohortRecord, layout: LayoutRecord) -> None:
        """At once, or after the step where everybody whom it needs lives (CohortEngine.intake)."""
        under_way = self.cohort is not None and self.sent is not None
        if not under_way or record.follows != self.adopted:
            self.adopt(record, layout)
        elif self.next is None or self.next[0].epoch < record.epoch:
            self.next = (record, layout)
            self.mesh.world.later(FINISH_S, self.take_up)

    def take_up(self) -> None:
        if self.alive and self.next is not None:
            (record, layout), self.next = self.next, None
            if record.epoch > self.adopted:
                self.adopt(record, layout)

    def adopt(self, record: CohortRecord, layout: LayoutRecord) -> None:
        assert record.epoch > self.adopted, "epochs only grow"
        self.adopted, self.step, self.sent = record.epoch, 0, None
        cohort = EngineCohort.from_message(cohort_message(record, layout))
        self.cohort = cohort if cohort.rank(self.member) is not None else None
        if self.cohort is not None:
            self.inbox.adopt(cohort, cohort.moe if self.role is Role.ATTENTION else cohort.attention)
            if (
                self.role is Role.MOE
            ):  # whoever has begun another step of the epoch before learns that it is over
                for peer in cohort.attention:
                    self.send(peer.member, Kind.WAKE, 0, 0)
        self.go()

    def go(self) -> None:
        """As far as it gets with the frames that are there."""
        try:
            if self.alive and self.cohort is not None:
                self.attention() if self.role is Role.ATTENTION else self.moe()
        except NewerEpoch:
            self.cohort = None  # the record that announces it is on its way, or is here
            self.take_up()

    def attention(self) -> None:
        assert self.cohort is not None
        if self.sent is None:
            self.sent = sorted(self.streams.items())
            for peer in self.cohort.moe:
                self.send(peer.member, Kind.HIDDEN, len(self.sent), 0)
        frames = [
            self.inbox.skip(p.member, lambda f: f.header.kind is Kind.WAKE or f.header.step < self.step)
            for p in self.cohort.moe
        ]
        if any(frame is None for frame in frames):
            return
        digests = {f.header.digest for f in frames if f is not None}
        epochs = {f.header.epoch for f in frames if f is not None}
        assert epochs == {self.cohort.epoch} and len(digests) == 1, "one step, one epoch, one batch"
        for peer in self.cohort.moe:
            self.links.pop(peer.member)
        self.mesh.applied(self, self.step, self.sent)
        for stream, index in self.sent:
            if self.streams.get(stream) == index:
                self.streams[stream] = index + 1
                self.mesh.token(self, stream, index)
        self.step, self.sent = self.step + 1, None
        self.take_up()
        self.mesh.world.later(0.01, self.go)

    def moe(self) -> None:
        assert self.cohort is not None
        frames = [self.inbox.peek(p.member) for p in self.cohort.attention]
        if any(frame is None for frame in frames):
            return
        headers = [f.header for f in frames if f is not None]
        assert {(h.epoch, h.step) for h in headers} == {(self.cohort.epoch, self.step)}, "lockstep"
        digest = hash((self.cohort.epoch, self.step, tuple((h.source, h.tokens) for h in headers)))
        for header in headers:
            self.links.pop(header.source)
            self.send(header.source, Kind.PARTIAL, header.tokens, digest)
        self.step += 1

    def send(self, to: int, kind: Kind, tokens: int, digest: int) -> None:
        assert self.cohort is not None
        header = Header(
            kind=kind, epoch=self.cohort.epoch, step=self.step, source=self.member, tokens=tokens,
            payload_bytes=0, digest=digest & (2**64 - 1),
        )  # fmt: skip
        self.mesh.deliver(self, to, Frame(header=header))

    def peer_lost(self, member: int) -> None:
        if self.cohort is not None and self.cohort.rank(member) is not None:
            self.cohort = None  # waits for the next epoch

    def die(self) -> None:
        self.alive = False
        self.mesh.workers.pop(self.member, None)
        self.mesh.world.later(self.mesh.world.rng.uniform(0.01, 3.0), self.found_dead)
        for other in list(self.mesh.workers.values()):
            self.mesh.world.later(
                self.mesh.world.rng.uniform(0.01, 1.0), lambda o=other: o.peer_lost(self.member)
            )

    def found_dead(self) -> None:
        """What a scheduler's vigil sees of it, if that follows it; its lease goes where Redis can be reached."""
        mesh = self.mesh
        for publisher in mesh.publishers.values():
            if mesh.world.rng.random() < 0.7:
                publisher.dead(self.member)
                held = mesh.redis.leases.get(self.name)
                if not mesh.redis.down and held is not None and held[0].member == self.member:
                    del mesh.redis.leases[self.name]


class SimulatedMesh:
    """Workers by name, two schedulers, one gateway."""

    def __init__(self, seed: int, attention: int, moe: int, streams: int, length: int) -> None:
        self.world = World(random.Random(seed))
        self.redis = Redis(self.world)
        self.workers: dict[int, Worker] = {}
        self.arrivals: dict[tuple[int, int], float] = {}
        self.broken: set[tuple[int, int]] = set()
        self.done_steps: set[tuple[int, int, int]] = set()
        self.delivered = [0] * streams
        self.length = length
        self.names = [f"attention-{i}" for i in range(attention)] + [f"moe-{i}" for i in range(moe)]
        for name in self.names:
            self.start(name)
        self.schedulers: dict[str, int] = {}
        self.publishers: dict[str, Publisher] = {}
        for index in range(2):
            self.scheduler(f"scheduler-{index}")
        self.gateway()

    def start(self, name: str) -> None:
        worker = Worker(self, name)
        self.workers[worker.member] = worker

    def scheduler(self, name: str) -> None:
        """A new incarnation: the real Publisher, round by round."""
        number = self.schedulers[name] = self.schedulers.get(name, 0) + 1
        rules = Rules(min_attention=1, min_experts=2)
        publisher = Publisher(self.redis, f"{name}/{number}", rules, settle_s=SETTLE_S, lease_ttl_s=TTL_S)  # type: ignore[arg-type]
        self.publishers[name] = publisher

        def turn() -> None:
            if self.schedulers[name] != number:
                return
            try:
                pause = run(publisher.round(self.world.now))
            except StaleLeader:
                publisher._lose_office()
                pause = 1.0
            except Unavailable:
                publisher._lose_sight()
                pause = 1.0
            # Now and then it hangs longer than its office lasts.
            hang = 3 * TTL_S if self.world.rng.random() < 0.01 else 0.0
            self.world.later(min(pause, self.world.rng.uniform(0.05, 1.0)) + hang, turn)

        self.world.later(self.world.rng.uniform(0, 0.5), turn)

    def gateway(self) -> None:
        """Streams whose worker is gone, or in the cohort no more, go on at another, from what was delivered."""
        record = self.redis.record
        here = [
            w for w in self.workers.values() if record and any(m.member == w.member for m in record.attention)
        ]
        held = {s for w in here for s in w.streams}
        for worker in self.workers.values():
            if worker not in here:
                worker.streams.clear()
        for stream, count in enumerate(self.delivered):
            if stream not in held and count < self.length and here:
                min(here, key=lambda w: len(w.streams)).streams[stream] = count
        self.world.later(0.1, self.gateway)

    def deliver(self, sender: Worker, to: int, frame: Frame) -> None:
        if (sender.member, to) in self.broken:
            return
        # In order per pair, whatever the delay.
        pair = (sender.member, to)
        at = max(self.world.now + self.world.rng.expovariate(200.0), self.arrivals.get(pair, 0.0))
        self.arrivals[pair] = at

        def arrive() -> None:
            worker = self.workers.get(to)
            if worker is not None and pair not in self.broken:
                worker.links.frames.setdefault(sender.member, deque()).append(frame)
                worker.go()

        self.world.later(at - self.world.now, arrive)

    def applied(self, worker: Worker, step: int, batch: list[tuple[int, int]]) -> None:
        key = (worker.member, worker.adopted, step)
        assert key not in self.done_steps, "a step is applied once"
        self.done_steps.add(key)

    def token(self, worker: Worker, stream: int, index: int) -> None:
        assert index == self.delivered[stream], "no token twice, none left out"
        self.delivered[stream] += 1
        if self.delivered[stream] == self.length:
            del worker.streams[stream]

    # -- faults ------------------------------------------------------------------------------------

    def fault(self) -> None:
        rng = self.world.rng
        kind = rng.choice(("kill", "kill", "kill", "cut", "scheduler", "redis", "empty", "restart", "silent"))
        if kind in ("kill", "cut") and self.workers:
            worker = rng.choice(sorted(self.workers.values(), key=lambda w: w.member))
            if kind == "cut":  # both ends notice, or one, and start again as new members (host._watch_faults)
                other = rng.choice(sorted(self.workers))
                self.broken |= {(worker.member, other), (other, worker.member)}
            worker.die()
            self.world.later(rng.uniform(0.5, 8.0), lambda: self.start(worker.name))
        elif kind == "scheduler":
            name = rng.choice(sorted(self.schedulers))
            office = self.redis.office
            self.scheduler(name)
            if office is not None and office[1].startswith(f"{name}/") and rng.random() < 0.7:
                self.redis.office = None  # its supervisor frees it (Coordination.bury)
        elif kind == "redis":
            self.redis.down = True
            self.world.later(rng.uniform(0.5, 12.0), lambda: setattr(self.redis, "down", False))
        elif kind == "empty":
            self.redis.empty()
        elif kind == "silent":
            self.silence()
        elif kind == "restart":  # back soon, and empty; most hear of it and write their leases at once
            self.redis.down = True
            self.world.later(rng.uniform(0.1, 1.0), self.back)

    def silence(self) -> None:
        """A scheduler takes a worker for silent for a while, rightly or not: it only costs time."""
        if self.workers:
            member, publisher = (
                self.world.rng.choice(sorted(self.workers)),
                self.world.rng.choice([self.publishers[name] for name in sorted(self.publishers)]),
            )
            publisher.silent(member, True)
            self.world.later(self.world.rng.uniform(0.5, 6.0), lambda: publisher.silent(member, False))

    def back(self) -> None:
        self.redis.empty()
        self.redis.down = False
        for worker in self.workers.values():
            if self.world.rng.random() < 0.8:
                self.world.later(self.world.rng.uniform(0.0, 0.5), worker.write)

    def finished(self) -> bool:
        return all(count == self.length for count in self.delivered)


def simulate(seed: int, monkeypatch: Any) -> SimulatedMesh:
    """One history to its end; AssertionError where the protocol is broken, or when nothing goes on."""
    rng = random.Random(seed)
    mesh = SimulatedMesh(seed, rng.randint(1, 3), rng.randint(2, 4), streams=rng.randint(1, 5), length=150)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: mesh.world.now))
    for _ in range(rng.randint(1, 8)):
        mesh.world.later(rng.uniform(0.0, 12.0), mesh.fault)
    ended = mesh.world.run_until(mesh.finished, limit=200.0)
    assert ended, f"seed {seed}: stuck at {mesh.delivered} of {mesh.length}, {mesh.redis.record}"
    return mesh
