"""What /metrics shows of workers: pure, and from workers that answer, fail or hang."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
from gateway_fakes import Mesh
from janus_gateway import worker_metrics
from janus_gateway.worker_metrics import WorkerMetrics, families
from janus_runtime.metrics import ATTENTION, BY_NAME, MOE, Metric
from janus_runtime.records import Lease, Role
from janus_runtime.settings import ServiceSettings
from janus_wire.v1 import attention_pb2, common_pb2, moe_pb2, moe_pb2_grpc
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families


def lease(name: str, address: str = "x:1") -> Lease:
    return Lease(worker_id=name, member=1, role=Role(name.partition("-")[0]), pid=1, grpc_address=address)


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def shown(answers: list[Any]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return samples(generate_latest(worker_metrics._Scrape(families(answers))).decode())


def histogram(draw: random.Random) -> common_pb2.Histogram:
    return common_pb2.Histogram(
        bounds=[0.1, 0.5], counts=[draw.randrange(9) for _ in range(3)], sum=draw.random()
    )


def fill(message: Any, metrics: tuple[Metric, ...], draw: random.Random) -> Any:
    """Every scalar field set to a number of its own."""
    for metric in metrics:
        if "." not in metric.stat and metric.kind != "histogram":
            setattr(message, metric.stat, draw.randrange(1, 10**6))
    return message


def test_every_field_becomes_its_metric() -> None:
    draw = random.Random()
    answers: list[Any] = []
    for i in range(2):
        stats = fill(
            attention_pb2.AttentionServiceGetStatsResponse(exchange_latency=histogram(draw)), ATTENTION, draw
        )
        answers.append((lease(f"attention-{i}"), stats))
        groups = [
            moe_pb2.LayerGroupStats(
                first_layer=g * 2, last_layer=g * 2 + 1, passes=draw.randrange(9), a_max_sum=draw.randrange(9),
                a_max_bound_sum=draw.randrange(9), expert_tokens=[draw.randrange(3) for _ in range(5)],
            )
            for g in range(2)
        ]  # fmt: skip
        moe = moe_pb2.ExpertServiceGetStatsResponse(schedule_latency=histogram(draw), layer_groups=groups)
        answers.append((lease(f"moe-{i}"), fill(moe, MOE, draw)))
    answers.append((lease("moe-2"), None))
    found = shown(answers)
    expected: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}

    def put(name: str, value: float, **labels: str) -> None:
        expected[name, frozenset(labels.items())] = value

    for who, stats in answers:
        put("janus_worker_up", float(stats is not None), worker=who.worker_id, role=str(who.role))
        for metric in (ATTENTION if who.role is Role.ATTENTION else MOE) if stats is not None else ():
            suffix = "_total" if metric.kind == "counter" else ""
            if metric.kind == "histogram":
                value = getattr(stats, metric.stat)
                put(f"{metric.name}_bucket", value.counts[0], worker=who.worker_id, le="0.1")
                put(
                    f"{metric.name}_bucket", value.counts[0] + value.counts[1], worker=who.worker_id, le="0.5"
                )
                put(f"{metric.name}_bucket", sum(value.counts), worker=who.worker_id, le="+Inf")
                put(f"{metric.name}_count", sum(value.counts), worker=who.worker_id)
                put(f"{metric.name}_sum", value.sum, worker=who.worker_id)
            elif "." not in metric.stat:
                put(metric.name + suffix, getattr(stats, metric.stat), worker=who.worker_id)
            else:
                for group in stats.layer_groups:
                    labels = {"worker": who.worker_id, "layers": f"{group.first_layer}-{group.last_layer}"}
                    value = getattr(group, metric.stat.partition(".")[2])
                    if "expert" in metric.labels:
                        for expert, count in enumerate(value):
                            if count:
                                put(metric.name + suffix, count, **labels, expert=str(expert))
                    else:
                        put(metric.name + suffix, value, **labels)
    assert found == pytest.approx(expected)


def test_a_worker_that_has_not_reported_shows_zeros() -> None:
    found = shown([(lease("moe-0"), moe_pb2.ExpertServiceGetStatsResponse())])
    assert found["janus_moe_steps_total", frozenset({("worker", "moe-0")})] == 0
    assert not any(name.startswith("janus_moe_schedule_seconds") for name, _ in found)


async def test_the_gateway_asks_workers_at_a_scrape(served: Mesh) -> None:
    async with httpx.AsyncClient(base_url=served.http) as client:
        text = (await client.get("/metrics")).text
    # The fake worker knows no GetStats: it is there and does not answer; the gateway's own are unharmed.
    assert 'janus_worker_up{role="attention"' in text and "janus_gateway_cohort_epoch" in text
    names = {family.name for family in text_string_to_metric_families(text)}
    assert names == set(BY_NAME), "what is exported is what is declared"


@pytest.fixture
async def experts() -> AsyncIterator[tuple[Any, str]]:
    class Experts(moe_pb2_grpc.ExpertServiceServicer):
        hang = False

        async def GetStats(self, request: Any, context: Any) -> moe_pb2.ExpertServiceGetStatsResponse:
            if self.hang:
                await asyncio.sleep(30)
            return moe_pb2.ExpertServiceGetStatsResponse(steps=7)

    server, servicer = grpc.aio.server(), Experts()
    moe_pb2_grpc.add_ExpertServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(0)


async def test_one_that_hangs_costs_a_bounded_time(
    experts: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_metrics, "TIMEOUT_S", 0.3)
    servicer, address = experts
    metrics = WorkerMetrics(ServiceSettings(worker_id="g", redis_url="redis://x"))
    up = ("janus_worker_up", frozenset({("worker", "moe-0"), ("role", "moe")}))
    found = samples((await metrics.render([lease("moe-0", address), lease("gateway-0")])).decode())
    assert found[up] == 1 and found["janus_moe_steps_total", frozenset({("worker", "moe-0")})] == 7
    servicer.hang = True
    found = samples((await metrics.render([lease("moe-0", address)])).decode())
    assert found[up] == 0 and not any(name.startswith("janus_moe_steps") for name, _ in found)
    servicer.hang = False
    assert samples((await metrics.render([lease("moe-0", address)])).decode())[up] == 1
    assert not samples((await metrics.render([])).decode()) and not metrics._channels
    await metrics.close()
