"""Who starts and drains workers: one file per platform, and one row here."""

from __future__ import annotations

from collections.abc import Callable

from janus_runtime.errors import InvalidArgument

from janus_autoscaler.actuators.base import Actuator, Drainer, Pool, Sizes
from janus_autoscaler.config import AutoscalerSettings

__all__ = ["Actuator", "Drainer", "Pool", "Sizes", "create"]


def _local(settings: AutoscalerSettings, drainer: Drainer) -> Actuator:
    from janus_autoscaler.actuators.local import LocalActuator

    if not settings.supervisor:
        raise InvalidArgument(
            "is required by --actuator local", field="--supervisor", allowed="a run directory"
        )
    return LocalActuator(settings.supervisor)


def _compose(settings: AutoscalerSettings, drainer: Drainer) -> Actuator:
    from janus_autoscaler.actuators.compose import ComposeActuator

    return ComposeActuator(settings, drainer)


def _swarm(settings: AutoscalerSettings, drainer: Drainer) -> Actuator:
    from janus_autoscaler.actuators.swarm import SwarmActuator

    return SwarmActuator(settings)


def _kubernetes(settings: AutoscalerSettings, drainer: Drainer) -> Actuator:
    from janus_autoscaler.actuators.kubernetes import KubernetesActuator

    return KubernetesActuator(settings, drainer)


def _keda(settings: AutoscalerSettings, drainer: Drainer) -> Actuator:
    from janus_autoscaler.actuators.keda import KedaActuator

    return KedaActuator(drainer)


# The clients of platforms are imported when they are asked for: images need not have them all.
_KINDS: dict[str, Callable[[AutoscalerSettings, Drainer], Actuator]] = {
    "local": _local,
    "compose": _compose,
    "swarm": _swarm,
    "kubernetes": _kubernetes,
    "keda": _keda,
}


def create(settings: AutoscalerSettings, drainer: Drainer) -> Actuator | None:
    """The actuator that the settings name; None for none. Raises InvalidArgument, FailedPrecondition."""
    if settings.actuator == "none":
        if settings.mode == "act":
            raise InvalidArgument(
                "cannot act", field="--mode act with --actuator", value="none", allowed=", ".join(_KINDS)
            )
        return None
    return _KINDS[settings.actuator](settings, drainer)
