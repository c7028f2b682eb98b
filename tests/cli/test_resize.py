"""Which workers a change starts and drains, what it refuses, and the socket that it is asked over."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from janus_cli.control import ControlServer, ask
from janus_cli.resize import parse_targets, plan, plan_drain
from janus_cli.rundir import RunDir
from janus_runtime.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, JanusError, NotFound
from janus_runtime.records import Lease, Role

pytestmark = pytest.mark.timeout(30)


def moe(index: int, slots: int, experts: int = 8) -> Lease:
    return Lease(
        worker_id=f"moe-{index}", member=index + 1, role=Role.MOE, pid=1, grpc_address="x:1", slots=slots,
        num_experts=experts,
    )  # fmt: skip


MESH = ("attention-0", "attention-2", "moe-0", "moe-1", "moe-10")


@pytest.mark.parametrize(
    ("targets", "start", "drain"),
    [
        ({"attention": 2, "experts": 3}, (), ()),
        ({"attention": 4}, ("attention-1", "attention-3"), ()),
        ({"attention": 1, "experts": 1}, (), ("attention-2", "moe-10", "moe-1")),
        ({"attention": 1, "experts": 4}, ("moe-2",), ("attention-2",)),
    ],
)
def test_free_numbers_are_filled_and_the_highest_drained(
    targets: Mapping[str, int], start: tuple[str, ...], drain: tuple[str, ...]
) -> None:
    found = plan(MESH, [], targets, 0)
    assert (found.start, found.drain) == (start, drain)


def test_experts_must_have_room() -> None:
    leases = [moe(0, 4), moe(1, 4), moe(10, 4)]
    assert plan(MESH, leases, {"experts": 2}, 4).drain == ("moe-10",)
    with pytest.raises(FailedPrecondition, match=r"4 expert slots .* 8 experts; allowed: at least 2 MoE"):
        plan(MESH, leases, {"experts": 1}, 4)
    assert plan(MESH, [moe(0, 8), *leases[1:]], {"experts": 1}, 4).drain == ("moe-10", "moe-1")
    with pytest.raises(FailedPrecondition, match="at least 2"):
        plan_drain(("attention-0", "moe-0", "moe-1"), leases[:2], "moe-0", 4)


@pytest.mark.parametrize("worker", ["moe-7", "gateway-0", "", "attention"])
def test_an_unknown_worker_is_refused_with_those_there_are(worker: str) -> None:
    with pytest.raises(NotFound, match="allowed: attention-0, attention-2, moe-0, moe-1, moe-10"):
        plan_drain((*MESH, "gateway-0"), [], worker, 0)


def test_the_last_of_a_role_stays() -> None:
    with pytest.raises(FailedPrecondition, match="attention-0 is the last attention worker"):
        plan_drain(("attention-0", "moe-0"), [], "attention-0", 0)


@pytest.mark.parametrize(
    "texts", [(), ("attention",), ("attention=0",), ("experts=-1",), ("attention=1", "attention=2"), ("moe=2",),
              ("experts=1025",), ("attention=two",)]
)  # fmt: skip
def test_what_no_mesh_can_have_is_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match=r"allowed|twice"):
        parse_targets(texts)


def run_dir(path: Path) -> RunDir:
    made = RunDir(path)
    made.create()
    return made


@pytest.mark.asyncio
@pytest.mark.parametrize("deep", [False, True], ids=["short", "long path"])
async def test_ask_and_answer(tmp_path: Path, deep: bool) -> None:
    where = run_dir(tmp_path / ("x" * 120 if deep else "run"))

    async def handler(request: dict[str, Any], say: Any) -> dict[str, Any]:
        say("working")
        if "slow" in request:
            await asyncio.sleep(10)
        if "bad" in request:
            raise NotFound("is not here", field="worker", value="x", allowed="y")
        return {"got": request}

    said: list[str] = []
    with where.lock():
        async with ControlServer(where, handler) as server:
            where.write_mesh({"control": str(server.path)})
            assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
            assert await asyncio.to_thread(ask, where, {"a": 1}, said.append, 5.0) == {"got": {"a": 1}}
            with pytest.raises(NotFound, match=r"worker: is not here \(got 'x'\); allowed: y"):
                await asyncio.to_thread(ask, where, {"bad": 1}, said.append, 5.0)
            with pytest.raises(DeadlineExceeded, match="it goes on"):
                await asyncio.to_thread(ask, where, {"slow": 1}, said.append, 0.3)
            reader, writer = await asyncio.open_unix_connection(server.path)
            writer.write(b"no json\n")
            assert "InvalidArgument" in json.loads(await reader.readline())["error"]["kind"]
            writer.close()
        assert not server.path.exists()
    assert said == ["working"] * 3
    with pytest.raises(JanusError, match="no mesh runs"):
        ask(where, {}, said.append, 1.0)
