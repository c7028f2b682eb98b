"""A tiny model directory, a fake attention worker behind real gRPC, and a gateway in this event loop."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
from janus_gateway.__main__ import serve
from janus_gateway.config import GatewaySettings
from janus_models.tiny import write_tokenizer
from janus_models.tokenizer import Tokenizer
from janus_runtime.coordination import Coordination
from janus_runtime.errors import JanusError
from janus_runtime.lease import LeaseKeeper
from janus_runtime.records import CohortMember, CohortRecord, LayoutRecord, Lease, Role, WorkerState
from janus_runtime.redis_server import RedisServer
from janus_runtime.settings import ServiceSettings
from janus_wire.v1 import attention_pb2, attention_pb2_grpc, common_pb2

CONTEXT = 256
EOS = 2


def write_model(directory: Path, *, context: int = CONTEXT, **generation: Any) -> Path:
    """config.json and a byte-level tokenizer: all that a gateway reads."""
    directory.mkdir(parents=True)
    config = {
        "model_type": "mixtral",
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "eos_token_id": EOS,
    }
    (directory / "config.json").write_text(json.dumps(config))
    if generation:
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS, **generation}))
    write_tokenizer(directory)
    return directory


def token_rule(prompt: Sequence[int], index: int, params: common_pb2.SamplingParams) -> int:
    """Token ``index`` of an answer: depends on prompt, place and seed alone; never a special one."""
    seed = 0 if params.temperature == 0 else params.seed
    digest = hashlib.sha256(repr((list(prompt), index, seed)).encode()).digest()
    return 3 + int.from_bytes(digest[:4]) % 250


@dataclass(slots=True)
class FakeWorker(attention_pb2_grpc.AttentionServiceServicer):
    """AttentionService with the worker's rules: max_tokens, stop ids, min_tokens, resumed tokens."""

    name: str
    member: int
    rule: Callable[[Sequence[int], int, common_pb2.SamplingParams], int] = token_rule
    delay_s: float = 0.0
    fail_after: int | None = None
    """Tokens after which a call fails with ``failure``."""
    failure: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    refusal: JanusError | None = None
    """What every call is refused with."""
    leaving: JanusError | None = None
    """What its streams end with, and new ones."""
    hang: bool = False
    bare_finish: bool = False
    """The finish reason comes in a response of its own, after the last token's."""
    requests: list[attention_pb2.AttentionServiceGenerateRequest] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    cancelled: int = 0
    active: int = 0
    server: Any = None
    address: str = ""

    def say(self, tokenizer: Tokenizer, text: str) -> None:
        """Answer with this text, then the end-of-sequence token."""
        ids = [*tokenizer.encode(text, add_special=False), EOS]
        self.rule = lambda prompt, index, params: ids[min(index, len(ids) - 1)]

    async def start(self, address: str = "127.0.0.1:0") -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        attention_pb2_grpc.add_AttentionServiceServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port(address)}"
        await self.server.start()

    async def Generate(
        self,
        request: attention_pb2.AttentionServiceGenerateRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[attention_pb2.AttentionServiceGenerateResponse]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        params = request.sampling
        if self.refusal is not None:
            await context.abort(self.refusal.code, str(self.refusal), self.refusal.trailing_metadata())
        assert not params.stop, "stop strings are the gateway's"
        assert params.temperature == 0 or params.HasField("seed")
        self.active += 1
        made = 0
        try:
            for index in range(len(request.resumed_token_ids), params.max_tokens):
                if self.hang:
                    await asyncio.sleep(3600)
                if self.fail_after is not None and made >= self.fail_after:
                    await context.abort(self.failure, "told to fail")
                if self.leaving is not None:
                    code, details = self.leaving.code, str(self.leaving)
                    await context.abort(code, details, self.leaving.trailing_metadata())
                await asyncio.sleep(self.delay_s)
                token = self.rule(request.prompt_token_ids, index, params)
                made += 1
                response = self._response(token, index, params, first=made == 1)
                finish = response.finish_reason
                if self.bare_finish:
                    response.finish_reason = common_pb2.FINISH_REASON_UNSPECIFIED
                yield response
                if finish and self.bare_finish:
                    if self.fail_after == made:
                        await context.abort(self.failure, "told to fail")
                    yield attention_pb2.AttentionServiceGenerateResponse(finish_reason=finish)
                if self._stops(token, index, params):
                    return
        except (asyncio.CancelledError, GeneratorExit):
            # grpc.aio cancels a handler that awaits, but closes one whose response is being written just then.
            self.cancelled += 1
            raise
        finally:
            self.active -= 1

    def _stops(self, token: int, index: int, params: common_pb2.SamplingParams) -> bool:
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})
        return token in ends and index + 1 > params.min_tokens

    def _response(
        self, token: int, index: int, params: common_pb2.SamplingParams, *, first: bool
    ) -> attention_pb2.AttentionServiceGenerateResponse:
        response = attention_pb2.AttentionServiceGenerateResponse(
            token_ids=[token], first_index=index, queue_us=1000 if first else 0
        )
        if self._stops(token, index, params):
            response.finish_reason = common_pb2.FINISH_REASON_STOP
        elif index + 1 >= params.max_tokens:
            response.finish_reason = common_pb2.FINISH_REASON_LENGTH
        if params.HasField("logprobs"):
            entry = response.logprobs.add()
            entry.chosen.token_id, entry.chosen.logprob = token, -0.5
            for place in range(params.logprobs):
                entry.top.add(token_id=(token + place) % 512, logprob=-0.5 - place)
        return response


