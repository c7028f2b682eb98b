"""Round trip of the exchange between two processes, beside bare UCXX in the same run.

``python benchmarks/bench_exchange.py``: per UCX transport and size the median of both, taken in turns, and
their ratio. "bare" is ``ucxx._lib`` used directly: one tag send, one tag receive, the same wait loop without
frames, buffers in a ring, liveness checks or deadlines.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import click
import numpy as np
from machine import write

KINDS = ("bare", "exchange")


def bare_pinger(transport: object, peer: int, size: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """(ping, pong) over UCXX itself."""
    from janus_transport.ucx import UcxTransport

    assert isinstance(transport, UcxTransport)
    ucx, array, worker = transport._ucx, transport._array, transport._worker
    endpoint = transport._endpoints[peer]
    out, into = np.zeros(max(size, 1), np.uint8), np.zeros(max(size, 1), np.uint8)
    # Tags of their own, so that the exchange's posted receives do not take these messages.
    there, back = ucx.UCXXTag(0x1000 + transport.member), ucx.UCXXTag(0x1000 + peer)

    def finish(*requests: object) -> None:
        spin = time.monotonic() + 50e-6
        while True:
            worker.progress()
            if all(r.completed for r in requests):  # type: ignore[attr-defined]
                return
            if time.monotonic() < spin:
                os.sched_yield()
            else:
                worker.progress_worker_event(100)

    def ping() -> None:
        receive = endpoint.tag_recv(array(into), back)
        finish(endpoint.tag_send(array(out), there), receive)

    def pong() -> None:
        finish(endpoint.tag_recv(array(into), back))
        finish(endpoint.tag_send(array(out), there))

    return ping, pong


def exchange_pinger(
    exchange: object, member: int, peer: int, size: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """(ping, pong) over Exchange."""
    from janus_transport import Exchange, Header, Kind

    assert isinstance(exchange, Exchange)
    buffer = exchange.allocate()
    header = Header(kind=Kind.HIDDEN, epoch=1, step=0, source=member, payload_bytes=size)

    def send() -> None:
        exchange.reclaim(buffer)
        exchange.send([peer], header, buffer)

    def receive() -> None:
        exchange.wait(
            lambda: exchange.peek(peer) is not None,
            deadline=time.monotonic() + 60,
            waiting_for=lambda: [peer],
        )
        exchange.pop(peer)

    def ping() -> None:
        send()
        receive()

    def pong() -> None:
        receive()
        send()

    return ping, pong


def side(connection: Connection, member: int, tls: str, sizes: list[int], rounds: int, count: int) -> None:
    """One process; member 1 measures."""
    os.environ["UCX_TLS"] = tls
    from janus_transport import Exchange, WaitTimeout, create_transport

    transport = create_transport("ucx", member=member)
    connection.send(transport.address)
    peer = 3 - member
    exchange = Exchange(transport, member=member, max_payload=max(sizes))
    exchange.set_peers({peer: connection.recv()})
    connection.send("ready")
    connection.recv()
    samples: dict[tuple[str, int], list[float]] = {}
    for size in sizes:
        pairs = {
            "bare": bare_pinger(transport, peer, size),
            "exchange": exchange_pinger(exchange, member, peer, size),
        }
        for _ in range(rounds):
            for kind in KINDS:
                ping, pong = pairs[kind]
                for i in range(count):
                    began = time.perf_counter()
                    (ping if member == 1 else pong)()
                    if i >= count // 10:
                        samples.setdefault((kind, size), []).append(time.perf_counter() - began)
    if member == 1:
        connection.send({f"{kind} {size}": statistics.median(s) * 1e6 for (kind, size), s in samples.items()})
    try:
        # The peer may still wait for our part of the last message.
        exchange.wait(lambda: False, deadline=time.monotonic() + 1)
    except WaitTimeout:
        transport.close()


def measure(tls: str, sizes: list[int], rounds: int, count: int) -> dict[str, float]:
    """Medians in microseconds by "kind size"."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for member in (1, 2):
        ours, theirs = context.Pipe()
        process = context.Process(target=side, args=(theirs, member, tls, sizes, rounds, count), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    addresses = [pipe.recv() for pipe in pipes]
    for pipe, address in zip(pipes, reversed(addresses), strict=True):
        pipe.send(address)
    for pipe in pipes:
        pipe.recv()
    for pipe in pipes:
        pipe.send("go")
    if not pipes[0].poll(300):
        raise click.ClickException(f"no result over {tls} within 300 s")
    medians: dict[str, float] = pipes[0].recv()
    for process in processes:
        process.join(20)
    return medians


@click.command()
@click.option(
    "--tls", multiple=True, default=("shm,tcp", "tcp"), show_default=True, help="UCX_TLS values to measure."
)
@click.option("--sizes", default="1024,16384,262144,4194304", show_default=True, help="Payload bytes.")
@click.option("--rounds", default=5, show_default=True, help="Turns of each kind.")
@click.option("--count", default=200, show_default=True, help="Round trips per turn.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; write no file.")
def main(tls: tuple[str, ...], sizes: str, rounds: int, count: int, as_json: bool) -> None:
    """Measure round trips; writes results/exchange.md."""
    numbers = [int(size) for size in sizes.split(",")]
    results = {name: measure(name, numbers, rounds, count) for name in tls}
    if as_json:
        click.echo(json.dumps(results))
        return
    rows = ["| UCX_TLS | payload | bare UCXX, us | exchange, us | ratio |", "| --- | --- | --- | --- | --- |"]
    for name, medians in results.items():
        for size in numbers:
            bare, ours = medians[f"bare {size}"], medians[f"exchange {size}"]
            rows.append(f"| {name} | {size} | {bare:.0f} | {ours:.0f} | {ours / bare:.2f} |")
    body = "Median round trip between two processes, both kinds in turns.\n\n" + "\n".join(rows)
    click.echo(body)
    click.echo(
        f"written to {write('exchange', 'Round trip of the exchange', 'python benchmarks/bench_exchange.py', body)}"
    )


if __name__ == "__main__":
    main()
