"""Another placement while streams run: the same tokens, whatever moves and whoever dies meanwhile."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from janus_attention.engine import EngineOptions
from janus_attention.forward import Forward
from janus_moe.engine import EngineOptions as MoeOptions
from janus_moe.engine import MoeEngine
from janus_placement import Report
from janus_scheduler.placement import layers_round_robin
from janus_testing.inprocess import Answer, InProcessMesh, Worker
from janus_worker.lockstep import Interrupted, NewerEpoch

pytestmark = pytest.mark.timeout(180)
EXPERTS, LAYERS, SLOTS = 8, 3, 5


def placement(rng: random.Random, instances: int) -> list[list[list[int]]]:
    """Every expert somewhere, the other slots at random."""
    layers = []
    for _ in range(LAYERS):
        rows: list[list[int]] = [[] for _ in range(instances)]
        for expert in rng.sample(range(EXPERTS), EXPERTS):
            rng.choice([row for row in rows if len(row) < SLOTS]).append(expert)
        for row in rows:
            others = [e for e in range(EXPERTS) if e not in row]
            row += rng.sample(others, rng.randint(0, SLOTS - len(row)))
            rng.shuffle(row)
        layers.append(rows)
    return layers


def prompts(rng: random.Random, count: int) -> list[list[int]]:
    return [[rng.randrange(3, 200) for _ in range(rng.randint(2, 30))] for _ in range(count)]


def progress(mesh: InProcessMesh, numbers: list[int]) -> int:
    return sum(len(mesh.peek(number).tokens) for number in numbers)


def run(mesh: InProcessMesh, work: list[list[int]], between: list[object] | None = None) -> list[Answer]:
    """Generate; each callable of ``between`` runs once some more tokens have come."""
    numbers = [mesh.submit(p, worker=i % 2, max_tokens=64, logits=True) for i, p in enumerate(work)]
    total = 64 * len(work)
    for i, act in enumerate(between or []):
        least = total * (i + 1) // (len(between or []) + 1)
        mesh.pump(lambda least=least: progress(mesh, numbers) >= least, f"{least} tokens")  # type: ignore[misc]
        act()  # type: ignore[operator]
    return [mesh.answer(number) for number in numbers]


def equal(found: list[Answer], expected: list[Answer]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.tokens, a.finish) == (b.tokens, b.finish)
        assert all((x == y).all() for x, y in zip(a.logits, b.logits, strict=True)), "logits differ in a bit"


def test_twenty_random_layouts_in_a_row(mixtral: Path) -> None:
    rng = random.Random(7)
    work = prompts(rng, 6)
    with InProcessMesh(mixtral, attention=2, experts=3, slots=SLOTS) as mesh:
        expected = run(mesh, work)
        changes = [lambda: mesh.form(placement(rng, 3)) for _ in range(20)]
        equal(run(mesh, work, changes), expected)

        def told() -> list[float]:
            return [w.stats.get("layout_switches", 0) for w in mesh.attention]

        mesh.pump(lambda: sum(told()) >= 10, "reports of what switches have cost")
        assert max(told()) <= 20
        assert all(abs(w.stats["layout_switch_seconds"]) < 10 for w in mesh.attention)


@pytest.mark.parametrize("seed", range(3))
def test_experts_load_beside_the_steps(mixtral: Path, seed: int) -> None:
    """As the scheduler does it: load, switch; and load, let go again."""
    rng = random.Random(seed)
    work = prompts(rng, 4)
    with InProcessMesh(mixtral, attention=2, experts=3, slots=SLOTS) as mesh:
        expected = run(mesh, work)

        def ask(kind: str, rows: list[list[list[int]]], number: int) -> None:
            for rank, worker in enumerate(mesh.moe):
                layers = [[layer, rows[layer][rank]] for layer in range(LAYERS)]
                worker.send({"t": kind, "id": number, "layers": layers})
            mesh.pump(
                lambda: all(any(e.get("id") == number for e in w.events) for w in mesh.moe),
                f"{kind} {number}",
            )

        def change() -> None:
            rows = placement(rng, 3)
            ask("load", rows, 1000 + mesh.epoch)
            assert not any(e.get("error") for w in mesh.moe for e in w.events)
            mesh.form(rows)

        def give_up() -> None:
            rows = placement(rng, 3)
            ask("load", rows, 2000 + mesh.epoch)
            ask("unload", rows, 3000 + mesh.epoch)

        equal(run(mesh, work, [change, give_up, change, give_up, change]), expected)


@pytest.mark.parametrize("micro_batches", ["1", "2"])
def test_no_step_is_lost_to_another_layout(
    mixtral: Path, monkeypatch: pytest.MonkeyPatch, micro_batches: str
) -> None:
    """Workers hear of it at different times: a step is finished by all, or ends before its first answer."""
    rng = random.Random(11)
    work = prompts(rng, 6)
    lost: list[int] = []
    collect, tell = Forward._collect, Worker.send

    def watch(self: Forward, lane: Any) -> None:
        try:
            collect(self, lane)
        except (Interrupted, NewerEpoch):
            lost.append(lane.layer)
            raise

    def tell_late(self: Worker, body: dict[str, Any]) -> None:
        if body["t"] == "cohort":
            time.sleep(rng.choice((0.0, 0.0, 0.01, 0.03)))
        tell(self, body)

    options = EngineOptions(kv_tokens=4096, micro_batches=micro_batches)
    with InProcessMesh(mixtral, attention=2, experts=3, slots=SLOTS, attention_options=options) as mesh:
        expected = run(mesh, work)
        monkeypatch.setattr(Forward, "_collect", watch)
        monkeypatch.setattr(Worker, "send", tell_late)

        monkeypatch.setattr(
            InProcessMesh, "workers",
            property(lambda self: rng.sample([*self.attention, *self.moe], len(self.attention + self.moe))),
        )  # fmt: skip
        changes = [lambda: mesh.form(placement(rng, 3))] * 12
        equal(run(mesh, work, changes), expected)
    assert set(lost) <= {0}, "a step that was under way was abandoned"


@pytest.mark.parametrize("at_once", [False, True], ids=["one by one", "two within a step"])
def test_no_step_is_lost_to_workers_that_leave(
    mixtral: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Whoever leaves hears of it first: the step under way is finished with it, the next one ends before an answer."""
    rng = random.Random(23)
    work = prompts(rng, 6)
    lost: list[int] = []
    collect, tell = Forward._collect, Worker.send

    def watch(self: Forward, lane: Any) -> None:
        try:
            collect(self, lane)
        except (Interrupted, NewerEpoch):
            lost.append(lane.layer)
            raise

    def tell_late(self: Worker, body: dict[str, Any]) -> None:
        if body["t"] == "cohort" and self not in gone:
            time.sleep(0.02)
        tell(self, body)

    gone: list[Worker] = []
    with InProcessMesh(mixtral, attention=2, experts=4, slots=EXPERTS) as mesh:
        expected = run(mesh, work)
        monkeypatch.setattr(Forward, "_collect", watch)

        def leave() -> None:
            monkeypatch.setattr(Worker, "send", tell_late)
            began = time.monotonic()
            for _ in range(1 + at_once):
                worker = mesh.moe.pop(rng.randrange(len(mesh.moe)))
                gone.append(worker)
                mesh.form(leaving=[worker], follows=True, wait=not at_once)
            if at_once:
                mesh.pump(lambda: all(w.epoch == mesh.epoch for w in mesh.workers), "the second")
            assert time.monotonic() - began < 0.6, "nobody waited for a step that was never finished"
            monkeypatch.setattr(Worker, "send", tell)

        def come_back() -> None:
            mesh.moe.extend(gone)
            gone.clear()
            mesh.form(follows=True)

        equal(run(mesh, work, [leave, come_back] * 4), expected)
        mesh.moe.extend(gone)
    assert set(lost) <= {0}, "a step that was under way was abandoned"


