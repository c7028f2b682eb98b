"""The whole mesh on this machine: idle cost, memory, and time per output token.

``python benchmarks/bench_mesh.py --model .janus/demo``: starts real processes over UCX under the supervisor and
measures (1) processor time of all its processes while idle, (2) unique and shared memory of the engines against
the checkpoint's size, (3) decode at several batch sizes through the gateway's gRPC.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import threading
import time
from pathlib import Path

import click
import psutil
from janus_client import JanusClient
from janus_testing import LocalMesh
from machine import write

PROMPTS = ["Tell me about the number {}.", "Write a line about rain, version {}.", "What is {} plus two?"]


def processes(mesh: LocalMesh) -> list[psutil.Process]:
    """Every process of the mesh: services, engines, Redis, the supervisor."""
    top = {psutil.Process(service.pid) for service in mesh.services}
    parents = {process.parent() for process in top} - {None}
    family = {child for parent in parents if parent for child in parent.children(recursive=True)} | parents
    return sorted((p for p in family | top if p and p.pid != psutil.Process().pid), key=lambda p: p.pid)


def names(mesh: LocalMesh, group: list[psutil.Process]) -> dict[int, str]:
    """What each process is, by pid: a worker's id, its engine, redis or the supervisor."""
    known = {service.pid: service.worker_id for service in mesh.services}
    named = {}
    for process in group:
        program, parent = process.name(), known.get(process.ppid())
        other = "redis" if "redis" in program else f"{parent} engine" if parent else "supervisor"
        named[process.pid] = known.get(process.pid, other)
    return named


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads, from the scheduler's nanoseconds: ``times`` counts whole ticks of 10 ms."""
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has just ended
            total += int(path.read_text().split()[0])
    return total / 1e9


def idle(mesh: LocalMesh, seconds: float) -> dict[str, float]:
    """Share of one core that each process uses while nothing is asked of the mesh."""
    group = processes(mesh)
    named = names(mesh, group)
    before = {pid: cpu_seconds(pid) for pid in named}
    began = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    shares = {name: (cpu_seconds(pid) - before[pid]) / took for pid, name in named.items()}
    return dict(sorted(shares.items()))


def idle_table(now: dict[str, float], before: dict[str, float], seconds: float) -> list[str]:
    """Rows of the table of :func:`idle`, beside an earlier measurement if there is one."""
    head = "| process | before, % of one core | now, % |" if before else "| process | % of one core |"
    rows = [head, "| --- | --- |" + (" --- |" if before else "")]
    for name, share in (*now.items(), (f"all {len(now)}", sum(now.values()))):
        was = sum(before.values()) if name.startswith("all ") else before.get(name, float("nan"))
        rows.append(f"| {name} |" + (f" {100 * was:.3f} |" if before else "") + f" {100 * share:.3f} |")
    rows.append("")
    rows.append(f"Nothing asked of the mesh for {seconds:.0f} s; everything that the supervisor started.")
    return rows


def decode(mesh: LocalMesh, batch: int, tokens: int) -> tuple[float, float]:
    """(median milliseconds per output token, output tokens per second of all streams)."""
    gaps: list[float] = []
    lock = threading.Lock()

    def one(i: int) -> None:
        with JanusClient(mesh.grpc) as client:
            prompt = PROMPTS[i % len(PROMPTS)].format(i)
            stream = client.generate(prompt, max_tokens=tokens, temperature=0.0, ignore_eos=True)
            times = [time.perf_counter() for _ in stream]
            with lock:
                gaps.append((times[-1] - times[0]) / max(1, tokens - 1))

    began = time.perf_counter()
    threads = [threading.Thread(target=one, args=(i,)) for i in range(batch)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statistics.median(gaps) * 1e3, batch * tokens / (time.perf_counter() - began)


@click.command()
@click.option("--model", default=".janus/demo", show_default=True, help="Checkpoint directory.")
@click.option("--attention", default=2, show_default=True)
@click.option("--experts", default=3, show_default=True)
@click.option("--idle-s", default=20.0, show_default=True, help="Seconds to watch the idle mesh.")
@click.option("--tokens", default=32, show_default=True, help="Tokens per stream.")
@click.option("--idle-only", is_flag=True, help="Only the idle cost, as JSON on standard output.")
@click.option("--before", type=click.Path(path_type=Path), help="Output of --idle-only to compare with.")
def main(
    model: str,
    attention: int,
    experts: int,
    idle_s: float,
    tokens: int,
    idle_only: bool,
    before: Path | None,
) -> None:
    """Measure; writes results/mesh.md."""
    if idle_only:
        with LocalMesh(model, attention=attention, experts=experts) as mesh:
            decode(mesh, 2 * attention, 8)
            time.sleep(3)
            click.echo(json.dumps(idle(mesh, idle_s), indent=1))
        return
    weights = sum(f.stat().st_size for f in Path(model).glob("*.safetensors"))
    with LocalMesh(model, attention=attention, experts=experts) as mesh:
        decode(mesh, 2 * attention, 8)
        rows = [
            "| streams | ms per output token, median | tokens/s, prefill included |",
            "| --- | --- | --- |",
        ]
        for batch in (1, 4, 16):
            gap, rate = decode(mesh, batch, tokens)
            rows.append(f"| {batch} | {gap:.0f} | {rate:.1f} |")
        time.sleep(3)
        shares = idle(mesh, idle_s)
        group = processes(mesh)
        engines = {"moe": [p for p in group if "janus_moe.engine_main" in p.cmdline()]}
        engines["attention"] = [p for p in group if "janus_attention.engine_main" in p.cmdline()]
        memory = []
        for role, members in engines.items():
            info = [p.memory_full_info() for p in members]
            unique, proportional = sum(i.uss for i in info) / 2**20, sum(i.pss for i in info) / 2**20
            resident = sum(i.rss for i in info) / 2**20
            memory.append(
                f"| {len(members)} {role} engines | {resident:.0f} | {proportional:.0f} | {unique:.0f} |"
            )
    body = "\n".join(
        [
            f"{attention} attention and {experts} MoE workers, checkpoint of {weights / 2**20:.0f} MiB in fp32.",
            "",
            *rows,
            "",
            f"Idle: {100 * sum(shares.values()):.2f}% of one core over all {len(group)} processes.",
            "",
            *idle_table(shares, json.loads(before.read_text()) if before else {}, idle_s),
            "",
            "| memory, MiB, summed | resident | proportional | unique |",
            "| --- | --- | --- | --- |",
            *memory,
            "",
            "Pages of the checkpoint are shared: resident counts them in every process, unique in none.",
        ]
    )
    click.echo(body)
    click.echo(
        f"written to {write('mesh', 'The mesh on one machine', 'python benchmarks/bench_mesh.py', body)}"
    )


if __name__ == "__main__":
    main()
