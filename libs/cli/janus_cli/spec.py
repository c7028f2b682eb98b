"""What a local mesh consists of: which services, with which flags and environment. Pure."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from janus_runtime.records import Role

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSpec:
    """A mesh on this machine."""

    model: Path
    """Checkpoint directory."""
    attention: int = 1
    """Attention workers, m."""
    experts: int = 1
    """MoE workers, n."""
    nodes: int = 1
    """Labels of machines to spread the workers over, as if on several machines."""
    http_port: int = 0
    """Port of the OpenAI-compatible API; 0 picks one."""
    grpc_port: int = 0
    """Port of the gateway's gRPC service; 0 picks one."""
    gateways: int = 1
    more_ports: tuple[tuple[int, int], ...] = ()
    """HTTP and gRPC ports of the gateways after the first; those that are not named pick theirs."""
    host: str = "127.0.0.1"
    """Address that gateways bind."""
    gating: str = "moe"
    """``moe`` or ``attention``."""
    scheduling: str = "optimal"
    """Activation scheduling policy."""
    exchange: str = "auto"
    """How layers are exchanged between nodes: auto, 1pc, 2pc-1 or 2pc-2."""
    slots: int = 0
    """Expert slots per MoE worker and layer; 0: one per expert of the model."""
    dtype: str = "float32"
    """Widest dtype of weights and KV cache."""
    expert_dtype: str = "same"
    """Widest dtype of routed experts, or int8 or int4."""
    attention_dtype: str = "same"
    """Matrices of attention, dense FFNs and shared experts: as they are, or int8 or int4."""
    device: str = "cpu"
    """Where workers compute: ``cpu``, ``cuda:INDEX``, or ``cuda``, which deals out the GPUs."""
    kv_tokens: int = 0
    """Tokens each attention worker's KV cache holds; 0: the worker's default."""
    max_batch_tokens: int = 0
    """Most tokens an attention worker sends per step; 0: the worker's default."""
    namespace: str = "janus"
    """Prefix of the keys in Redis."""
    autoscale: str = "advise"
    """``off``, ``advise`` or ``act``: what the autoscaler does."""
    tpot_ms: float = 200.0
    """Its objective until another is set: 95th percentile of time per output token, milliseconds."""
    log_level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """One child process."""

    role: Role
    index: int
    command: tuple[str, ...]
    env: Mapping[str, str]

    @property
    def worker_id(self) -> str:
        """``moe-0``; the gateway, scheduler and autoscaler have numbers too."""
        return f"{self.role.value}-{self.index}"


def threads_per_worker(workers: int, cores: int | None = None) -> int:
    """Threads that one of ``workers`` busy processes may use: the cores shared out, at least one."""
    return max(1, _cores(cores) // max(1, workers))


def _cores(cores: int | None) -> int:
    if cores is not None:
        return cores
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def services(mesh: MeshSpec, redis_url: str, traces: Path, *, cores: int | None = None) -> list[ServiceSpec]:
    """The children, in the order they are started."""
    threads = threads_per_worker(mesh.attention + mesh.experts, cores)
    env = {
        **os.environ,
        "JANUS_REDIS_URL": redis_url,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    for variable in _THREAD_VARIABLES:
        env[variable] = str(threads)

    def make(role: Role, index: int, *flags: object) -> ServiceSpec:
        common: list[object] = [
            "--worker-id", f"{role.value}-{index}", "--namespace", mesh.namespace, "--trace-dir", traces,
            "--log-level", mesh.log_level,
        ]  # fmt: skip
        if role is not Role.GATEWAY:
            common += ["--host", "127.0.0.1", "--grpc-port", 0]
        command = (sys.executable, "-m", f"janus_{role.value}", *(str(f) for f in (*common, *flags)))
        return ServiceSpec(role=role, index=index, command=command, env=env)

    def worker(role: Role, index: int, *flags: object) -> ServiceSpec:
        node = ("--node", f"node-{index % mesh.nodes}") if mesh.nodes > 1 else ()
        batch = ("--max-batch-tokens", mesh.max_batch_tokens) if mesh.max_batch_tokens else ()
        return make(
            role,
            index,
            "--model",
            mesh.model,
            "--dtype",
            mesh.dtype,
            "--expert-dtype",
            mesh.expert_dtype,
            "--attention-dtype",
            mesh.attention_dtype,
            "--device",
            mesh.device,
            "--threads",
            threads,
            *node,
            *batch,
            *flags,
        )

    # All workers compute on the same cores: more of them than cores add no capacity. The environment may say otherwise.
    known = {"JANUS_AUTOSCALER_SHARED_CORES": str(_cores(cores)), **env}
    autoscaler = dataclasses.replace(
        make(
            Role.AUTOSCALER, 0, "--mode", mesh.autoscale, "--actuator", "local", "--supervisor", traces.parent,
            "--model", mesh.model, "--tpot-ms", mesh.tpot_ms,
        ),
        env=known,
    )  # fmt: skip
    ports = [(mesh.http_port, mesh.grpc_port), *mesh.more_ports, *[(0, 0)] * mesh.gateways]
    kv = ("--kv-tokens", mesh.kv_tokens) if mesh.kv_tokens else ()
    return [
        make(
            Role.SCHEDULER, 0, "--min-attention", mesh.attention, "--min-experts", mesh.experts,
            "--gating", mesh.gating, "--scheduling", mesh.scheduling, "--exchange", mesh.exchange,
        ),
        *(worker(Role.MOE, i, "--slots", mesh.slots) for i in range(mesh.experts)),
        *(worker(Role.ATTENTION, i, *kv) for i in range(mesh.attention)),
        *(
            make(
                Role.GATEWAY, i, "--model", mesh.model, "--http-port", http, "--grpc-port", grpc,
                "--host", mesh.host,
            )
            for i, (http, grpc) in enumerate(ports[: mesh.gateways])
        ),
        autoscaler,
    ]  # fmt: skip
