"""Every metric that a mesh exports, declared before use: docs/metrics.md is this table.

Gateways measure requests themselves. Workers count; a gateway asks them (GetStats) when it is scraped, so that
one address shows the whole mesh and an idle one costs nothing. ``stat`` is the field of the GetStats response.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

_REQUEST = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_WORKER = ("worker",)
_GROUP = ("worker", "layers")

SCHEDULE_BOUNDS_S = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 0.05)
EXCHANGE_BOUNDS_S = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric, under its name in Prometheus; a counter's samples end in ``_total`` besides."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    stat: str = ""
    """Worker metrics: the field of GetStats that it comes from; within ``layer_groups`` after a dot."""


def _attention(name: str, kind: Kind, unit: str, stat: str, text: str) -> Metric:
    return Metric(name=f"janus_attention_{name}", kind=kind, unit=unit, stat=stat, help=text, labels=_WORKER)


def _moe(name: str, kind: Kind, unit: str, stat: str, text: str, labels: tuple[str, ...] = _WORKER) -> Metric:
    return Metric(name=f"janus_moe_{name}", kind=kind, unit=unit, stat=stat, help=text, labels=labels)


def _autoscaler(name: str, kind: Kind, unit: str, stat: str, text: str) -> Metric:
    return Metric(name=f"janus_autoscaler_{name}", kind=kind, unit=unit, stat=stat, help=text, labels=_WORKER)


GATEWAY = (
    Metric(
        name="gen_ai_server_request_duration_seconds", kind="histogram", unit="s",
        help="From a request's arrival to its last token; error_type is a google.rpc code, empty when it went well.",
        labels=(*_REQUEST, "error_type"),
    ),
    Metric(
        name="gen_ai_server_time_to_first_token_seconds", kind="histogram", unit="s",
        help="From a request's arrival to its first token.", labels=_REQUEST,
    ),
    Metric(
        name="gen_ai_server_time_per_output_token_seconds", kind="histogram", unit="s",
        help="Time per token after the first, per sequence.", labels=_REQUEST,
    ),
    Metric(
        name="gen_ai_client_token_usage", kind="histogram", unit="tokens",
        help="Tokens per sequence; gen_ai_token_type is input or output.", labels=(*_REQUEST, "gen_ai_token_type"),
    ),
    Metric(
        name="janus_gateway_queue_seconds", kind="histogram", unit="s",
        help="From arrival at the attention worker to the first step.",
    ),
    Metric(
        name="janus_gateway_in_flight_sequences", kind="gauge", unit="sequences", help="Sequences being generated.",
    ),
    Metric(
        name="janus_gateway_rejected_requests", kind="counter", unit="requests",
        help="Requests refused before generation, by google.rpc code.", labels=("code",),
    ),
    Metric(
        name="janus_gateway_resumed_streams", kind="counter", unit="streams",
        help="Streams continued after their worker was lost.",
    ),
    Metric(
        name="janus_gateway_cancelled_streams", kind="counter", unit="streams",
        help="Streams whose client went away.",
    ),
    Metric(
        name="janus_gateway_cohort_epoch", kind="gauge", unit="epoch",
        help="Epoch of the cohort in force; 0 before the first.",
    ),
    Metric(
        name="janus_worker_up", kind="gauge", unit="1", labels=("worker", "role"),
        help="1 when the worker answered this scrape, 0 when it has a lease and did not.",
    ),
)  # fmt: skip

ATTENTION = (
    _attention("steps", "counter", "steps", "steps", "Steps computed; those without tokens here are not counted."),
    _attention("prompt_tokens", "counter", "tokens", "prompt_tokens", "Prompt tokens computed."),
    _attention("generated_tokens", "counter", "tokens", "generated_tokens", "Tokens generated."),
    _attention(
        "prefix_hit_tokens", "counter", "tokens", "prefix_hit_tokens",
        "Prompt tokens whose keys and values were found in the prefix cache.",
    ),
    _attention(
        "prefix_lookup_tokens", "counter", "tokens", "prefix_lookup_tokens", "Prompt tokens looked up in it."
    ),
    _attention("started_requests", "counter", "requests", "requests_started", "Requests that had their first step."),
    _attention(
        "queue_seconds", "counter", "s", "queue_seconds", "From arrival to the first step, summed over them."
    ),
    _attention(
        "preemptions", "counter", "sequences", "preemptions",
        "Sequences that gave their KV blocks up for others, and were computed again.",
    ),
    _attention(
        "kv_moved_tokens", "counter", "tokens", "kv_moved_tokens",
        "Tokens whose keys and values came with a stream from a worker that handed it over.",
    ),
    _attention(
        "kv_kept_tokens", "counter", "tokens", "kv_kept_tokens",
        "Tokens whose keys and values were copied for whoever goes on when the worker is lost.",
    ),
    _attention(
        "kv_recovered_tokens", "counter", "tokens", "kv_recovered_tokens",
        "Tokens whose keys and values were found where other workers of the host had kept them.",
    ),
    _attention("kv_shelf_seconds", "counter", "s", "kv_shelf_seconds", "Time that keeping them took."),
    _attention("running_sequences", "gauge", "sequences", "running", "Sequences in the batch."),
    _attention("waiting_sequences", "gauge", "sequences", "waiting", "Sequences queued."),
    _attention("kv_tokens_used", "gauge", "tokens", "kv_tokens_used", "Tokens that used KV blocks hold."),
    _attention("kv_tokens_capacity", "gauge", "tokens", "kv_tokens_capacity", "Tokens that the KV cache holds."),
    _attention("step_seconds", "counter", "s", "step_seconds", "Time in steps: attention and exchange."),
    _attention("attention_seconds", "counter", "s", "attention_seconds", "Of step_seconds: everything but exchange."),
    _attention(
        "exchange_seconds", "counter", "s", "exchange_seconds",
        "Of step_seconds: from sending a layer's hidden states to having all partial sums.",
    ),
    _attention(
        "moe_seconds", "counter", "s", "moe_seconds",
        "The slowest MoE worker's pass, summed over layers; of exchange_seconds, unless steps are split.",
    ),
    _attention(
        "layer_exchange_seconds", "histogram", "s", "exchange_latency", "exchange_seconds of single MoE layers."
    ),
    _attention("exchange_sent_bytes", "counter", "bytes", "exchange_bytes_sent", "Sent over the exchange."),
    _attention("exchange_sent_messages", "counter", "messages", "exchange_messages_sent", "Sent over the exchange."),
    _attention(
        "internode_sent_messages", "counter", "messages", "internode_messages_sent",
        "Of exchange_sent_messages: to workers on other nodes.",
    ),
    _attention(
        "internode_sent_bytes", "counter", "bytes", "internode_bytes_sent",
        "Of exchange_sent_bytes: to workers on other nodes.",
    ),
    _attention(
        "exchange_received_bytes", "counter", "bytes", "exchange_bytes_received", "Received over the exchange."
    ),
    _attention(
        "rejected_messages", "counter", "messages", "rejected_messages",
        "Messages refused: another epoch, unknown sender, malformed.",
    ),
    _attention(
        "digest_mismatches", "counter", "layers", "digest_mismatches",
        "Layers repeated with AGate because the MoE workers' digests differed.",
    ),
    _attention("cohort_epoch", "gauge", "epoch", "epoch", "Epoch that the worker runs."),
)  # fmt: skip

MOE = (
    _moe("steps", "counter", "steps", "steps", "Steps with tokens of anyone."),
    _moe("layer_passes", "counter", "passes", "layer_passes", "MoE layers computed."),
    _moe("tokens", "counter", "tokens", "tokens", "Tokens of the whole cohort, summed over layers."),
    _moe(
        "expert_calls", "counter", "experts", "expert_calls",
        "Distinct activated experts computed here, summed over layer passes.",
    ),
    _moe("expert_tokens", "counter", "pairs", "expert_tokens", "Expert-token pairs computed here."),
    _moe("a_max", "counter", "experts", "a_max_sum", "a_max summed over layer passes; divide by layer_passes."),
    _moe("group_layer_passes", "counter", "passes", "layer_groups.passes", "layer_passes by group of layers.", _GROUP),
    _moe("group_a_max", "counter", "experts", "layer_groups.a_max_sum", "a_max by group of layers.", _GROUP),
    _moe(
        "group_a_max_bound", "counter", "experts", "layer_groups.a_max_bound_sum",
        "No schedule of any layout can do better: distinct activated experts / instances, rounded up; summed.", _GROUP,
    ),
    _moe(
        "expert_activations", "counter", "tokens", "layer_groups.expert_tokens",
        "Tokens that an expert computed here, by group of layers and expert id; the sum over workers is its demand.",
        (*_GROUP, "expert"),
    ),
    _moe("moe_seconds", "counter", "s", "moe_seconds", "Time in schedule and experts."),
    _moe("schedule_seconds", "histogram", "s", "schedule_latency", "Activation scheduling of one layer."),
    _moe("wait_seconds", "counter", "s", "wait_seconds", "Time waiting for frames of attention workers, within steps."),
    _moe("exchange_sent_bytes", "counter", "bytes", "exchange_bytes_sent", "Sent over the exchange."),
    _moe("exchange_sent_messages", "counter", "messages", "exchange_messages_sent", "Sent over the exchange."),
    _moe(
        "internode_sent_messages", "counter", "messages", "internode_messages_sent",
        "Of exchange_sent_messages: to workers on other nodes.",
    ),
    _moe(
        "internode_sent_bytes", "counter", "bytes", "internode_bytes_sent",
        "Of exchange_sent_bytes: to workers on other nodes.",
    ),
    _moe("exchange_received_bytes", "counter", "bytes", "exchange_bytes_received", "Received over the exchange."),
    _moe("hosted_experts", "gauge", "experts", "experts_hosted", "Expert replicas placed here, over all layers."),
    _moe("hosted_expert_bytes", "gauge", "bytes", "expert_bytes", "Size of their weights."),
    _moe(
        "rejected_messages", "counter", "messages", "rejected_messages",
        "Messages refused: another epoch, unknown sender, malformed.",
    ),
    _moe("layout_version", "gauge", "version", "layout_version", "Replica layout in force."),
    _moe("cohort_epoch", "gauge", "epoch", "epoch", "Epoch that the worker runs."),
)  # fmt: skip

AUTOSCALER = (
    _autoscaler("attention_workers", "gauge", "workers", "attention", "Attention workers in the cohort."),
    _autoscaler("moe_workers", "gauge", "workers", "moe", "MoE workers in the cohort."),
    _autoscaler("planned_attention_workers", "gauge", "workers", "planned_attention", "The solver's answer."),
    _autoscaler("planned_moe_workers", "gauge", "workers", "planned_moe", "The solver's answer."),
    _autoscaler(
        "target_attention_workers", "gauge", "workers", "target_attention", "Decided on, hysteresis considered."
    ),
    _autoscaler("target_moe_workers", "gauge", "workers", "target_moe", "Decided on, hysteresis considered."),
    _autoscaler(
        "demand_tokens_rate", "gauge", "tokens/s", "demand_tokens_per_second",
        "Output tokens per second asked for, backlog apart.",
    ),
    _autoscaler(
        "predicted_tpot_seconds", "gauge", "s", "predicted_tpot_seconds", "Of the planned sizes under the demand."
    ),
    _autoscaler(
        "measured_tpot_seconds", "gauge", "s", "measured_tpot_seconds",
        "95th percentile over the window, as the workers measured it; 0 without tokens.",
    ),
    _autoscaler(
        "model_error_ratio", "gauge", "1", "model_error_ratio",
        "Median relative error of the latest steps' times, predicted before they were learnt from.",
    ),
    _autoscaler("objective_tpot_seconds", "gauge", "s", "objective_tpot_seconds", "The objective in force."),
    _autoscaler(
        "objective_met", "gauge", "1", "objective_met", "1 when the planned sizes are predicted to meet it."
    ),
    _autoscaler("decisions", "counter", "decisions", "decisions", "Decisions made."),
    _autoscaler("actions", "counter", "actions", "actions", "Changes of size carried out."),
    _autoscaler("failed_actions", "counter", "actions", "failed_actions", "Changes that failed; the log says why."),
)  # fmt: skip

BY_NAME = {metric.name: metric for metric in (*GATEWAY, *ATTENTION, *MOE, *AUTOSCALER)}


def rows(metrics: Iterable[Metric]) -> list[str]:
    """The table of docs/metrics.md, Markdown."""
    head = ["| metric | type | unit | labels | GetStats | meaning |", "| --- | --- | --- | --- | --- | --- |"]
    body = [
        f"| `{m.name}{'_total' if m.kind == 'counter' else ''}` | {m.kind} | {m.unit} | "
        f"{', '.join(f'`{label}`' for label in m.labels) or '-'} | {f'`{m.stat}`' if m.stat else '-'} | {m.help} |"
        for m in metrics
    ]
    return head + body


def tables() -> str:
    """All of them, with their headings; ``python -m janus_runtime.metrics`` prints it."""
    groups = (
        ("Gateway", GATEWAY),
        ("Attention workers", ATTENTION),
        ("MoE workers", MOE),
        ("Autoscaler", AUTOSCALER),
    )
    return "\n".join(f"## {title}\n\n" + "\n".join(rows(group)) + "\n" for title, group in groups)


if __name__ == "__main__":
    print(tables())
