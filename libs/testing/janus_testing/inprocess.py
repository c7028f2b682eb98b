"""A mesh in one process: every engine a thread, no gRPC, no Redis. The engines are the real ones.

::

    with InProcessMesh(model_dir, attention=2, experts=3) as mesh:
        answers = mesh.generate([[1, 2, 3], [4, 5]], max_tokens=8)
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from janus_attention.drafter import Drafter
from janus_attention.engine import AttentionEngine
from janus_attention.engine import EngineOptions as AttentionOptions
from janus_attention.graphs import Recorder
from janus_models.checkpoint import Checkpoint
from janus_models.config import load_config
from janus_models.decoder import AttentionModel
from janus_models.experts import ExpertModel
from janus_moe.engine import EngineOptions as MoeOptions
from janus_moe.engine import MoeEngine
from janus_scheduler.placement import layers_round_robin
from janus_transport import Transport, create_transport
from janus_worker.engine import CohortEngine
from janus_worker.link import ChildGone, ControlLink, FrameParser, Message, encode

from janus_testing.pretended_gpu import PretendedGpu

_LOG = logging.getLogger("janus.testing")
GREEDY = {"temperature": 0.0}


@dataclass(slots=True)
class Answer:
    """What one request got."""

    tokens: list[int] = field(default_factory=list)
    finish: str = ""
    logits: list[np.ndarray[Any, np.dtype[np.float32]]] = field(default_factory=list)
    error: str = ""


@dataclass(slots=True, kw_only=True)
class Worker:
    """One engine and the test's end of its link."""

    worker_id: str
    member: int
    thread: threading.Thread | None
    """None where the engine is a process."""
    sock: socket.socket
    parser: FrameParser = field(default_factory=FrameParser)
    hello: dict[str, Any] = field(default_factory=dict)
    epoch: int = 0
    stats: dict[str, float] = field(default_factory=dict)
    spans: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    failure: list[BaseException] = field(default_factory=list)
    node: str = ""
    """Label of the node that it says to be on."""

    def send(self, body: dict[str, Any]) -> None:
        """A control message to the engine."""
        self.sock.sendall(encode(body))