@dataclass(slots=True)
class Mesh:
    """Redis, fake workers, a gateway."""

    redis: RedisServer
    coordination: Coordination
    model_dir: Path
    tokenizer: Tokenizer
    workers: list[FakeWorker] = field(default_factory=list)
    keepers: list[LeaseKeeper] = field(default_factory=list)
    http: str = ""
    grpc: str = ""
    epoch: int = 0
    gateway: asyncio.Task[None] | None = None

    async def add_worker(self, *, publish: bool = True, **more: Any) -> FakeWorker:
        """A worker with a lease, in the cohort unless told otherwise."""
        worker = FakeWorker(f"attention-{len(self.workers)}", 0, **more)
        await worker.start()
        keeper = await self.coordination.register(
            Lease(
                worker_id=worker.name,
                member=0,
                role=Role.ATTENTION,
                pid=1,
                grpc_address=worker.address,
                state=WorkerState.READY,
            )
        )
        worker.member = keeper.lease.member
        self.workers.append(worker)
        self.keepers.append(keeper)
        if publish:
            await self.publish()
        return worker

    async def publish(self, workers: Sequence[FakeWorker] | None = None) -> None:
        """A new cohort of these workers (all), and wait until the gateway, if there is one, has it."""
        listed = self.workers if workers is None else workers
        token = await self.coordination.acquire_leader("scheduler-0", 60.0)
        assert token is not None
        self.epoch = await self.coordination.next_epoch()
        members = tuple(
            CohortMember(worker_id=w.name, member=w.member, grpc_address=w.address, transport_address="AA==")
            for w in listed
        )
        moe = (
            CohortMember(
                worker_id="moe-0", member=9999, grpc_address="127.0.0.1:1", transport_address="AA=="
            ),
        )
        await self.coordination.publish_cohort(
            CohortRecord(
                epoch=self.epoch, attention=members, moe=moe, layout_version=1, model="abcd/float32/512"
            ),
            LayoutRecord(version=1, num_experts=8, slots=8, placement=((tuple(range(8)),),) * 2),
            token,
        )
        await self.coordination.resign_leader("scheduler-0", token)

    async def start_gateway(self, **settings: Any) -> None:
        """Run the service itself, in a task; addresses from its lease, as everybody finds them."""
        fields = {
            "redis_url": self.redis.url,
            "worker_id": "gateway-0",
            "model": str(self.model_dir),
            "model_name": "tiny",
            "drain_s": 0.2,
            "node": "here",
            **settings,
        }
        self.gateway = asyncio.create_task(serve(GatewaySettings(**fields)))
        async with asyncio.timeout(15):
            while not self.http:
                if self.gateway.done():
                    await self.gateway
                for lease in await self.coordination.workers(Role.GATEWAY):
                    if lease.state is WorkerState.READY:
                        self.http, self.grpc = f"http://{lease.http_address}", lease.grpc_address
                await asyncio.sleep(0.01)

    async def stop_gateway(self) -> None:
        """Cancel it, as SIGTERM does."""
        if self.gateway is not None:
            self.gateway.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.gateway
            self.gateway, self.http, self.grpc = None, "", ""


@contextlib.asynccontextmanager
async def mesh(model_dir: Path) -> AsyncIterator[Mesh]:
    """Everything but workers and gateway."""
    with RedisServer.start() as redis:
        coordination = await Coordination.connect(ServiceSettings(redis_url=redis.url, worker_id="test"))
        mesh = Mesh(redis, coordination, model_dir, Tokenizer(model_dir))
        try:
            yield mesh
        finally:
            await mesh.stop_gateway()
            for keeper in mesh.keepers:
                await keeper.close()
            for worker in mesh.workers:
                await worker.server.stop(0)
            await coordination.close()


async def ready(mesh: Mesh, epoch: int = 0) -> None:
    """Until the gateway serves the cohort published last."""
    async with asyncio.timeout(10), httpx.AsyncClient() as client:
        while True:
            answer = (await client.get(mesh.http + "/health/ready")).json()
            if answer.get("epoch", -1) == (epoch or mesh.epoch):
                return
            await asyncio.sleep(0.01)


async def until(true: Callable[[], Any], timeout_s: float = 5.0) -> None:
    """Until the condition holds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while not true():
                await asyncio.sleep(0.01)
    assert true()
