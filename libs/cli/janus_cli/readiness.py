"""Whether a starting mesh is whole, and what each service still waits for. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from janus_runtime.records import Role, WorkerState

from janus_cli.view import MeshView

_LINE = re.compile(r"^\[(waiting|ready)\] (\S+?): (.*?)(?: \([\d.]+s\))?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """One service that is not there yet."""

    worker_id: str
    what: str


def last_startup_line(lines: Iterable[str], worker_id: str) -> str:
    """What the service's last ``[waiting]`` line says it waits for; empty after ``[ready]`` or without one."""
    what = ""
    for line in lines:
        match = _LINE.match(line)
        if match and match[2] == worker_id:
            what = match[3] if match[1] == "waiting" else ""
    return what


def still_waiting(
    pids: Mapping[str, int], said: Mapping[str, str], view: MeshView, *, gateway_answers: bool
) -> list[Waiting]:
    """What keeps the mesh from being whole; empty when it is.

    ``pids``: process id of each child by worker id. ``said``: what each says it waits for. A mesh is whole
    when every child's lease is ready, every attention and MoE worker runs the epoch of the cohort in force,
    and the gateway's /health/ready is 200.
    """
    waiting: list[Waiting] = []
    for worker_id, pid in pids.items():
        lease = view.get(worker_id)
        if lease is None or lease.pid != pid:
            # A lease of another process is what a former incarnation left behind.
            what = said.get(worker_id) or "its process to come up"
        elif lease.state is not WorkerState.READY:
            what = said.get(worker_id) or lease.detail or "its start-up to end"
        elif lease.role in (Role.ATTENTION, Role.MOE) and not view.member_of_cohort(lease):
            what = f"cohort epoch {view.cohort.epoch}" if view.cohort else "the first cohort"
            if view.cohort is None and not any(w.what.startswith(what) for w in waiting):
                what += _scheduler_says(view)  # once is enough
        elif lease.role is Role.GATEWAY and not gateway_answers:
            what = f"http://{lease.http_address}/health/ready"
        else:
            continue
        waiting.append(Waiting(worker_id=worker_id, what=what))
    return waiting


def _scheduler_says(view: MeshView) -> str:
    detail = next((x.detail for x in view.of(Role.SCHEDULER)), "")
    return f" ({detail})" if detail else ""
