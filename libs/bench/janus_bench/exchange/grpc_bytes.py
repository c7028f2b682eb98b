"""The baseline: the same bytes there and back as unary gRPC calls on loopback, between two processes."""

from __future__ import annotations

import multiprocessing
import time
from concurrent import futures
from multiprocessing.connection import Connection
from typing import Any

import grpc

from janus_bench.errors import BenchError

_METHOD = "/janus.bench.Bytes/Echo"
_OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


class _Echo(grpc.GenericRpcHandler):
    """Answers as many bytes as it gets, neither parsed nor copied."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method != _METHOD:
            return None
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)


def _serve(connection: Connection) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(1), options=_OPTIONS)
    server.add_generic_rpc_handlers((_Echo(),))
    connection.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    connection.poll(None)  # until the other side says so, or is gone
    server.stop(0)


def round_trips(sizes: tuple[int, ...], count: int, deadline_s: float) -> dict[int, list[float]]:
    """Seconds of ``count`` round trips of each payload size; the first tenth is not counted. BenchError after
    ``deadline_s``."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=_serve, args=(theirs,), daemon=True)
    server.start()
    theirs.close()
    deadline = time.monotonic() + deadline_s
    found: dict[int, list[float]] = {}
    try:
        if not ours.poll(deadline_s):
            raise BenchError("the gRPC server of the baseline said nothing in time")
        with grpc.insecure_channel(f"127.0.0.1:{ours.recv()}", options=_OPTIONS) as channel:
            echo: Any = channel.unary_unary(_METHOD)
            for size in sizes:
                payload = bytes(size)
                times = found[size] = []
                for i in range(count):
                    began = time.perf_counter()
                    answer = echo(payload, timeout=max(0.1, deadline - time.monotonic()), wait_for_ready=True)
                    if i >= count // 10:
                        times.append(time.perf_counter() - began)
                    if len(answer) != size:
                        raise BenchError(f"gRPC answered {len(answer)} bytes of {size}")
    except (grpc.RpcError, EOFError) as error:
        raise BenchError(f"the gRPC baseline failed: {error}") from error
    finally:
        ours.close()
        server.join(5)
        if server.is_alive():
            server.kill()
    return found
