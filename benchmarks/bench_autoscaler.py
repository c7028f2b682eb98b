"""The autoscaler on a real mesh: a load that triples, falls back and ends, and what becomes of TPOT and of the workers.

``python benchmarks/bench_autoscaler.py``. All processes share this machine's cores, where more workers add no
capacity; so each worker waits out what a device of its own would take (--emulated-expert-us per distinct activated
expert of a pass, --emulated-token-us per token of a step). Everything else is the mesh as it is: processes, exchange,
schedule, streams, autoscaler, supervisor. Writes results/autoscaler.md and .png.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import grpc
from google.protobuf.json_format import MessageToDict
from janus_models.tiny import make_tiny
from janus_testing import LocalMesh
from janus_testing.load import make_requests
from janus_testing.open_load import OpenLoad, WorkerCount, poisson, quantile
from janus_wire.v1 import autoscaler_pb2, autoscaler_pb2_grpc
from machine import write

NOTES = """\
**What this is.** All processes run on this machine's cores, where more workers add no capacity. So every worker waits
out what a device of its own would take, asleep: a MoE worker 8 ms per distinct activated expert of a pass, an attention
worker 6 ms per token of a step. Those numbers are made up; they make a step as a memory-bound device would: linear in
a_max and in tokens per attention worker. All else is real: 32 experts (top-2, 3 layers, random weights), processes,
UCX, schedule, gateway, supervisor, and an autoscaler that knows nothing of those numbers and learns them. Every
answer is compared, token by token, with an undisturbed run.
"""
OBJECTIVE_MS = 450.0
INTERVAL_S = 15.0
PHASES = ((60.0, 0.6), (105.0, 1.8), (105.0, 0.6), (60.0, 0.0))
"""Seconds, requests per second."""
DEVICE = {"JANUS_MOE_EMULATED_EXPERT_US": "8000", "JANUS_ATTENTION_EMULATED_TOKEN_US": "6000"}
SCALER = {
    "JANUS_AUTOSCALER_INTERVAL_S": str(INTERVAL_S), "JANUS_AUTOSCALER_WINDOW_S": str(2 * INTERVAL_S),
    "JANUS_AUTOSCALER_HOLD_S": str(3 * INTERVAL_S), "JANUS_AUTOSCALER_DRAIN_BACKLOG_S": "15",
    # Each worker has a (emulated) device of its own.
    "JANUS_AUTOSCALER_SHARED_CORES": "0", "JANUS_AUTOSCALER_MAX_WORKERS": "5",
    # A scheduler that moves experts meanwhile would be a second thing to look at.
    "JANUS_SCHEDULER_REBALANCE_S": "0", "JANUS_LEASE_TTL_S": "15",
}  # fmt: skip


def mesh(model: Path, attention: int, experts: int, *, act: bool, **more: str) -> LocalMesh:
    return LocalMesh(
        model, attention=attention, experts=experts, autoscale="act" if act else "advise", tpot_ms=OBJECTIVE_MS,
        env={**DEVICE, **SCALER, **more},
    )  # fmt: skip


def ask(running: LocalMesh, method: str, request: Any) -> Any:
    """A call of the autoscaler."""
    with grpc.insecure_channel(running.service("autoscaler-0").address) as channel:
        return getattr(autoscaler_pb2_grpc.AutoscalerServiceStub(channel), method)(request, timeout=20)


def run(model: Path, sizes: tuple[int, int], *, act: bool, seed: int, phases: Any = PHASES) -> dict[str, Any]:
    """One run of the load; times are seconds after it began."""
    length = sum(seconds for seconds, _ in phases)
    with mesh(model, *sizes, act=act) as running, WorkerCount(running.supervisor_pid) as count:
        load = OpenLoad(running.grpc, make_requests(12, seed, tokens=(20, 30)), timeout_s=600)
        load.reference()
        time.sleep((3 if act else 1) * INTERVAL_S)  # the reference run is no part of what is asked
        load.arrivals = poisson(phases, seed)
        errors: list[tuple[float, float]] = []
        thoughts = []
        with load:
            begin = time.monotonic()
            while time.monotonic() < begin + length:
                time.sleep(min(INTERVAL_S, max(0.1, begin + length - time.monotonic())))
                stats = ask(running, "GetStats", autoscaler_pb2.AutoscalerServiceGetStatsRequest())
                errors.append((time.monotonic() - begin, stats.model_error_ratio))
                plan = ask(running, "GetPlan", autoscaler_pb2.GetPlanRequest())
                why = ask(running, "Explain", autoscaler_pb2.ExplainRequest(limit=12))
                thoughts.append((errors[-1][0], MessageToDict(plan), MessageToDict(why)))
        begin = load.began
        buckets = [
            (t, quantile(load.tpot(t, t + INTERVAL_S), 0.5), quantile(load.tpot(t, t + INTERVAL_S), 0.95))
            for t in itertools.takewhile(lambda t: t < length, itertools.count(0, INTERVAL_S))
        ]
        return {
            "streams": len(load.streams), "tokens": load.tokens(), "problems": list(load.problems()),
            "buckets": buckets, "sizes": [(t - begin, a, e) for t, a, e in count.rows if 0 <= t - begin < length],
            "worker_seconds": count.worker_seconds(begin, begin + length), "errors": errors,
            "thoughts": thoughts,
            "ttft_p95": quantile(load.ttft(0, length), 0.95), "length": length,
            "log": [line for line in running.log("autoscaler-0").splitlines() if "->" in line or "WARN" in line],
        }  # fmt: skip


def settled(result: dict[str, Any], phases: Any = PHASES) -> list[tuple[float, float]]:
    """(time, p95) of the intervals two or more after each change of the load, while there is any."""
    found, begin = [], 0.0
    for seconds, rate in phases:
        found += [
            (t, p95) for t, _, p95 in result["buckets"]
            if rate and begin + 2 * INTERVAL_S <= t < begin + seconds
        ]  # fmt: skip
        begin += seconds
    return [(t, p95) for t, p95 in found if p95 == p95]


def picture(path: Path, scaled: dict[str, Any], static: dict[str, Any] | None) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, figsize=(9, 8), sharex=True, layout="constrained")
    edges = [0.0, *itertools.accumulate(seconds for seconds, _ in PHASES)]
    axes[0].stairs([rate for _, rate in PHASES], edges, fill=True, alpha=0.4)
    axes[0].set_ylabel("requests/s")
    for name, result in (("autoscaler", scaled), ("static peak", static)):
        if result is not None:
            t = [b[0] + INTERVAL_S / 2 for b in result["buckets"]]
            axes[1].plot(t, [1e3 * b[2] for b in result["buckets"]], marker=".", label=f"{name}, p95")
    axes[1].axhline(OBJECTIVE_MS, color="red", linestyle="--", label="objective")
    axes[1].set_ylabel("TPOT, ms")
    axes[1].legend()
    for column, name in ((1, "attention"), (2, "MoE")):
        axes[2].step(
            [r[0] for r in scaled["sizes"]], [r[column] for r in scaled["sizes"]], where="post", label=name
        )
    axes[2].set_ylabel("worker processes")
    axes[2].set_xlabel("seconds")
    axes[2].legend()
    figure.savefig(path, dpi=110)


def report(scaled: dict[str, Any], fixed: dict[str, Any] | None, peak: tuple[int, int]) -> str:
    """The result file's body."""
    late = settled(scaled)
    within = [t for t, p95 in late if 1e3 * p95 <= OBJECTIVE_MS]
    over = ", ".join(f"{t:.0f} s ({1e3 * p95:.0f} ms)" for t, p95 in late if 1e3 * p95 > OBJECTIVE_MS)
    static = sum(peak) * scaled["length"]
    last = scaled["sizes"][-1]
    error = statistics.median(e for _, e in scaled["errors"])
    lines = [
        NOTES,
        f"Objective: TPOT p95 {OBJECTIVE_MS:g} ms. Decisions every {INTERVAL_S:g} s. Load: "
        + ", ".join(f"{rate:g} requests/s for {s:g} s" for s, rate in PHASES) + ", Poisson, 20 to 30 tokens each.",
        "",
        "| | autoscaler | static, the largest sizes it had |", "| --- | --- | --- |",
        (
            f"| sizes (attention x MoE) | 1 x 1 to {peak[0]} x {peak[1]}, at the end {last[1]} x {last[2]} | "
            f"{peak[0]} x {peak[1]} |"
        ),
        f"| worker-seconds | {scaled['worker_seconds']:.0f} | {static:.0f} |",
        f"| saved | {1 - scaled['worker_seconds'] / static:.0%} | |",
        f"| streams, lost or changed | {scaled['streams']}, {len(scaled['problems'])} | "
        + (f"{fixed['streams']}, {len(fixed['problems'])} |" if fixed else "- |"),
        f"| intervals within the objective, two or more after a change of load | {len(within)} of {len(late)} | "
        + (f"{sum(1e3 * p <= OBJECTIVE_MS for _, p in settled(fixed))} of {len(settled(fixed))} |" if fixed else "- |"),
        f"| TTFT p95, s | {scaled['ttft_p95']:.2f} | " + (f"{fixed['ttft_p95']:.2f} |" if fixed else "- |"),
        f"| model error (median of what the autoscaler told during the run) | {error:.1%} | |",
        "", f"Settled intervals over the objective: {over or 'none'}.",
        "", "![TPOT and workers](autoscaler.png)", "",
        "| s | TPOT p50, ms | p95, ms | static p95, ms |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for i, (t, p50, p95) in enumerate(scaled["buckets"]):
        if p95 == p95:
            other = f"{1e3 * fixed['buckets'][i][2]:.0f}" if fixed else "-"
            lines.append(f"| {t:.0f} | {1e3 * p50:.0f} | {1e3 * p95:.0f} | {other} |")
    lines += ["", "What the autoscaler decided:", "", "```", *scaled["log"], "```"]
    return "\n".join(lines)


@click.command()
@click.option("--seed", type=int, default=3, show_default=True)
@click.option("--static/--no-static", default=True, help="Run the same load at the largest sizes, too.")
@click.option("--keep", type=click.Path(path_type=Path), help="Write the raw results here, JSON.")
def main(seed: int, static: bool, keep: Path | None) -> None:
    """Run it."""
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny(Path(folder) / "model", family="qwen3_moe", seed=11, num_experts=32)
        scaled = run(model, (1, 1), act=True, seed=seed)
        peak = tuple(max(row[i] for row in scaled["sizes"]) for i in (1, 2))
        fixed = run(model, (peak[0], peak[1]), act=False, seed=seed) if static else None
    if keep:
        keep.write_text(json.dumps({"scaled": scaled, "static": fixed}))
    picture(Path(__file__).parent / "results" / "autoscaler.png", scaled, fixed)
    write(
        "autoscaler", "Autoscaler on a real mesh", f"python benchmarks/bench_autoscaler.py --seed {seed}",
        report(scaled, fixed, (peak[0], peak[1])),
    )  # fmt: skip
    print(json.dumps({"log": scaled["log"], "problems": scaled["problems"]}, indent=1))


if __name__ == "__main__":
    main()