def test_who_waits_for_a_step_that_nobody_finishes_goes_on(
    mixtral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that left the step tells nobody: the others give it up after a while."""
    monkeypatch.setattr("janus_worker.engine._FINISH_S", 0.2)
    send = MoeEngine._send_note

    def not_of_the_epoch(self: MoeEngine, *args: Any, **at_take_up: int) -> None:
        if not at_take_up:
            send(self, *args)

    monkeypatch.setattr(MoeEngine, "_send_note", not_of_the_epoch)
    rng = random.Random(5)
    work = prompts(rng, 4)
    with InProcessMesh(mixtral, attention=1, experts=2, slots=8) as mesh:
        number = mesh.submit(work[0], max_tokens=64, logits=True)
        expected = mesh.answer(number)
        tell = Worker.send

        def moe_first(self: Worker, body: dict[str, Any]) -> None:
            if body["t"] == "cohort" and self in mesh.attention:
                time.sleep(0.1)
            tell(self, body)

        monkeypatch.setattr(Worker, "send", moe_first)
        monkeypatch.setattr(InProcessMesh, "workers", property(lambda self: [*self.moe, *self.attention]))
        number = mesh.submit(work[0], max_tokens=64, logits=True)
        for least in (10, 30, 50):
            mesh.pump(lambda least=least: progress(mesh, [number]) >= least, f"{least} tokens")  # type: ignore[misc]
            mesh.form([[list(range(8)), list(range(8))]] * LAYERS)
        equal([mesh.answer(number)], [expected])


@pytest.mark.parametrize("micro_batches", ["1", "2"])
def test_a_worker_dies_in_the_middle_of_ten_changes(mixtral: Path, micro_batches: str) -> None:
    rng = random.Random(3)
    work = prompts(rng, 6)
    options = EngineOptions(kv_tokens=4096, micro_batches=micro_batches)
    with InProcessMesh(mixtral, attention=2, experts=3, slots=SLOTS, attention_options=options) as mesh:
        expected = run(mesh, work)

        def change() -> None:
            rows = placement(rng, 3)
            for rank, worker in enumerate(mesh.moe):
                layers = [[layer, rows[layer][rank]] for layer in range(LAYERS)]
                worker.send({"t": "load", "id": 0, "layers": layers})
            mesh.stop(rng.choice(mesh.moe))
            mesh.add_moe()
            mesh.form(placement(rng, 3))

        equal(run(mesh, work, [change] * 10), expected)


def test_no_more_is_loaded_beside_than_there_is_room_for(mixtral: Path) -> None:
    work = prompts(random.Random(1), 2)
    with InProcessMesh(
        mixtral, attention=2, experts=2, slots=SLOTS, moe_options=MoeOptions(beside=3)
    ) as mesh:
        expected = run(mesh, work)
        rank = mesh.moe[0]
        layouts = layers_round_robin(EXPERTS, [SLOTS] * 2, LAYERS)
        here = [(layer, e) for layer, rows in enumerate(layouts) for e in rows[0]]
        idle = [(layer, e) for layer in range(LAYERS) for e in range(EXPERTS) if (layer, e) not in here]

        def ask(number: int, keys: list[tuple[int, int]], kind: str = "load") -> dict[str, Any]:
            rank.send({"t": kind, "id": number, "layers": [[layer, [e]] for layer, e in keys]})
            mesh.pump(lambda: any(e.get("id") == number for e in rank.events), f"{kind} {number}")
            return next(e for e in rank.events if e.get("id") == number)

        def load() -> None:
            assert ask(1, idle[:4])["room"] == 3
            assert ask(2, idle[:3])["count"] == 3
            assert ask(3, idle[3:4])["held"] == 4
            assert ask(4, [*idle[:2], *here[:4]])["count"] == 0, "those are there"
            assert ask(5, idle[:1], "unload")["count"] == 1
            assert ask(6, idle[3:4])["count"] == 1

        equal(run(mesh, work, [load]), expected)


def test_a_load_that_fails_is_told_and_harms_nobody(mixtral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = prompts(random.Random(1), 2)
    with InProcessMesh(mixtral, attention=2, experts=2, slots=SLOTS) as mesh:
        expected = run(mesh, work)
        monkeypatch.setattr("janus_moe.loader.read_in", lambda model, key: 1 / 0)

        def ask() -> None:
            for worker in mesh.moe:
                worker.send({"t": "load", "id": 9, "layers": [[0, list(range(EXPERTS))]]})
            mesh.pump(lambda: all(any(e.get("id") == 9 for e in w.events) for w in mesh.moe), "replies")
            assert all("ZeroDivisionError" in w.events[-1]["error"] for w in mesh.moe)

        equal(run(mesh, work, [ask]), expected)


def test_each_layer_s_routing_is_reported_once(mixtral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("janus_moe.engine._ROUTING_S", 0.0)
    with InProcessMesh(mixtral, attention=2, experts=2, slots=SLOTS) as mesh:
        reports: dict[int, list[Report]] = {}
        handle = mesh._handle

        def listen(worker: object, message: object) -> None:
            body, blob = message.body, message.blob  # type: ignore[attr-defined]
            if body["t"] == "routing":
                fields, at = {}, 0
                for name, size in body["sizes"].items():
                    fields[name.encode()] = blob[at : at + size]
                    at += size
                report = Report.from_fields(fields)
                reports.setdefault(report.layer, []).append(report)
            handle(worker, message)  # type: ignore[arg-type]

        mesh._handle = listen  # type: ignore[method-assign]
        work = prompts(random.Random(2), 4)
        answers = run(mesh, work)
        tokens = sum(len(p) for p in work) + sum(len(a.tokens) - 1 for a in answers)

        def all_told() -> bool:
            return [sum(r.tokens for r in reports.get(layer, [])) for layer in range(LAYERS)] == [
                tokens
            ] * LAYERS

        mesh.pump(all_told, f"reports of {tokens} tokens in each layer")
        for found in reports.values():
            assert sum(int(r.counts.sum()) for r in found) == tokens * mesh.config.moe.top_k
