"""Activation scheduling, routing, expert FFNs and attention: the ops that Janus exists for.

This module needs numpy alone; what computes on tensors is in :mod:`janus_kernels.ops`.

>>> from janus_kernels import ReplicaLayout, schedule
>>> layout = ReplicaLayout.from_placement([[0, 1, 4], [2, 3, 4]], num_experts=5)
>>> s = schedule([[0, 4], [1, 4]], layout)
>>> s.a_max, s.instance_load.tolist(), s.replica_ids.tolist()
(2, [2, 1], [[0, 5], [1, 5]])
"""

from __future__ import annotations

from janus_kernels.layout import LayoutError, ReplicaLayout
from janus_kernels.native import describe, set_num_threads
from janus_kernels.scheduling import POLICIES, NoLiveHostError, Schedule, schedule

__all__ = [
    "POLICIES",
    "LayoutError",
    "NoLiveHostError",
    "ReplicaLayout",
    "Schedule",
    "describe",
    "schedule",
    "set_num_threads",
]