class InProcessMesh:
    """m attention engines by n MoE engines over a transport of this process: a name, or made from a member number."""

    def __init__(
        self,
        model_dir: str | Path,
        *,
        attention: int = 1,
        experts: int = 1,
        slots: int | None = None,
        gating: str = "moe",
        scheduling: str = "optimal",
        exchange: str = "auto",
        nodes: Callable[[str, int], str] = lambda role, index: "",
        transport: str | Callable[[int], Transport] = "inproc",
        attention_options: AttentionOptions | None = None,
        moe_options: MoeOptions | None = None,
        drafter: Drafter | None = None,
        recorder: Recorder | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        timeout_s: float = 60.0,
    ) -> None:
        """``nodes``: from a worker's role and number among those of its role, from 0, to its node's label."""
        self.model_dir = Path(model_dir)
        self.config = load_config(model_dir)
        self.gating, self.scheduling, self.exchange = gating, scheduling, exchange
        self._nodes = nodes
        self.slots = slots
        self.epoch = 0
        self.attention: list[Worker] = []
        self.moe: list[Worker] = []
        self._wanted = (attention, experts)
        self._transport: Callable[[int], Transport] = (
            (lambda member: create_transport(transport, member=member))
            if isinstance(transport, str)
            else transport
        )
        self._attention_options = attention_options or AttentionOptions(kv_tokens=4096)
        self._moe_options = moe_options or MoeOptions(
            max_batch_tokens=self._attention_options.max_batch_tokens
        )
        self._drafter = drafter
        self._recorder = recorder
        self._dtype, self._device = dtype, device
        self._timeout_s = timeout_s
        self._members = itertools.count(1)
        self._requests = itertools.count(1)
        self._answers: dict[int, Answer] = {}

    # Life -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            for _ in range(self._wanted[0]):
                self.add_attention()
            for _ in range(self._wanted[1]):
                self.add_moe()
            self.form()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop every engine and wait for its thread."""
        for worker in self.workers:
            self.stop(worker)

    @property
    def workers(self) -> list[Worker]:
        """Attention workers, then MoE workers."""
        return [*self.attention, *self.moe]

    def add_attention(self) -> Worker:
        """Start an attention engine; it joins with the next :meth:`form`."""

        def build(transport: Transport, link: ControlLink, member: int) -> CohortEngine:
            what = Checkpoint(self.model_dir), self._dtype, self._device
            return AttentionEngine(
                AttentionModel(self.config, *what), ExpertModel(self.config, *what),
                transport, link, member=member, options=self._attention_options, drafter=self._drafter,
                recorder=self._recorder,
            )  # fmt: skip

        worker = self._start("attention", build)
        worker.node = self._nodes("attention", len(self.attention))
        self.attention.append(worker)
        return worker

    def add_moe(self) -> Worker:
        """Start a MoE engine; it joins with the next :meth:`form`."""

        def build(transport: Transport, link: ControlLink, member: int) -> CohortEngine:
            model = ExpertModel(self.config, Checkpoint(self.model_dir), self._dtype, self._device)
            return MoeEngine(model, transport, link, member=member, options=self._moe_options)

        worker = self._start("moe", build)
        worker.node = self._nodes("moe", len(self.moe))
        self.moe.append(worker)
        return worker

    def _start(self, role: str, build: Callable[[Transport, ControlLink, int], CohortEngine]) -> Worker:
        member = next(self._members)
        ours, theirs = socket.socketpair()
        failure: list[BaseException] = []

        def run() -> None:
            torch.set_grad_enabled(False)
            transport = self._transport(member)
            try:
                with PretendedGpu() if self._device == "cuda:0" else contextlib.nullcontext():
                    build(transport, ControlLink(theirs), member).run()
            except ChildGone:
                pass
            except BaseException as error:  # noqa: BLE001 - forwarded to the test's thread
                _LOG.exception("engine of member %d failed", member)
                failure.append(error)
            finally:
                transport.close()
                theirs.close()

        thread = threading.Thread(target=run, name=f"{role}-{member}", daemon=True)
        worker = Worker(
            worker_id=f"{role}-{member}", member=member, thread=thread, sock=ours, failure=failure
        )
        thread.start()
        return worker

    def stop(self, worker: Worker) -> None:
        """End an engine by closing its link, and forget it."""
        assert worker.thread is not None
        worker.sock.close()
        worker.thread.join(self._timeout_s)
        self.forget(worker)
        if worker.thread.is_alive():
            raise TimeoutError(f"{worker.worker_id} did not stop within {self._timeout_s:.0f} s")

    def forget(self, worker: Worker) -> None:
        """Leave a worker out of the next cohort."""
        for group in (self.attention, self.moe):
            if worker in group:
                group.remove(worker)

    def form(
        self,
        placement: Sequence[Sequence[Sequence[int]]] | None = None,
        *,
        leaving: Sequence[Worker] = (),
        follows: bool = False,
        wait: bool = True,
    ) -> None:
        """Announce a new cohort of all workers and wait until each has taken it up.

        ``leaving``: forgotten workers that live on and hear of it too; ``follows``: nobody was lost, so that the step
        under way may be finished.
        """
        self.pump(lambda: all(worker.hello for worker in self.workers), "every engine's hello")
        self.epoch += 1
        layers, count = len(self.config.moe_layers), self.config.moe.num_experts
        slots = self.slots or -(-count // len(self.moe))
        if placement is None:
            placement = layers_round_robin(count, [slots] * len(self.moe), layers)
        body = {
            "t": "cohort", "epoch": self.epoch, "gating": self.gating, "scheduling": self.scheduling,
            "exchange": self.exchange,
            "attention": [self._row(worker) for worker in self.attention],
            "moe": [self._row(worker) for worker in self.moe],
            "follows": self.epoch - 1 if follows else None,
            "layout_version": self.epoch, "num_experts": count, "slots": slots, "placement": placement,
        }  # fmt: skip
        for worker in [*leaving, *self.workers]:
            worker.send(body)
        if wait:
            self.pump(
                lambda: all(w.epoch == self.epoch for w in self.workers), f"epoch {self.epoch} everywhere"
            )

    @staticmethod
    def _row(worker: Worker) -> list[Any]:
        address = base64.b64encode(bytes.fromhex(worker.hello["address"])).decode()
        return [worker.member, address, worker.worker_id, worker.node]

    # Requests ---------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        *,
        worker: int = 0,
        max_tokens: int = 16,
        resumed: Sequence[int] = (),
        logits: bool = False,
        trace: tuple[str, str] | None = None,
        priority: int = 0,
        **sampling: Any,
    ) -> int:
        """Queue a request on an attention worker; its number for :meth:`answer`."""
        number = next(self._requests)
        self._answers[number] = Answer()
        merged = {"stop_token_ids": [], "max_tokens": max_tokens, **GREEDY, **sampling}
        self.attention[worker].send(
            {
                "t": "submit", "id": number, "prompt": list(prompt), "resumed": list(resumed), "logits": logits,
                "sampling": merged, "trace": trace, "priority": priority, "waited_ms": 0,
            }
        )  # fmt: skip
        return number

    def cancel(self, number: int, *, worker: int = 0) -> None:
        """Cancel a request."""
        self.attention[worker].send({"t": "cancel", "id": number})

    def peek(self, number: int) -> Answer:
        """What a request has got so far."""
        return self._answers[number]

    def answer(self, number: int) -> Answer:
        """Wait for a request's end."""
        self.pump(lambda: bool(self._answers[number].finish), f"the end of request {number}")
        return self._answers[number]

    def generate(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[Answer]:
        """Run prompts at once, spread over the attention workers; answers in order."""
        spread = len(self.attention)
        numbers = [self.submit(prompt, worker=i % spread, **options) for i, prompt in enumerate(prompts)]
        return [self.answer(number) for number in numbers]

    # Engine messages --------------------------------------------------------------------------

    def pump(self, done: Callable[[], bool], what: str) -> None:
        """Handle engine messages until ``done()``; TimeoutError names ``what`` and what engines last said."""
        deadline = time.monotonic() + self._timeout_s
        while not done():
            for worker in self.workers:
                if worker.failure:
                    raise RuntimeError(f"{worker.worker_id} failed") from worker.failure[0]
            if time.monotonic() > deadline:
                said = {worker.worker_id: worker.events[-1:] for worker in self.workers}
                raise TimeoutError(f"waited {self._timeout_s:.0f} s for {what}; engines last said {said}")
            ready, _, _ = select.select([worker.sock for worker in self.workers], [], [], 0.2)
            for worker in self.workers:
                if worker.sock in ready:
                    self._receive(worker)

    def _receive(self, worker: Worker) -> None:
        data = worker.sock.recv(1 << 20)
        if not data:
            worker.failure.append(ChildGone(f"the engine {worker.worker_id} has closed its link"))
        for message in worker.parser.feed(data):
            self._handle(worker, message)

    def _handle(self, worker: Worker, message: Message) -> None:
        body = message.body
        kind = body["t"]
        if kind == "hello":
            worker.hello = body
        elif kind == "epoch":
            worker.epoch = body["epoch"]
        elif kind == "stats":
            worker.stats = body["stats"]
        elif kind == "spans":
            worker.spans += body["spans"]
        elif kind == "tokens":
            self._tokens(message)
        else:
            worker.events.append(body)

    def _tokens(self, message: Message) -> None:
        offset = 0
        for item in message.body["items"]:
            answer = self._answers[item["id"]]
            if "token" in item:
                answer.tokens.append(item["token"])
            if size := item.get("logits"):
                answer.logits.append(np.frombuffer(message.blob[offset : offset + size], np.float32))
                offset += size
            answer.error = item.get("error", "")
            answer.finish = item.get("finish", "")


def settled(mesh: InProcessMesh, tokens: int) -> dict[str, float]:
    """The first attention worker's counters once it has reported that many tokens and nothing left to do."""

    def done() -> bool:
        stats = mesh.attention[0].stats
        return stats.get("generated_tokens", 0) >= tokens and not stats["running"] and not stats["waiting"]

    mesh.pump(done, f"the report of {tokens} tokens")
    return mesh.attention[0].stats
