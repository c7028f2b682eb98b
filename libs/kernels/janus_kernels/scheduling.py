"""Activation scheduling of one MoE layer: which replica computes each activated expert.

The latency of a layer follows a_max, the largest number of distinct activated experts on one instance, so
that is what the policies (but the baselines) keep small. Every policy is a deterministic function of its
arguments: all MoE workers compute it alike, without a word between them, compiled or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from janus_kernels import policies, triton
from janus_kernels.layout import Int32, ReplicaLayout
from janus_kernels.native import NATIVE

MAX_TOPK = 32
_U64 = (1 << 64) - 1
_INT32 = np.dtype(np.int32)

_POLICIES: dict[str, policies.Policy] = {
    "optimal": policies.optimal,
    "aebs": policies.aebs,
    "token-balanced": policies.token_balanced,
    "random": policies.random,
}
POLICIES = tuple(_POLICIES)
"""Names of the policies, the default first."""
_CODES = {policy: code for code, policy in enumerate(POLICIES)}  # csrc/schedule.h: enum Policy


class NoLiveHostError(ValueError):
    """Activated experts that no instance of the layout hosts; ``experts`` names them."""

    def __init__(self, experts: list[int]) -> None:
        super().__init__(
            f"no instance hosts the activated experts {experts}; the layout must place each at least once"
        )
        self.experts = experts


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Result of :func:`schedule`."""

    replica_ids: Int32
    """int32 [T, k]: instance * slots + slot"""
    instance_load: Int32
    """int32 [n_e]: distinct activated experts on each instance"""
    a_max: int
    """Largest of ``instance_load``."""
    digest: int
    """u64 over ids, layout version and assignment: equal on workers that decided alike."""


# A frozen dataclass sets its fields by name, one call each: a tenth of what scheduling 64 tokens takes.
_SET_FIELDS = tuple(
    Schedule.__dict__[name].__set__ for name in ("replica_ids", "instance_load", "a_max", "digest")
)


def _made(replica_ids: Int32, load: Int32, a_max: int, digest: int) -> Schedule:
    made = object.__new__(Schedule)
    set_ids, set_load, set_peak, set_digest = _SET_FIELDS
    set_ids(made, replica_ids)
    set_load(made, load)
    set_peak(made, a_max)
    set_digest(made, digest)
    return made


def schedule(
    topk_ids: Any, layout: ReplicaLayout, policy: str = "optimal", *, layout_version: int = 0, seed: int = 0
) -> Schedule:
    """Choose a replica for each (token, chosen expert) of one MoE layer.

    Args:
        topk_ids: logical expert ids, integer [T, k], array or tensor; T >= 0, k in 1..32. A CUDA tensor is scheduled
            where it is by ``optimal`` and ``aebs``; only the result comes to the host.
        layout: where replicas are.
        policy: ``optimal`` (the least possible a_max), ``aebs`` (paper, Algorithm 1), ``token-balanced``
            (tokens of an expert spread over its replicas, as EPLB does) or ``random``.
        layout_version: goes into the digest.
        seed: of ``random``, which draws from (seed, ids, expert).

    Raises ValueError for a wrong shape, id or policy, NoLiveHostError for experts nobody hosts.
    """
    code = _CODES.get(policy)
    if code is None:
        raise ValueError(f"policy {policy!r}; allowed: {', '.join(POLICIES)}")
    if type(topk_ids) is not np.ndarray and getattr(topk_ids, "is_cuda", False):
        if policy in ("optimal", "aebs") and triton.unavailable() is None:
            triton.load()
            from janus_kernels.triton import scheduling as on_device

            _check_shape(topk_ids)
            return on_device.schedule(topk_ids, layout, policy, layout_version)
        topk_ids = topk_ids.cpu()
    ids = _as_ids(topk_ids)
    if NATIVE is not None:
        scheduler = layout.native
        if scheduler is None:
            scheduler = NATIVE.Scheduler(layout.slot_of, layout.slots)
            object.__setattr__(layout, "native", scheduler)
        replica_ids, load = np.empty(ids.shape, _INT32), np.empty(len(layout.placement), _INT32)
        result = scheduler.run(ids, code, layout_version & _U64, seed & _U64, replica_ids, load)
        if result is not None:
            return _made(replica_ids, load, *result)
        # Something is wrong with the ids: the reference finds out what and raises.
    return reference_schedule(ids, layout, policy, layout_version=layout_version, seed=seed)


def _check_shape(ids: Any) -> None:
    if ids.ndim != 2 or not 1 <= ids.shape[1] <= MAX_TOPK:
        raise ValueError(f"topk_ids has shape {tuple(ids.shape)}; expected [T, k] with k in 1..{MAX_TOPK}")


def _as_ids(topk_ids: Any) -> Int32:
    ids: Int32 = np.asarray(topk_ids)
    _check_shape(ids)
    if ids.dtype is _INT32 and ids.flags.c_contiguous:
        return ids
    if ids.dtype != np.int32:
        if ids.dtype.kind not in "iu":
            raise ValueError(f"topk_ids has dtype {ids.dtype}; expected integers")
        if ids.size and not -1 <= int(ids.min()) <= int(ids.max()) < 1 << 31:
            raise ValueError(f"topk_ids has values {ids.min()}..{ids.max()}; expected 32-bit expert ids")
    return np.ascontiguousarray(ids, dtype=np.int32)


def reference_schedule(
    ids: Int32, layout: ReplicaLayout, policy: str, *, layout_version: int = 0, seed: int = 0
) -> Schedule:
    """The slow, obvious :func:`schedule` that the compiled one is held to."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < layout.num_experts:
        raise ValueError(
            f"topk_ids has values {ids.min()}..{ids.max()}; allowed: 0..{layout.num_experts - 1}"
        )
    active = [int(expert) for expert in np.unique(ids)]
    orphans = [expert for expert in active if not layout.hosts[expert]]
    if orphans:
        raise NoLiveHostError(orphans)
    instances = _POLICIES[policy](ids, active, layout, seed)
    used = np.zeros((layout.num_instances, layout.num_experts), bool)
    used[instances.ravel(), ids.ravel()] = True
    load = used.sum(axis=1, dtype=np.int32)
    replica_ids = (instances * layout.slots + layout.slot_of[ids, instances]).astype(np.int32)
    return Schedule(replica_ids, load, int(load.max()), policies.digest(ids, layout_version, replica_ids))
