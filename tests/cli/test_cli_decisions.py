"""The supervisor's pure parts: which children, what is still waited for, the waterfall."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from janus_cli.readiness import last_startup_line, still_waiting
from janus_cli.rundir import RunDir
from janus_cli.spec import MeshSpec, services, threads_per_worker
from janus_cli.view import MeshView, service_rows, worker_index
from janus_cli.waterfall import bar, rows
from janus_runtime.errors import FailedPrecondition, NotFound
from janus_runtime.records import CohortMember, CohortRecord, Lease, Role, WorkerState


def lease(name: str, pid: int = 1, **more: Any) -> Lease:
    role = Role(name.rpartition("-")[0])
    fields: dict[str, Any] = {
        "worker_id": name, "member": pid, "role": role, "pid": pid, "grpc_address": "h:1",
        "state": WorkerState.READY, **more,
    }  # fmt: skip
    return Lease(**fields)


def cohort(epoch: int, attention: list[int], moe: list[int]) -> CohortRecord:
    ranks = [
        tuple(
            CohortMember(worker_id=str(m), member=m, grpc_address="", transport_address="") for m in members
        )
        for members in (attention, moe)
    ]
    return CohortRecord(epoch=epoch, attention=ranks[0], moe=ranks[1], layout_version=1)


@pytest.mark.parametrize(
    ("workers", "cores", "expected"), [(5, 2, 1), (2, 8, 4), (3, 8, 2), (1, 1, 1), (0, 4, 4), (64, 2, 1)]
)
def test_threads_never_exceed_the_cores_nor_fall_below_one(workers: int, cores: int, expected: int) -> None:
    assert threads_per_worker(workers, cores) == expected


def test_the_children_of_a_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANUS_MOE_SLOTS", "5")
    spec = MeshSpec(
        model=Path("/m"),
        attention=2,
        experts=3,
        nodes=2,
        http_port=8000,
        gating="attention",
        scheduling="aebs",
    )
    children = services(spec, "redis://:secret@h/0", Path("/t"), cores=10)
    assert [c.worker_id for c in children] == [
        "scheduler-0", "moe-0", "moe-1", "moe-2", "attention-0", "attention-1", "gateway-0", "autoscaler-0",
    ]  # fmt: skip
    for child in children:
        line = " ".join(child.command)
        assert f"-m janus_{child.role.value} " in line
        assert "secret" not in line  # the command line is for everyone to see
        assert child.env["JANUS_REDIS_URL"] == "redis://:secret@h/0"
        assert child.env["OMP_NUM_THREADS"] == "2"
        assert child.env["JANUS_MOE_SLOTS"] == "5"  # settings of single services come from the environment
    by_name = {c.worker_id: " ".join(c.command) for c in children}
    assert "--min-attention 2 --min-experts 3 --gating attention --scheduling aebs" in by_name["scheduler-0"]
    assert "--node node-1" in by_name["moe-1"] and "--node node-0" in by_name["moe-2"]
    assert "--threads 2" in by_name["moe-0"] and "--http-port 8000" in by_name["gateway-0"]


def test_the_last_startup_line_counts() -> None:
    lines = ["noise", "[waiting] moe-0: Redis at x (0s)", "[waiting] moe-0: checkpoint (a b) (12s)"]
    assert last_startup_line(lines, "moe-0") == "checkpoint (a b)"
    assert last_startup_line([*lines, "[ready] moe-0: h:1 (3.2s)"], "moe-0") == ""
    assert last_startup_line(lines, "moe-1") == ""


def test_whole_only_when_every_child_is_in() -> None:
    pids = {"scheduler-0": 1, "moe-0": 2, "attention-0": 3, "gateway-0": 4}
    there = [
        lease("scheduler-0", 1),
        lease("moe-0", 2, epoch=7),
        lease("attention-0", 3, epoch=7),
        lease("gateway-0", 4),
    ]

    def waiting(leases: list[Lease], record: CohortRecord | None, answers: bool = True) -> dict[str, str]:
        view = MeshView(leases=tuple(leases), cohort=record)
        found = still_waiting(pids, {"moe-0": "said"}, view, gateway_answers=answers)
        return {w.worker_id: w.what for w in found}

    whole = cohort(7, [3], [2])
    assert waiting(there, whole) == {}
    assert list(waiting(there, whole, answers=False)) == ["gateway-0"]
    assert waiting(there[1:], whole) == {"scheduler-0": "its process to come up"}
    assert waiting([there[0], lease("moe-0", 99, epoch=7), *there[2:]], whole) == {
        "moe-0": "said"
    }  # a former one
    assert "moe-0" in waiting(there, cohort(7, [3], [1]))  # not in the cohort
    assert waiting(there, cohort(8, [3], [2])) == {"moe-0": "cohort epoch 8", "attention-0": "cohort epoch 8"}
    starting = lease("attention-0", 3, state=WorkerState.STARTING, detail="starting the engine")
    assert waiting([*there[:2], starting, there[3]], whole) == {"attention-0": "starting the engine"}
    first = waiting([lease("scheduler-0", 1, detail="wants more"), *there[1:]], None)
    assert sum("wants more" in what for what in first.values()) == 1


def test_rows_are_by_role_and_index() -> None:
    view = MeshView(leases=tuple(lease(f"moe-{i}", i + 1) for i in (10, 2, 1)))
    assert [row["index"] for row in service_rows(view)] == [1, 2, 10]
    assert worker_index("gateway") == -1


def test_one_owner_per_run_directory(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert not run.running()
    with pytest.raises(NotFound, match="no mesh runs"):
        run.read_mesh()
    run.create()
    assert run.path.stat().st_mode & 0o077 == 0
    with run.lock():
        run.write_mesh({"pid": 5})
        assert run.running() and run.read_mesh() == {"pid": 5}
        with pytest.raises(FailedPrecondition, match="process 5"), run.lock():
            pass
    assert not run.running()


def span(number: int, parent: int, name: str, start: int, end: int, worker: str = "w") -> dict[str, Any]:
    return {
        "span_id": f"{number:016x}", "parent_span_id": f"{parent:016x}" if parent else "", "name": name,
        "worker": worker, "service": "s", "start_ns": start, "end_ns": end, "status": "unset", "attributes": {},
    }  # fmt: skip


def test_waterfall_folds_what_is_alike() -> None:
    spans = [span(1, 99, "request", 0, 1000), span(2, 1, "step", 10, 500)]
    spans += [span(10 + i, 2, "layer", 20 + i * 10, 25 + i * 10) for i in range(30)]
    spans += [span(50 + i, 10 + i, "moe", 21 + i * 10, 24 + i * 10, worker=f"moe-{i % 2}") for i in range(30)]
    shown = rows(spans)
    assert [(r.name, r.worker, r.depth, r.count, r.busy_ns) for r in shown] == [
        ("request", "w", 0, 1, 1000), ("step", "w", 1, 1, 490), ("layer", "w", 2, 30, 150),
        ("moe", "moe-0", 3, 15, 45), ("moe", "moe-1", 3, 15, 45),
    ]  # fmt: skip
    assert len(rows(spans, fold_above=len(spans))) == len(spans)


@pytest.mark.parametrize("seed", range(20))
def test_waterfall_loses_no_span_and_no_bar_leaves_its_place(seed: int) -> None:
    draw = random.Random(seed)
    spans = []
    for number in range(1, draw.randrange(2, 60)):
        start = draw.randrange(1000)
        name = draw.choice("abc")
        spans.append(span(number, draw.randrange(number), name, start, start + draw.randrange(1, 500)))
    shown = rows(spans, fold_above=draw.randrange(0, 6))
    assert sum(r.count for r in shown) == len(spans)
    begin, end = min(r.start_ns for r in shown), max(r.end_ns for r in shown)
    for row in shown:
        drawn = bar(row, begin, end, 32)
        assert len(drawn) == 32 and drawn.strip()
