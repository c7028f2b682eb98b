"""Users' latency under load: ShareGPT's questions, arriving at random, at a mesh of real processes.

``python benchmarks/bench_serve.py --model .janus/demo``: starts 2 attention x 3 MoE workers under the supervisor and
loads them with ``janus bench serve`` through the gateway's HTTP. Writes results/serve.md and .png. The same load at
any OpenAI-compatible server: ``janus bench serve --url http://host:port --data sharegpt --requests 200 --rate 1``.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
from janus_testing import LocalMesh
from machine import write

RESULTS = Path(__file__).parent / "results"


@click.command()
@click.option("--model", default=".janus/demo", show_default=True, help="Checkpoint directory.")
@click.option("--shape", default="2x3", show_default=True, help="Attention x MoE workers.")
@click.option("--requests", default=200, show_default=True)
@click.option(
    "--rate", "rates", default="1", show_default=True, help="Requests per second; several: a run each."
)
@click.option(
    "--max-tokens", default=32, show_default=True, help="Of an answer; ShareGPT's own length below it."
)
@click.option("--save/--no-save", default=True)
def main(model: str, shape: str, requests: int, rates: str, max_tokens: int, save: bool) -> None:
    """Measure; writes results/serve.md."""
    m, n = (int(number) for number in shape.split("x"))
    parts = []
    with LocalMesh(model, attention=m, experts=n) as mesh:
        for rate in rates.split(","):
            command = [
                "janus", "bench", "serve", "--data", "sharegpt", "--requests", str(requests), "--rate", rate,
                "--max-tokens", str(max_tokens),
            ]  # fmt: skip
            picture = RESULTS / f"serve_{rate}.png"
            where = ["--url", f"http://{mesh.http}", *(["--picture", str(picture)] if save else [])]
            done = subprocess.run(
                [sys.executable, "-m", "janus_cli", *command[1:], *where], stdout=subprocess.PIPE, text=True,
                timeout=120 + 3 * requests / float(rate), check=False,
            )  # fmt: skip
            if done.returncode:
                raise click.ClickException(f"janus bench serve ended with {done.returncode}:\n{done.stdout}")
            parts.append(
                f"## {rate} requests per second\n\n`{shlex.join(command)}`\n\n```\n{done.stdout.strip()}\n```"
                + (f"\n\n![latencies]({picture.name})" if save else "")
            )
            click.echo(parts[-1])
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    body = (
        f"{m} attention and {n} MoE workers, checkpoint `{Path(model).name}`, whose processes and the load share the "
        f"machine's cores. Load averages at the end (1, 5, 15 min): {load}.\n\n" + "\n\n".join(parts)
    )
    if save:
        click.echo(
            f"written to {write('serve', 'Serving ShareGPT', 'python benchmarks/bench_serve.py', body)}"
        )


if __name__ == "__main__":
    main()
