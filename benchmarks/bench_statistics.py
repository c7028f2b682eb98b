"""What activation statistics cost a step: processor time of recording and reporting, against a step's own.

``python benchmarks/bench_statistics.py --model .janus/demo``: one MoE worker's passes of a step over all its layers
in this process, one thread, with and without the recorder, in turns. Writes results/statistics.md.
"""

from __future__ import annotations

import statistics
import time

import click
import torch
from janus_kernels import ReplicaLayout, set_num_threads
from janus_models.checkpoint import Checkpoint
from janus_models.config import load_config
from janus_models.experts import ExpertModel
from janus_moe.compute import HostedLayout, MoeCompute, PassCounters
from janus_placement import Recorder
from machine import write

REPORT_S = 2.0


@click.command()
@click.option("--model", default=".janus/demo", show_default=True, help="Checkpoint directory.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--dry", is_flag=True, help="Write nothing.")
def main(model: str, rounds: int, dry: bool) -> None:
    """Measure and write the results."""
    torch.set_num_threads(1)
    set_num_threads(1)
    torch.set_grad_enabled(False)
    config = load_config(model)
    experts = ExpertModel(config, Checkpoint(model))
    count, layers = config.moe.num_experts, experts.num_layers
    loaded = {(layer, e): experts.load(layer, e) for layer in range(layers) for e in range(count)}
    layout = ReplicaLayout.from_placement([list(range(count))], num_experts=count, slots=count)
    compute = MoeCompute(experts, PassCounters())
    compute.adopt(HostedLayout(version=1, rank=0, policy="optimal", layers=[layout] * layers), loaded)
    rows = [
        "| tokens a step | passes, ms | recording, us | share | a report of all layers, us | share at one in 2 s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for tokens in (1, 4, 16, 64):
        x_TD, out_TD = (
            torch.randn(tokens, config.hidden),
            torch.empty(tokens, config.hidden, dtype=torch.float64),
        )
        ids = [experts.gate(layer, x_TD) for layer in range(layers)]
        recorder = Recorder(count, config.moe.top_k)
        passes, records, reports = [], [], []
        for _ in range(rounds):
            began = time.process_time()
            for layer, (ids_TK, weights_TK) in enumerate(ids):
                experts.gate(layer, x_TD)
                compute.run(layer, x_TD, ids_TK, weights_TK, out_TD)
            passes.append(time.process_time() - began)
            began = time.process_time()
            for _ in range(10):
                for layer, (ids_TK, _) in enumerate(ids):
                    recorder.observe(layer, ids_TK.numpy())
            records.append((time.process_time() - began) / 10)
            began = time.process_time()
            for report in recorder.take():
                b"".join(report.to_fields().values())
            reports.append(time.process_time() - began)
        step, record, report_s = (statistics.median(values) for values in (passes, records, reports))
        rows.append(
            f"| {tokens} | {1e3 * step:.1f} | {1e6 * record:.0f} | {record / step:.2%} | {1e6 * report_s:.0f} | "
            f"{report_s / REPORT_S:.3%} |"
        )
    intro = (
        f"{layers} MoE layers of {count} experts, top-{config.moe.top_k}, all on one worker that reports every layer: "
        "with n workers each reports one in n. Processor time, medians; a step's share is of the router and experts "
        "alone, without attention and exchange."
    )
    body = "\n".join(
        [
            intro,
            "",
            *rows,
        ]
    )  # fmt: skip
    click.echo(body)
    if not dry:
        write(
            "statistics",
            "Cost of activation statistics",
            f"python benchmarks/bench_statistics.py --model {model}",
            body,
        )


if __name__ == "__main__":
    main()
