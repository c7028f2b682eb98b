"""A gateway that is no gateway: a real gRPC server with canned answers, recording what it was asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from janus_runtime.errors import JanusError
from janus_wire.v1 import common_pb2, generation_pb2, generation_pb2_grpc

WORDS = ("Hello", " from", " a", " fake", " gateway", ".")


@dataclass
class FakeGateway(generation_pb2_grpc.GenerationServiceServicer):
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    error: JanusError | None = None
    pause_s: float = 0.0
    cancelled: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def _seen(self, request: Any, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.error is not None:
            context.abort_with_status(self.error.to_status())

    def Generate(self, request: Any, context: Any) -> Iterator[generation_pb2.GenerateResponse]:
        self._seen(request, context)
        context.add_callback(self.cancelled.set)
        for index, word in enumerate(WORDS):
            time.sleep(self.pause_s)
            response = generation_pb2.GenerateResponse(
                request_id=request.request_id or "made", text=word, token_ids=[index]
            )
            if index == 0:
                response.trace_id = "ab" * 16
            if request.sampling.HasField("logprobs"):
                entry = response.logprobs.add()
                entry.chosen.token_id, entry.chosen.logprob = index, -0.5
                entry.top.add(token_id=index, logprob=-0.5)
            if index == len(WORDS) - 1:
                response.finish_reason = common_pb2.FINISH_REASON_STOP
                response.stop_sequence = "!"
                response.usage.prompt_tokens, response.usage.completion_tokens = 3, len(WORDS)
            yield response

    def CountTokens(self, request: Any, context: Any) -> generation_pb2.CountTokensResponse:
        self._seen(request, context)
        return generation_pb2.CountTokensResponse(tokens=7)

    def GetModelInfo(self, request: Any, context: Any) -> generation_pb2.GetModelInfoResponse:
        self._seen(request, context)
        return generation_pb2.GetModelInfoResponse(
            model="tiny",
            family="mixtral",
            context_length=256,
            vocab_size=512,
            num_layers=2,
            num_experts=8,
            experts_per_token=2,
            dtype="float32",
            fingerprint="abcd",
        )


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    fake = FakeGateway()
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(fake, server)
    fake.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield fake
    server.stop(0).wait(5)
