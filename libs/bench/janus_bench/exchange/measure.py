"""Starting the parties of a measurement, and what they measured."""

from __future__ import annotations

import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from janus_bench.errors import BenchError
from janus_bench.exchange.grpc_bytes import round_trips
from janus_bench.exchange.parties import Part, party

TRANSPORTS = {
    "shm": ("ucx", "shm,tcp"), "tcp": ("ucx", "tcp"), "ucx": ("ucx", ""), "inproc": ("inproc", ""),
    "grpc": ("grpc", ""),
}  # fmt: skip
"""Name: (transport, UCX_TLS). ``ucx`` leaves UCX_TLS to the environment; ``inproc``: threads of one process;
``grpc``: no exchange at all but its baseline, the same bytes as unary calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured over each transport."""

    sizes: tuple[int, ...] = (1024, 4096, 16384, 65536, 262144, 1048576, 4194304)
    """Payload bytes of a pair's messages."""
    grid: tuple[int, int] = (3, 3)
    """Attention and MoE workers of the cohort pattern; (0, 0): none."""
    grid_most: int = 262144
    """Largest payload of the cohort pattern."""
    rounds: int = 5
    """Turns of each kind."""
    count: int = 200
    """Round trips per turn; the first tenth is not counted."""
    deadline_s: float = 300.0


def measure(names: tuple[str, ...], plan: Plan) -> list[dict[str, Any]]:
    """Rows: transport, pattern, payload, exchange_us, p90_us, and of a pair over UCX bare_us and ratio.

    Times are medians, in microseconds, as the first attention worker sees them. BenchError when a party fails.
    """
    rows: list[dict[str, Any]] = []
    for name in names:
        transport, tls = TRANSPORTS[name]
        if transport == "grpc":
            found = round_trips(plan.sizes, plan.rounds * plan.count, plan.deadline_s)
            rows += [_row(name, "1x1", size, found[size], None) for size in plan.sizes]
            continue
        common: dict[str, Any] = {
            "transport": transport, "tls": tls, "rounds": plan.rounds, "count": plan.count,
        }  # fmt: skip
        pair = Part(member=0, attention=1, moe=1, sizes=plan.sizes, bare=transport == "ucx", **common)
        rows += _rows(name, pair, _samples(pair, plan.deadline_s))
        small = tuple(size for size in plan.sizes if size <= plan.grid_most)
        if all(plan.grid) and small:
            attention, moe = plan.grid
            grid = Part(member=0, attention=attention, moe=moe, sizes=small, bare=False, **common)
            rows += _rows(name, grid, _samples(grid, plan.deadline_s))
    return rows


def _rows(name: str, part: Part, samples: dict[tuple[str, int], list[float]]) -> Iterator[dict[str, Any]]:
    for size in part.sizes:
        bare = statistics.median(samples["bare", size]) * 1e6 if part.bare else None
        yield _row(name, f"{part.attention}x{part.moe}", size, samples["exchange", size], bare)


def _row(name: str, pattern: str, size: int, samples: list[float], bare: float | None) -> dict[str, Any]:
    times = sorted(samples)
    ours = statistics.median(times) * 1e6
    return {
        "transport": name, "pattern": pattern, "payload": size, "exchange_us": ours,
        "p90_us": times[int(0.9 * (len(times) - 1))] * 1e6, "bare_us": bare,
        "ratio": None if bare is None else ours / bare,
    }  # fmt: skip


def _samples(part: Part, deadline_s: float) -> dict[tuple[str, int], list[float]]:
    """Run all parties of a pattern."""
    deadline = time.monotonic() + deadline_s
    members = range(1, part.attention + part.moe + 1)
    pipes: dict[int, Connection] = {}
    runners: list[BaseProcess | threading.Thread] = []
    context = multiprocessing.get_context("spawn")
    try:
        for member in members:
            pipes[member], theirs = context.Pipe()
            told = Part(**{field: getattr(part, field) for field in Part.__slots__} | {"member": member})
            make: Any = threading.Thread if part.transport == "inproc" else context.Process
            runners.append(make(target=party, args=(theirs, told), daemon=True))
            runners[-1].start()
            if part.transport != "inproc":
                theirs.close()  # so that a party that is gone is noticed
        addresses = {member: _hear(pipes, member, deadline) for member in members}
        for member in members:
            pipes[member].send(addresses)
        for member in members:
            _hear(pipes, member, deadline)
        for member in members:
            pipes[member].send("go")
        samples: dict[tuple[str, int], list[float]] = _hear(pipes, 1, deadline)
    except BaseException:
        for runner in runners:
            if isinstance(runner, BaseProcess):
                runner.kill()
        raise
    for runner in runners:
        runner.join(20)
    return samples


def _hear(pipes: dict[int, Connection], member: int, deadline: float) -> Any:
    """The next message of a party; the time is up for all of them together."""
    try:
        if not pipes[member].poll(max(0.0, deadline - time.monotonic())):
            raise BenchError(f"member {member} said nothing in time; a party of the measurement is stuck")
        said = pipes[member].recv()
    except EOFError:
        raise BenchError(f"member {member} ended without a word") from None
    if isinstance(said, tuple) and said[0] == "error":
        raise BenchError(f"member {member} failed:\n{said[1]}")
    return said
