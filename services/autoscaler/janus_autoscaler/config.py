"""Settings of the autoscaler."""

from __future__ import annotations

from dataclasses import dataclass

from janus_runtime.settings import ServiceSettings, setting

MODES = ("off", "advise", "act")
ACTUATORS = ("none", "local", "compose", "swarm", "kubernetes", "keda")


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalerSettings(ServiceSettings):
    """What the autoscaler needs to know."""

    mode: str = setting("advise", choices=MODES)
    """off: observe when asked. advise: plan, too, and change nothing. act: change pool sizes through --actuator."""
    actuator: str = setting("none", choices=ACTUATORS)
    """Who starts and drains workers: local (the supervisor of `janus up`), compose, swarm, kubernetes, keda."""
    model: str = ""
    """Checkpoint directory, of which config.json is read; without it nothing is planned."""
    interval_s: float = setting(15.0, minimum=0.5, maximum=3600)
    """Seconds between decisions."""
    window_s: float = setting(30.0, minimum=1, maximum=600)
    """Seconds of measurements that an observation covers."""
    tpot_ms: float = setting(200.0, minimum=0.001, maximum=600_000)
    """Objective until one is set: 95th percentile of time per output token, milliseconds."""
    ttft_ms: float = setting(0.0, minimum=0, maximum=600_000_000)
    """Objective until one is set: mean time to the first token, milliseconds; 0: none."""
    max_workers: int = setting(64, minimum=1, maximum=4096)
    """Largest size of either pool when the objective names none."""
    margin: float = setting(0.9, minimum=0.1, maximum=1)
    """Share of the objective that plans are made for, beside what the measured spread of steps asks for."""
    burst: float = setting(1.65, minimum=0, maximum=10)
    """Standard deviations by which streams at once may exceed their mean with the objective still held; they vary as a
    Poisson process does, and exceed 1.65 for 5% of the time."""
    hold_s: float = setting(120.0, minimum=0, maximum=86_400)
    """Seconds for which a smaller size must have sufficed before workers are drained."""
    drain_backlog_s: float = setting(30.0, minimum=1, maximum=3600)
    """Seconds within which what has queued up is to be worked off."""
    change_price: float = setting(0.0, minimum=0, maximum=1e9)
    """Price of draining one worker and starting it again, in the unit of the prices of an hour."""
    attention_price: float = setting(0.0, minimum=0, maximum=1e9)
    """Price of an attention worker for an hour; 0: the profile's."""
    moe_price: float = setting(0.0, minimum=0, maximum=1e9)
    """Price of a MoE worker for an hour; 0: the profile's."""
    spare_attention: int = setting(0, minimum=0, maximum=64)
    """The objective holds with this many attention workers lost."""
    spare_moe: int = setting(0, minimum=0, maximum=64)
    """The same of MoE workers."""
    attention_hardware: str = "cpu"
    """Profile of an attention worker until steps were measured: h100, h200, a100, cpu, or a .json file."""
    moe_hardware: str = "cpu"
    """The same of a MoE worker."""
    shared_cores: float = setting(0.0, minimum=0, maximum=4096)
    """Cores that the workers of a pool share, as on one machine; 0: each has a device of its own."""
    season_s: float = setting(86_400.0, minimum=0, maximum=1e7)
    """Season of the forecast (a day); 0: none. What it has learnt ends with the process."""
    supervisor: str = ""
    """local: run directory of the supervisor."""
    docker_url: str = ""
    """compose, swarm: the engine; default: DOCKER_HOST, else its usual socket."""
    docker_project: str = "janus"
    """compose: project name; swarm: stack name."""
    attention_service: str = "attention"
    """compose, swarm: service of the attention workers. kubernetes: KIND/NAME, e.g. statefulset/janus-attention."""
    moe_service: str = "moe"
    """The same of the MoE workers."""
    kubernetes_namespace: str = ""
    """kubernetes: namespace; default: the pod's own, else "default"."""
    drain_deadline_s: float = setting(120.0, minimum=1, maximum=3600)
    """A worker that drains is stopped by then, empty or not: its streams then go on as if it had died."""
