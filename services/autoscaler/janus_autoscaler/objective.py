"""The scaling objective: checked, and kept in Redis so that it outlives the autoscaler."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass

from janus_runtime.coordination import Coordination
from janus_runtime.errors import InvalidArgument

log = logging.getLogger("janus.autoscaler")

MAX_TPOT_MS = 600_000.0
MAX_WORKERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What both pools together must achieve, and the sizes they may have."""

    tpot_ms: float
    """95th percentile of time per output token, milliseconds."""
    min_attention: int = 1
    max_attention: int = 64
    min_moe: int = 1
    max_moe: int = 64
    ttft_ms: float = 0.0
    """Mean time to the first token, milliseconds; 0: no objective."""


def checked(objective: Objective) -> Objective:
    """The objective itself; InvalidArgument names the field that is wrong."""
    if not 0 < objective.tpot_ms <= MAX_TPOT_MS:  # NaN fails too
        raise InvalidArgument(
            "out of range", field="objective.tpot_ms", value=objective.tpot_ms,
            allowed=f"above 0, at most {MAX_TPOT_MS:.0f} milliseconds",
        )  # fmt: skip
    if not 0 <= objective.ttft_ms <= 1000 * MAX_TPOT_MS:
        raise InvalidArgument(
            "out of range", field="objective.ttft_ms", value=objective.ttft_ms,
            allowed=f"0 (none) to {1000 * MAX_TPOT_MS:.0f} milliseconds",
        )  # fmt: skip
    for name in ("min_attention", "max_attention", "min_moe", "max_moe"):
        value = getattr(objective, name)
        if not 1 <= value <= MAX_WORKERS:
            raise InvalidArgument(
                "out of range", field=f"objective.{name}", value=value, allowed=f"1..{MAX_WORKERS}"
            )
    for pool in ("attention", "moe"):
        low, high = getattr(objective, f"min_{pool}"), getattr(objective, f"max_{pool}")
        if low > high:
            raise InvalidArgument(
                "is below the minimum",
                field=f"objective.max_{pool}",
                value=high,
                allowed=f"{low}..{MAX_WORKERS}",
            )
    return objective


class ObjectiveStore:
    """Reads and writes the objective; a record that cannot be read counts as none."""

    def __init__(self, coordination: Coordination, default: Objective) -> None:
        self._coordination = coordination
        self._default = default

    async def read(self) -> Objective:
        """The objective in force."""
        raw = await self._coordination.read_objective()
        if raw is None:
            return self._default
        try:
            fields = json.loads(raw)
            known = {f.name: fields[f.name] for f in dataclasses.fields(Objective) if f.name != "ttft_ms"}
            whole = {name: int(value) for name, value in known.items() if name != "tpot_ms"}
            ttft = float(fields.get("ttft_ms", 0.0))  # one kept by an earlier version has none
            return checked(Objective(tpot_ms=float(known["tpot_ms"]), ttft_ms=ttft, **whole))
        except (ValueError, TypeError, KeyError, InvalidArgument) as error:
            log.error("the objective in Redis cannot be read, using the default: %s; set it again", error)
            return self._default

    async def write(self, objective: Objective) -> None:
        """Keep a checked objective."""
        await self._coordination.write_objective(json.dumps(dataclasses.asdict(checked(objective))))
