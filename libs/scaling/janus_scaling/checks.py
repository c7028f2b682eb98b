"""Bad numbers, named: which field, which value, what is allowed."""

from __future__ import annotations

import math


class ScalingError(ValueError):
    """A value that no plan can be made from."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"{field} = {value}; allowed: {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed


def number(field: str, value: float, low: float, high: float, *, above: bool = False) -> float:
    """``value`` if it lies in [low, high], or in (low, high] with ``above``. NaN never does. Raises ScalingError."""
    if not (low < value <= high if above else low <= value <= high):
        begin = f"above {low:g}" if above else f"{low:g} or more"
        raise ScalingError(field, value, begin if math.isinf(high) else f"{begin}, at most {high:g}")
    return value


def whole(field: str, value: int, low: int, high: int) -> int:
    """``value`` if it is an integer in low..high. Raises ScalingError."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ScalingError(field, value, f"whole numbers {low}..{high}")
    return value


def choice(field: str, value: str, allowed: tuple[str, ...]) -> str:
    """``value`` if it is one of ``allowed``. Raises ScalingError."""
    if value not in allowed:
        raise ScalingError(field, repr(value), ", ".join(allowed))
    return value
