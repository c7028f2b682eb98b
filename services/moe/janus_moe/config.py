"""Settings of the MoE worker."""

from __future__ import annotations

from dataclasses import dataclass

from janus_runtime.settings import setting
from janus_worker.settings import WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSettings(WorkerSettings):
    """The MoE worker's own."""

    slots: int = setting(0, minimum=0, maximum=1024)
    """Expert slots per layer; 0: as many as the model has experts."""
    beside: int = setting(0, minimum=0, maximum=1 << 20)
    """Most experts loaded beside those that the layout in force places here, over all layers; 0: any number. Where few
    fit, another layout is reached a few layers at a time. Experts mapped from the checkpoint share its pages and need
    none; quantised ones, and those on a GPU, are copies."""
    emulated_expert_us: float = setting(0.0, minimum=0, maximum=1e6)
    """Least microseconds of a layer's pass per distinct activated expert, waited out: as if its weights were read from
    slower memory. For demonstrations of scaling on a machine whose cores all workers share; 0: none."""
