"""Every metric is declared once, documented, and has a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from janus_runtime.metrics import ATTENTION, AUTOSCALER, BY_NAME, GATEWAY, MOE, Metric, tables
from janus_wire.v1 import attention_pb2, autoscaler_pb2, moe_pb2

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_documentation_is_the_declaration() -> None:
    written = DOCS.read_text()
    assert written.endswith(tables()), (
        "docs/metrics.md differs: paste what python -m janus_runtime.metrics prints"
    )
    above = written.removesuffix(tables())
    assert not [line for line in above.splitlines() if line.startswith("| `")], "a table that is not declared"


def test_names_are_unique_and_spelled_as_prometheus_wants() -> None:
    assert len(BY_NAME) == len(GATEWAY) + len(ATTENTION) + len(MOE) + len(AUTOSCALER)
    for metric in BY_NAME.values():
        assert metric.name.startswith(("gen_ai_", "janus_")) and not metric.name.endswith("_total")
        assert metric.help.endswith(".") and metric.unit
        assert (metric.unit == "s") == metric.name.endswith("_seconds")
        assert not metric.name.endswith("_bytes") or metric.unit == "bytes"


@pytest.mark.parametrize(
    ("metrics", "response", "not_numbers"),
    [
        (ATTENTION, attention_pb2.AttentionServiceGetStatsResponse, {"worker", "transport"}),
        (MOE, moe_pb2.ExpertServiceGetStatsResponse, {"worker", "transport", "schedule_seconds"}),
        (AUTOSCALER, autoscaler_pb2.AutoscalerServiceGetStatsResponse, set()),
    ],
)  # schedule_seconds is the sum of schedule_latency
def test_every_count_of_a_worker_is_exported(
    metrics: tuple[Metric, ...], response: Any, not_numbers: set[str]
) -> None:
    fields = set(response.DESCRIPTOR.fields_by_name)
    used = {metric.stat for metric in metrics}
    for group in [
        f for f in response.DESCRIPTOR.fields if f.message_type and f.message_type.name == "LayerGroupStats"
    ]:
        fields.remove(group.name)
        fields |= {
            f"{group.name}.{inner.name}" for inner in group.message_type.fields if "layer" not in inner.name
        }
    assert used == fields - not_numbers
