"""Coordination records: what Redis holds, and nothing else.

All keys start with ``{<namespace>}:`` (braces make them one hash slot on a Redis Cluster; the default
namespace is ``janus``):

====================================  =======================================================
``{ns}:member``                       counter: unique number for each incarnation of a worker
``{ns}:lease:<role>:<worker_id>``     :class:`Lease`, JSON, expires unless renewed
``{ns}:workers``                      set: ``<role>:<worker_id>`` of every lease, some perhaps expired
``{ns}:leader``                       fencing token and worker id of the scheduler in office, expires
``{ns}:leader:token``                 counter: fencing tokens
``{ns}:scaler``, ``{ns}:scaler:token``  the same of the autoscaler that may act
``{ns}:epoch``                        counter: cohort epochs, never reused
``{ns}:cohort``                       :class:`CohortRecord`, JSON, written only by the scheduler
``{ns}:layout:<version>``             :class:`LayoutRecord`, JSON
``{ns}:layouts``                      list: versions of the layouts kept
``{ns}:objective``                    the autoscaler's objective, JSON
``{ns}:stats:<worker_id>``            stream: what a worker measured, bounded length
``{ns}:routing``                      stream: which experts tokens went to, one report a layer, bounded length
``{ns}:journal:<entry>``              the gateways' journal of one keyed request, JSON, expires
``{ns}:journal:<entry>:items``        list: what was given out of it, expires
``{ns}:journal:index``                sorted set: its entries by age, bounded
``{ns}:events``                       pub/sub: a line each time a lease or the cohort changes
====================================  =======================================================
"""

from __future__ import annotations

import dataclasses
import enum
import json
from dataclasses import dataclass
from typing import Any, Self


class Role(enum.StrEnum):
    """What a worker does in the mesh."""

    GATEWAY = "gateway"
    ATTENTION = "attention"
    MOE = "moe"
    SCHEDULER = "scheduler"
    AUTOSCALER = "autoscaler"


class WorkerState(enum.StrEnum):
    """Life of a worker as its lease tells it."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class RecordError(ValueError):
    """A record from Redis is not what this version writes; names the field and the value."""


class _Json:
    """JSON in and out with the types of the dataclass's fields checked one by one."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))  # type: ignore[call-overload]

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises RecordError naming the record, field and value that are wrong."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise RecordError(f"{cls.__name__}: not JSON: {text[:80]!r}") from error
        if not isinstance(raw, dict):
            raise RecordError(f"{cls.__name__}: expected an object, got {text[:80]!r}")
        return cls._from_dict(raw)

    @classmethod
    def _from_dict(cls, raw: dict[str, Any]) -> Self:
        # Unknown fields are ignored, so that a newer version can add some.
        known = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.name in raw:
                known[field.name] = cls._convert(field.name, raw[field.name])
        try:
            return cls(**known)
        except TypeError as error:
            raise RecordError(f"{cls.__name__}: {error}") from error

    @classmethod
    def _convert(cls, name: str, value: Any) -> Any:
        expected = cls._TYPES.get(name)  # type: ignore[attr-defined]
        if expected is None:
            return value
        try:
            return expected(value)
        except (ValueError, TypeError, RecordError) as error:
            raise RecordError(f"{cls.__name__}.{name} = {value!r}: {error}") from error


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("expected a whole number >= 0")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease(_Json):
    """A worker's word that it lives, renewed well inside its time to live."""

    worker_id: str
    """Unique name, e.g. ``moe-1``."""
    member: int
    """Unique number of this incarnation (``{ns}:member``); the source of its data-plane messages. >= 1."""
    role: Role
    pid: int
    grpc_address: str
    """host:port where its gRPC service answers."""
    http_address: str = ""
    """Gateway: host:port of the OpenAI-compatible API."""
    transport: str = ""
    """Attention and MoE workers: name of the data-plane transport."""
    transport_address: str = ""
    """Base64 of the transport's address."""
    node: str = ""
    """Label of the machine; workers of one label share memory."""
    model: str = ""
    """Fingerprint of checkpoint and dtype; members of one cohort agree on it."""
    slots: int = 0
    """MoE workers: expert slots per layer."""
    beside: int = 0
    """MoE workers: most experts that it holds beside those that the layout in force places there; 0: any number."""
    moe_layers: int = 0
    """MoE and attention workers: MoE layers of the model."""
    num_experts: int = 0
    """MoE and attention workers: routed experts per MoE layer."""
    state: WorkerState = WorkerState.STARTING
    detail: str = ""
    """What it is doing or waiting for."""
    epoch: int = 0
    """Cohort epoch it runs; 0 before the first."""
    running: int = 0
    """Attention workers: sequences in the batch."""
    waiting: int = 0
    """Attention workers: sequences queued."""
    version: str = ""
    """Version of Janus."""
    engine_pid: int = 0
    """Attention and MoE workers: process id of the engine; 0 until it is ready."""
    drained: bool = False
    """A draining attention worker holds no stream any more: it may leave the cohort."""
    late: tuple[int, ...] = ()
    """Members that its step has waited for longer than a step may take, as a rule: are they alive?"""
    waiting_for: tuple[int, ...] = ()
    """Members that its step has waited for longer than ``--stall-s``."""


