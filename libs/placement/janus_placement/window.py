"""Activation statistics: recorded beside the step, merged and decayed where placement is decided. Bounded memory.

Every MoE worker sees the routing of the whole cohort, so each layer needs one reporter: rank (layer mod n_e).
Co-activation is counted on the sampled tokens, never on all: E x E counters per layer and token would be felt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from janus_placement.routing import LayerRouting

MAX_REPORT_ROWS = 4096
MAX_LAYERS = 4096


class ReportError(ValueError):
    """A report that is none; says which field is wrong."""


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """One layer's routing since the last report."""

    layer: int
    tokens: int
    """Tokens routed."""
    batches: int
    """Steps they came in."""
    counts: Any
    """int64 [E]: tokens that activated each expert."""
    samples: Any
    """int32 [s, k]: some of those tokens' expert ids."""

    def to_fields(self) -> dict[str, bytes]:
        """For a Redis stream entry."""
        head = f"{self.layer} {self.tokens} {self.batches} {len(self.counts)} {self.samples.shape[1]}"
        return {
            "head": head.encode(),
            "counts": self.counts.astype("<u4").tobytes(),
            "samples": self.samples.astype("<u2").tobytes(),
        }

    @classmethod
    def from_fields(cls, fields: dict[bytes, bytes]) -> Self:
        """Raises ReportError naming the field."""
        try:
            layer, tokens, batches, experts, topk = (int(word) for word in fields[b"head"].split())
            counts = np.frombuffer(fields[b"counts"], "<u4").astype(np.int64)
            samples = np.frombuffer(fields[b"samples"], "<u2").astype(np.int32)
        except (KeyError, ValueError) as error:
            raise ReportError(f"no routing report: {error}") from error
        if (
            min(layer, tokens, batches) < 0
            or layer >= MAX_LAYERS
            or not 1 <= experts <= 1024
            or not 1 <= topk <= 32
        ):
            raise ReportError(f"head = {fields[b'head']!r}: out of range")
        if len(counts) != experts:
            raise ReportError(f"counts of {len(counts)} experts; head says {experts}")
        if len(samples) % topk or len(samples) > topk * MAX_REPORT_ROWS:
            raise ReportError(
                f"samples of {len(samples)} ids; expected rows of {topk}, at most {MAX_REPORT_ROWS}"
            )
        if samples.size and int(samples.max()) >= experts:
            raise ReportError(f"samples name expert {samples.max()}; allowed: 0..{experts - 1}")
        return cls(layer, tokens, batches, counts, samples.reshape(-1, topk))


class Recorder:
    """Worker side: what the layers it reports saw since the last :meth:`take`. A few microseconds a step.

    Keeps ``rows`` sampled tokens a layer, each equally likely to be any of those seen (reservoir sampling).
    """

    def __init__(self, num_experts: int, top_k: int, *, rows: int = 256, seed: int = 0) -> None:
        self._experts, self._top_k, self._rows = num_experts, top_k, min(rows, MAX_REPORT_ROWS)
        self._rng = np.random.default_rng(seed)
        self._layers: dict[int, _Seen] = {}

    def observe(self, layer: int, ids: Any) -> None:
        """One step's expert ids of ``layer``: integers [T, k], valid."""
        seen = self._layers.get(layer)
        if seen is None:
            seen = self._layers[layer] = _Seen(self._experts, self._rows, self._top_k)
        seen.add(np.asarray(ids), self._rng)

    def take(self) -> list[Report]:
        """Reports of the layers with tokens; starts anew."""
        reports = [seen.report(layer) for layer, seen in sorted(self._layers.items()) if seen.tokens]
        for seen in self._layers.values():
            seen.clear()
        return reports


class _Seen:
    def __init__(self, experts: int, rows: int, top_k: int) -> None:
        self.counts = np.zeros(experts, np.int64)
        self.ring = np.zeros((rows, top_k), np.int32)
        self.tokens = self.batches = 0

    def add(self, ids: np.ndarray, rng: np.random.Generator) -> None:
        count, room = len(ids), len(self.ring)
        if not count:
            return
        self.counts += np.bincount(ids.ravel(), minlength=len(self.counts))
        fits = min(count, max(0, room - self.tokens))
        if fits:
            self.ring[self.tokens : self.tokens + fits] = ids[:fits]
        if fits < count:
            # Reservoir sampling: the n-th token takes a random place with probability rows / n.
            places = rng.integers(0, np.arange(self.tokens + fits + 1, self.tokens + count + 1))
            for i in np.flatnonzero(places < room).tolist():
                self.ring[places[i]] = ids[fits + i]
        self.tokens += count
        self.batches += 1

    def report(self, layer: int) -> Report:
        rows = self.ring[: min(self.tokens, len(self.ring))].copy()
        return Report(layer, self.tokens, self.batches, self.counts.copy(), rows)

    def clear(self) -> None:
        self.counts[:] = 0
        self.tokens = self.batches = 0


class RoutingWindow:
    """Scheduler side: recent routing of every layer. Counts halve every ``half_life_s``; old samples leave a ring.

    Reports enter whole: a busy period fills its reservoir, a quiet one brings the few tokens it had.
    """

    def __init__(
        self, num_experts: int, top_k: int, *, half_life_s: float = 60.0, rows: int = 2048,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.num_experts = num_experts
        self._top_k, self._rows = top_k, rows
        self._half_life, self._clock = half_life_s, clock
        self._layers: dict[int, _Recent] = {}

    def add(self, report: Report) -> None:
        """Merge. Raises ReportError when it is of another model."""
        if len(report.counts) != self.num_experts or report.samples.shape[1] != self._top_k:
            raise ReportError(
                f"report of {len(report.counts)} experts, top-{report.samples.shape[1]}; "
                f"this mesh has {self.num_experts}, top-{self._top_k}"
            )
        recent = self._layers.setdefault(report.layer, _Recent(self.num_experts, self._clock()))
        recent.decay(self._clock(), self._half_life)
        recent.counts += report.counts
        recent.tokens += report.tokens
        recent.batches += report.batches
        recent.samples = np.concatenate([*recent.samples_list(), report.samples])[-self._rows :]

    def fits(self, num_experts: int, top_k: int) -> bool:
        """Whether reports of such a model belong here."""
        return (num_experts, top_k) == (self.num_experts, self._top_k)

    @property
    def layers(self) -> list[int]:
        """Layers that were reported."""
        return sorted(self._layers)

    def mean_batch(self, layer: int) -> float:
        """Tokens of a step, on average; 0 when nothing is known."""
        recent = self._layers.get(layer)
        return recent.tokens / recent.batches if recent and recent.batches > 1e-9 else 0.0

    def routing(self, layer: int) -> LayerRouting | None:
        """The layer's recent routing; None when nothing is known."""
        recent = self._layers.get(layer)
        if recent is None or not len(recent.samples):
            return None
        recent.decay(self._clock(), self._half_life)
        return LayerRouting(recent.samples, self.num_experts, recent.counts.copy())


class _Recent:
    def __init__(self, experts: int, now: float) -> None:
        self.counts = np.zeros(experts)
        self.tokens = self.batches = 0.0
        self.samples: Any = np.zeros((0, 0), np.int32)
        self._at = now

    def samples_list(self) -> list[Any]:
        return [self.samples] if len(self.samples) else []

    def decay(self, now: float, half_life: float) -> None:
        factor = 0.5 ** (max(0.0, now - self._at) / half_life)
        self.counts *= factor
        self.tokens *= factor
        self.batches *= factor
        self._at = now
