"""Reading JSON objects whose every value is checked: an error names file, field, value and range."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from janus_runtime.errors import JanusError

_REQUIRED = object()


def read_json(path: Path, error: type[JanusError]) -> Any:
    """Parse a UTF-8 JSON file; ``error`` is raised, naming the file, when it is absent or malformed."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as cause:
        raise error(
            f"{path} does not exist",
            reason="FILE_NOT_FOUND",
            next_step="Check the model directory: it must be a complete Hugging Face checkpoint",
        ) from cause
    except (OSError, UnicodeDecodeError) as cause:
        raise error(
            f"cannot read {path}: {cause}",
            reason="FILE_UNREADABLE",
            next_step="Check its permissions and that it is UTF-8 text",
        ) from cause
    try:
        return json.loads(text)
    except ValueError as cause:
        raise error(
            f"{path} is not valid JSON: {cause}", reason="BAD_JSON", next_step="Fetch the file again"
        ) from cause


class Fields:
    """Typed access to one JSON object. A null counts as absent, as transformers writes it."""

    def __init__(self, raw: object, source: str, error: type[JanusError]) -> None:
        if not isinstance(raw, Mapping):
            raise error(
                f"{source}: expected a JSON object, got {type(raw).__name__}",
                reason="BAD_JSON",
                next_step="Fetch the file again",
            )
        self.raw = raw
        self.source = source
        self._error = error

    def error(self, field: str, value: object, allowed: str) -> JanusError:
        """The error to raise when ``field`` is ``value`` but must be ``allowed``."""
        return self._error(
            f"unusable value in {self.source}",
            field=field,
            value=value,
            allowed=allowed,
            reason="BAD_FIELD",
            next_step="Correct it, or use another checkpoint",
        )

    def get(self, name: str) -> Any:
        """The raw value, None when absent."""
        return self.raw.get(name)

    def _value(self, name: str, default: object) -> Any:
        value = self.raw.get(name)
        if value is not None:
            return value
        if default is _REQUIRED:
            raise self._error(
                f"missing in {self.source}",
                field=name,
                reason="MISSING_FIELD",
                next_step="Add it, or use another checkpoint",
            )
        return default

    def whole(self, name: str, *, default: Any = _REQUIRED, at_least: int = 0, at_most: int = 2**40) -> int:
        """An integer within bounds."""
        value = self._value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= at_most:
            raise self.error(name, value, f"an integer from {at_least} to {at_most}")
        return value

    def whole_any(self, names: Sequence[str], *, at_least: int = 0) -> int:
        """The first of several spellings of one field that is present."""
        for name in names:
            if self.raw.get(name) is not None:
                return self.whole(name, at_least=at_least)
        return self.whole(names[0], at_least=at_least)

    def optional_whole(self, name: str, *, at_least: int = 0) -> int | None:
        """An integer, or None when absent."""
        return None if self.raw.get(name) is None else self.whole(name, at_least=at_least)

    def number(self, name: str, *, default: Any = _REQUIRED, above: float | None = None) -> float:
        """A finite number, above a bound when one is given."""
        value = self._value(name, default)
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or (above is not None and value <= above):
            raise self.error(name, value, "a finite number" + ("" if above is None else f" above {above:g}"))
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A finite number, or None when absent."""
        return None if self.raw.get(name) is None else self.number(name)

    def flag(self, name: str, *, default: bool) -> bool:
        """true or false."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def text(self, name: str, *, default: Any = _REQUIRED) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.error(name, value, "a string")
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """A token id or a list of them; empty when absent."""
        value = self.raw.get(name)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            raise self.error(name, value, "a token id or a list of token ids")
        return tuple(values)