Lease._TYPES = {  # type: ignore[attr-defined]
    "worker_id": _text, "member": _whole, "role": Role, "pid": _whole, "grpc_address": _text,
    "http_address": _text, "transport": _text, "transport_address": _text, "node": _text, "model": _text,
    "slots": _whole, "beside": _whole, "moe_layers": _whole, "num_experts": _whole, "state": WorkerState,
    "detail": _text,
    "epoch": _whole, "running": _whole, "waiting": _whole, "version": _text, "engine_pid": _whole,
    "drained": bool,
    "late": lambda value: tuple(_whole(v) for v in value),
    "waiting_for": lambda value: tuple(_whole(v) for v in value),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortMember(_Json):
    """One worker of a cohort; its index in the list is its rank."""

    worker_id: str
    member: int
    grpc_address: str
    transport_address: str
    node: str = ""


CohortMember._TYPES = {  # type: ignore[attr-defined]
    "worker_id": _text, "member": _whole, "grpc_address": _text, "transport_address": _text, "node": _text,
}  # fmt: skip


def _members(value: Any) -> tuple[CohortMember, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError("expected a list")
    return tuple(v if isinstance(v, CohortMember) else CohortMember._from_dict(v) for v in value)


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortRecord(_Json):
    """{epoch, ordered attention ranks, ordered MoE ranks, layout version}: one atomic record."""

    epoch: int
    attention: tuple[CohortMember, ...]
    moe: tuple[CohortMember, ...]
    layout_version: int
    gating: str = "moe"
    """``moe`` (EGate) or ``attention`` (AGate)."""
    scheduling: str = "optimal"
    """Activation scheduling policy: optimal, aebs, token-balanced, random."""
    exchange: str = "auto"
    """How layers are exchanged between nodes: auto, 1pc, 2pc-1, 2pc-2 (docs/exchange.md)."""
    model: str = ""
    follows: int = 0
    """Epoch whose members are all alive: who steps in it finishes the step under way first. 0: there is none."""


CohortRecord._TYPES = {  # type: ignore[attr-defined]
    "epoch": _whole, "attention": _members, "moe": _members, "layout_version": _whole, "gating": _text,
    "scheduling": _text, "exchange": _text, "model": _text, "follows": _whole,
}  # fmt: skip


def _placement(value: Any) -> tuple[tuple[tuple[int, ...], ...], ...]:
    return tuple(tuple(tuple(_whole(e) for e in instance) for instance in layer) for layer in value)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutRecord(_Json):
    """Replica layout: ``placement[moe_layer][moe_rank]`` lists the experts hosted, in slot order."""

    version: int
    num_experts: int
    slots: int
    placement: tuple[tuple[tuple[int, ...], ...], ...]


LayoutRecord._TYPES = {  # type: ignore[attr-defined]
    "version": _whole, "num_experts": _whole, "slots": _whole, "placement": _placement,
}  # fmt: skip
