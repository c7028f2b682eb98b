"""The supervisor of `janus up`, through its control socket: it starts, drains and stops workers itself."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from janus_runtime.control import request
from janus_runtime.errors import Unavailable

from janus_autoscaler.actuators.base import Actuator, Pool, Sizes

log = logging.getLogger("janus.autoscaler")

CHANGE_S = 420.0
"""Longer than the supervisor allows a worker to join or to drain."""
_ASK_S = 10.0
_NAMES = {Pool.ATTENTION: "attention", Pool.MOE: "experts"}


class LocalActuator(Actuator):
    """``run_dir``: where the supervisor writes mesh.json."""

    def __init__(self, run_dir: str) -> None:
        self._mesh = Path(run_dir) / "mesh.json"

    async def sizes(self) -> Sizes:
        workers = (await request(self._socket(), {"op": "sizes"}, log.info, _ASK_S))["workers"]
        return workers["attention"], workers["experts"]

    async def grow(self, now: Sizes, target: Sizes) -> None:
        await self._scale({_NAMES[p]: target[p.value] for p in Pool if target[p.value] > now[p.value]})

    async def shrink(self, pool: Pool, size: int) -> None:
        await self._scale({_NAMES[pool]: size})

    async def _scale(self, targets: dict[str, int]) -> None:
        await request(self._socket(), {"op": "scale", "targets": targets}, log.info, CHANGE_S)

    def _socket(self) -> str:
        try:
            path = str(json.loads(self._mesh.read_text()).get("control", ""))
        except (OSError, ValueError) as error:
            raise Unavailable(
                f"no supervisor: {error}", next_step="Is --supervisor its run directory?"
            ) from error
        if not path:
            raise Unavailable("the supervisor is still starting the mesh", retry_after_s=5.0)
        return path
