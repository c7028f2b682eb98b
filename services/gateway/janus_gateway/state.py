"""``/api/state``: what the dashboard and `janus status` show."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from janus_runtime.records import CohortRecord, Lease

from janus_gateway.generation import Generator
from janus_gateway.metrics import GatewayMetrics
from janus_gateway.model import ServedModel
from janus_gateway.pool import WorkerPool


async def snapshot(
    pool: WorkerPool, generator: Generator, model: ServedModel, metrics: GatewayMetrics, worker_id: str
) -> dict[str, Any]:
    """JSON of the mesh as this gateway sees it."""
    leases = await pool.leases()
    cohort = pool.cohort
    config = model.config
    return {
        "time": time.time(),
        "ready": not pool.unready(),
        "reasons": pool.unready(),
        "model": {
            "name": model.name,
            "family": config.model_type,
            "context_length": model.context,
            "layers": config.num_layers,
            "experts": config.moe.num_experts,
            "experts_per_token": config.moe.top_k,
        },
        "cohort": None if cohort is None else _cohort(cohort),
        "workers": [_worker(lease, cohort, pool) for lease in leases],
        "gateway": {
            "worker_id": worker_id,
            "uptime_s": time.time() - metrics.started,
            "in_flight": generator.in_flight,
            **asdict(metrics.totals),
        },
    }


def _cohort(cohort: CohortRecord) -> dict[str, Any]:
    return {
        "epoch": cohort.epoch,
        "layout_version": cohort.layout_version,
        "gating": cohort.gating,
        "scheduling": cohort.scheduling,
        "exchange": cohort.exchange,
        "model": cohort.model,
        "attention": len(cohort.attention),
        "moe": len(cohort.moe),
    }


def _worker(lease: Lease, cohort: CohortRecord | None, pool: WorkerPool) -> dict[str, Any]:
    ranked = () if cohort is None else {"attention": cohort.attention, "moe": cohort.moe}.get(lease.role, ())
    rank = next((i for i, member in enumerate(ranked) if member.member == lease.member), None)
    return {
        "worker_id": lease.worker_id,
        "role": str(lease.role),
        "state": str(lease.state),
        "detail": lease.detail,
        "rank": rank,
        "epoch": lease.epoch,
        "node": lease.node,
        "pid": lease.pid,
        "member": lease.member,
        "grpc_address": lease.grpc_address,
        "http_address": lease.http_address,
        "running": lease.running,
        "waiting": lease.waiting,
        "slots": lease.slots,
        "in_flight_here": pool.in_flight(lease.member),
        "version": lease.version,
    }
