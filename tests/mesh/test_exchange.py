"""Exchanges between nodes: tokens are the same bit for bit however rows travel, and messages are as many as planned."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from janus_attention.engine import EngineOptions
from janus_attention.forward import Forward
from janus_models.config import load_config
from janus_models.tiny import make_tiny
from janus_moe.compute import MoeCompute
from janus_scheduler.placement import layers_round_robin
from janus_testing.inprocess import InProcessMesh
from janus_transport import HEADER_BYTES, Exchange, Kind
from janus_transport.plan import ACROSS, GATHER, Edge, make_plan, traffic
from janus_transport.topology import SCHEMES, Scheme, Topology
from janus_worker.packing import packed_rows

Label = Callable[[str, int], str]
TWO: tuple[str, ...] = ("2pc-1", "2pc-2")


def apart(m: int, n: int, p: int, q: int) -> Label:
    """m and n workers over p attention and q MoE nodes."""
    return lambda role, i: f"a{i * p // m}" if role == "attention" else f"e{i * q // n}"


def shared(role: str, i: int) -> str:
    """Three nodes with workers of both roles."""
    return f"node-{i % 3}"


def prompts(directory: Path, count: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    vocab = load_config(directory).vocab_size
    return [[draw.randrange(3, vocab) for _ in range(draw.randrange(1, 20))] for _ in range(count)]


def run(directory: Path, m: int, n: int, asked: list[list[int]], tokens: int = 5, **options: Any) -> Any:
    with InProcessMesh(directory, attention=m, experts=n, **options) as mesh:
        return mesh.generate(asked, max_tokens=tokens, logits=True)


def assert_equal(answers: Any, expected: Any) -> None:
    for one, other in zip(answers, expected, strict=True):
        assert one.tokens == other.tokens
        assert np.array_equal(np.stack(one.logits), np.stack(other.logits))


@contextmanager
def sent() -> Iterator[list[tuple[int, Any, tuple[int, ...]]]]:
    """Every frame sent meanwhile: (sender, header, receivers)."""
    log: list[tuple[int, Any, tuple[int, ...]]] = []
    send = Exchange.send

    def spy(self: Exchange, peers: Any, header: Any, buffer: Any) -> None:
        log.append((self.member, header, tuple(peers)))
        send(self, peers, header, buffer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "send", spy)
        yield log


@pytest.mark.parametrize("gating", ["moe", "attention"])
@pytest.mark.parametrize(
    ("m", "n", "label"), [(4, 4, apart(4, 4, 2, 2)), (3, 4, shared)], ids=["2+2", "shared"]
)
def test_tokens_and_logits_are_those_of_one_node(
    mixtral: Path, m: int, n: int, label: Label, gating: str
) -> None:
    asked = prompts(mixtral, m + 1, seed=m * n)
    expected = run(mixtral, m, n, asked, gating=gating)
    for scheme in TWO:
        with sent() as log:
            assert_equal(run(mixtral, m, n, asked, gating=gating, nodes=label, exchange=scheme), expected)
        assert {header.scheme for _, header, _ in log if header.layer} == {SCHEMES[scheme]}


@pytest.mark.parametrize("gating", ["moe", "attention"])
@pytest.mark.parametrize("scheme", TWO)
def test_rows_beyond_one_message_take_several(mixtral: Path, scheme: str, gating: str) -> None:
    asked = prompts(mixtral, 4, seed=1)
    options = EngineOptions(kv_tokens=4096, max_batch_tokens=8)
    expected = run(mixtral, 2, 2, asked, attention_options=options)
    with sent() as log:
        answers = run(
            mixtral,
            2,
            2,
            asked,
            attention_options=options,
            nodes=apart(2, 2, 1, 1),
            exchange=scheme,
            gating=gating,
        )
    assert_equal(answers, expected)
    assert all(header.tokens <= 8 for _, header, _ in log if header.kind in (Kind.HIDDEN, Kind.PARTIAL))


@pytest.mark.parametrize("scheme", TWO)
@pytest.mark.parametrize("gating", ["moe", "attention"])
def test_two_micro_batches(mixtral: Path, scheme: str, gating: str) -> None:
    """Workers that split their steps beside one whose single token cannot be split."""
    asked = prompts(mixtral, 5, seed=6)
    expected = run(mixtral, 1, 1, asked, gating=gating)
    options = EngineOptions(kv_tokens=4096, micro_batches="2")
    label = apart(3, 4, 1, 2)
    with InProcessMesh(
        mixtral,
        attention=3,
        experts=4,
        nodes=label,
        exchange=scheme,
        gating=gating,
        attention_options=options,
    ) as mesh:
        where = (0, 1, 1, 2, 2)
        numbers = [
            mesh.submit(prompt, worker=worker, max_tokens=5, logits=True)
            for prompt, worker in zip(asked, where, strict=True)
        ]
        assert_equal([mesh.answer(number) for number in numbers], expected)
        mesh.pump(lambda: any(w.stats["split_steps"] for w in mesh.attention), "a step split in two")


@pytest.mark.parametrize("scheme", TWO)
def test_idle_workers_and_sleep_between(mixtral: Path, scheme: str) -> None:
    asked = prompts(mixtral, 1, seed=2)
    expected = run(mixtral, 1, 1, asked)
    with InProcessMesh(mixtral, attention=4, experts=3, nodes=apart(4, 3, 2, 2), exchange=scheme) as mesh:
        for worker in (3, 0, 2, 1):
            number = mesh.submit(asked[0], worker=worker, max_tokens=5, logits=True)
            assert_equal([mesh.answer(number)], expected)


@pytest.mark.parametrize("micro_batches", ["1", "2"])
@pytest.mark.parametrize("scheme", TWO)
def test_other_digests_anywhere_repeat_the_layer(
    mixtral: Path, scheme: str, micro_batches: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prompts(mixtral, 4, seed=3)
    expected = run(mixtral, 2, 4, asked)
    gate = MoeCompute.gate
    odd: list[tuple[int, str]] = []

    def rounds_otherwise(self: MoeCompute, layer: int, x_TD: torch.Tensor) -> Any:
        ids_TK, weights_TK = gate(self, layer, x_TD)
        name = threading.current_thread().name
        # Each layer once, each on another worker; members 3 to 6 are the MoE workers.
        if len(odd) < 3 and name == f"moe-{4 + len(odd)}" and layer == len(odd):
            odd.append((layer, name))
            ids_TK = (ids_TK + 1) % 8
        return ids_TK, weights_TK

    monkeypatch.setattr(MoeCompute, "gate", rounds_otherwise)
    options = EngineOptions(kv_tokens=4096, micro_batches=micro_batches)
    with InProcessMesh(
        mixtral, attention=2, experts=4, nodes=apart(2, 4, 1, 2), exchange=scheme, attention_options=options
    ) as mesh:
        assert_equal(mesh.generate(asked, max_tokens=5, logits=True), expected)
        mesh.pump(lambda: any(w.stats.get("digest_mismatches") for w in mesh.attention), "mismatches counted")
    assert len(odd) == 3


def test_auto_measures_the_links_and_says_what_it_expects(
    mixtral: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = prompts(mixtral, 2, seed=8)
    expected = run(mixtral, 1, 1, asked, tokens=30)
    caplog.set_level("INFO", "janus.worker")
    with InProcessMesh(mixtral, attention=2, experts=4, nodes=apart(2, 4, 1, 2), exchange="auto") as mesh:
        assert_equal(mesh.generate(asked, max_tokens=30, logits=True), expected)
        mesh.answer(mesh.submit(asked[0], max_tokens=3, trace=("ab" * 16, "cd" * 8)))
        mesh.pump(lambda: bool(mesh.moe[0].spans and mesh.attention[0].spans), "spans")
        mesh.form()
        assert_equal(mesh.generate(asked, max_tokens=30, logits=True), expected)
        steps = mesh.moe[0].stats["exchange_steps"]
        spans = [span["attributes"] for span in mesh.moe[0].spans]
        theirs = [span["attributes"] for span in mesh.attention[0].spans if span["name"] == "exchange.layer"]
    said = [record.message for record in caplog.records if record.message.startswith("links ")]
    assert len(said) == 2, "measured once for the same members"
    assert not any("not measured" in text for text in said)
    assert sum(steps.values()) >= 30
    assert all(a["janus.exchange_predicted_us"] > 0 and a["janus.exchange"] in SCHEMES for a in spans)
    assert {a["janus.exchange"] for a in theirs} <= {"1pc", *(a["janus.exchange"] for a in spans)}


@pytest.mark.parametrize("gating", ["moe", "attention"])
@pytest.mark.parametrize("scheme", TWO)
def test_streams_outlive_leaders(mixtral: Path, scheme: str, gating: str) -> None:
    """The first worker of a node goes, twice: the step is repeated in the next cohort by way of another one."""
    asked = prompts(mixtral, 2, seed=4)
    expected = run(mixtral, 2, 2, asked, tokens=40)
    with InProcessMesh(
        mixtral, attention=3, experts=4, nodes=apart(3, 4, 1, 2), exchange=scheme, gating=gating
    ) as mesh:
        numbers = [
            mesh.submit(prompt, worker=1 + i, max_tokens=40, logits=True) for i, prompt in enumerate(asked)
        ]
        for group in (mesh.moe, mesh.attention, mesh.moe):
            seen = len(mesh.peek(numbers[0]).tokens)
            mesh.pump(lambda seen=seen: len(mesh.peek(numbers[0]).tokens) > seen + 3, "some tokens")
            mesh.stop(group[0])
            mesh.form()
        assert_equal([mesh.answer(number) for number in numbers], expected)


@contextmanager
def routed() -> Iterator[dict[tuple[int, int], dict[int, np.ndarray]]]:
    """Expert ids that attention workers found meanwhile: by step and layer, then by member."""
    log: dict[tuple[int, int], dict[int, np.ndarray]] = defaultdict(dict)
    gated = Forward._gated

    def spy(self: Forward, lane: Any) -> Any:
        piece = gated(self, lane)
        log[self._engine.step, lane.index][self._engine.member] = piece.ids_TK
        return piece

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forward, "_gated", spy)
        yield log


def needed(topology: Topology, hosted: list[list[int]], scheme: Scheme, edge: Edge, ids: np.ndarray) -> int:
    """Rows with an expert of a MoE worker that an edge's rows are for, counted one by one; all where not gated."""
    ranks = [edge.receiver - topology.m]
    if edge.phase == GATHER:
        ranks = [r for r in range(len(hosted)) if topology.remote(edge.sender, topology.m + r)]
    elif edge.phase == ACROSS and scheme:
        ranks = [r for r in range(len(hosted)) if not topology.remote(edge.receiver, topology.m + r)]
    experts = {expert for rank in ranks for expert in hosted[rank]}
    return sum(bool(experts & set(row.tolist())) for row in ids)


def expected_counts(
    topology: Topology,
    tokens: dict[int, int],
    scheme: Scheme,
    sizes: dict[str, tuple[int, int]],
    rows: Callable[[Edge, int], int] | None,
) -> dict[tuple[str, str], tuple[int, int]]:
    """(messages, bytes) of one layer by direction and link; ``sizes``: bytes of a row and of each token besides."""
    plan = make_plan(scheme, topology, sorted(tokens))
    found = {}
    for direction, (row, each) in sizes.items():
        total = traffic(plan, topology, tokens, row_bytes=row, most=512, token_bytes=each, rows=rows)
        found[direction, "inter"] = total.inter_messages, total.inter_bytes
        found[direction, "intra"] = total.intra_messages, total.intra_bytes
    return found


def between_nodes(log: list[Any], topology: Topology, index: dict[int, int]) -> tuple[int, int]:
    """Messages and bytes between nodes, all kinds."""
    sizes = [
        HEADER_BYTES + header.payload_bytes
        for sender, header, receivers in log
        for receiver in receivers
        if topology.remote(index[sender], index[receiver])
    ]
    return len(sizes), sum(sizes)


def reported(mesh: InProcessMesh) -> tuple[int, int]:
    """The same by the workers' counters."""
    stats = [worker.stats for worker in mesh.workers]
    return (
        int(sum(s.get("internode_messages_sent", 0) for s in stats)),
        int(sum(s.get("internode_bytes_sent", 0) for s in stats)),
    )


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen experts, so that sixteen MoE workers have one each."""
    return make_tiny(tmp_path_factory.mktemp("wide"), family="mixtral", seed=7, num_experts=16)


def test_agate_sends_each_row_only_where_its_experts_are(wide: Path) -> None:
    """Sixteen workers with an expert each, top-2: a row goes to two of them, its ids to all."""
    asked = prompts(wide, 3, seed=9)
    expected = run(wide, 1, 1, asked)
    config = load_config(wide)
    hidden, topk = config.hidden, config.moe.top_k
    with sent() as log:
        found = run(wide, 2, 16, asked, gating="attention", exchange="1pc", slots=1)
    assert_equal(found, expected)
    rows: dict[Any, list[int]] = defaultdict(list)
    back: dict[Any, int] = defaultdict(int)
    for sender, header, receivers in log:
        if header.kind is Kind.HIDDEN and header.tokens:
            count = packed_rows(header.payload_bytes, header.tokens, hidden, topk)
            assert count is not None and len(receivers) == 1
            rows[sender, header.step, header.layer, header.lane, header.tokens].append(count)
        elif header.kind is Kind.PARTIAL:
            back[receivers[0], header.step, header.layer, header.lane, header.tokens] += header.payload_bytes
    assert rows
    for key, counts in rows.items():
        assert len(counts) == 16 and sum(counts) == topk * key[-1]
        assert back[key] == 8 * hidden * topk * key[-1]


@pytest.mark.parametrize("gating", ["moe", "attention"])
@pytest.mark.parametrize("scheme", ["1pc", *TWO])
def test_hidden_states_as_bf16_are_the_same_everywhere(mixtral: Path, scheme: str, gating: str) -> None:
    """Rounded once, where they are sent: however rows travel, and whoever routes; near what fp32 gives."""
    asked = prompts(mixtral, 3, seed=12)
    narrow = EngineOptions(kv_tokens=4096, wire_dtype="bf16")
    expected = run(mixtral, 1, 1, asked, attention_options=narrow)
    with sent() as log:
        found = run(
            mixtral,
            4,
            4,
            asked,
            nodes=apart(4, 4, 2, 2),
            exchange=scheme,
            gating=gating,
            attention_options=narrow,
        )
    assert_equal(found, expected)
    exact = run(mixtral, 1, 1, asked)
    for one, other in zip(found, exact, strict=True):
        first, wanted = np.asarray(one.logits[0]), np.asarray(other.logits[0])
        assert 0 < np.abs(first - wanted).max() < 0.05 * np.abs(wanted).max()
    hidden = load_config(mixtral).hidden
    out = [h for _, h, _ in log if h.kind is Kind.HIDDEN and h.tokens and h.scheme]
    if gating == "moe":
        assert all(h.payload_bytes == 2 * hidden * h.tokens for h in out)
    assert bool(out) == (scheme != "1pc")


@pytest.mark.parametrize("gating", ["moe", "attention"])
@pytest.mark.parametrize("shape", [(4, 4, 2, 2), (8, 8, 2, 2), (8, 16, 1, 2)], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_messages_and_bytes_are_the_formulas(
    wide: Path, shape: tuple[int, int, int, int], scheme: str, gating: str
) -> None:
    m, n, _, _ = shape
    label = apart(*shape)
    topology = Topology(
        tuple(label("attention", i) for i in range(m)), tuple(label("moe", i) for i in range(n))
    )
    config = load_config(wide)
    hidden, topk = config.hidden, config.moe.top_k
    placement = layers_round_robin(16, [16 // n] * n, len(config.moe_layers))
    mesh = InProcessMesh(wide, attention=m, experts=n, nodes=label, exchange=scheme, gating=gating)
    with routed() as ids, sent() as log, mesh:
        mesh.generate([[5, 9, 14 + i] for i in range(m)], max_tokens=3)
        index = {worker.member: i for i, worker in enumerate(mesh.workers)}
        mesh.pump(
            lambda: reported(mesh) == between_nodes(log, topology, index), "the transport's counts to agree"
        )
    tokens: dict[int, dict[int, int]] = defaultdict(dict)
    counted: dict[tuple[int, int], dict[tuple[str, str], list[int]]] = defaultdict(
        lambda: {(way, link): [0, 0] for way in ("out", "back") for link in ("inter", "intra")}
    )
    for sender, header, receivers in log:
        if header.kind not in (Kind.HIDDEN, Kind.PARTIAL):
            continue
        if header.kind is Kind.HIDDEN and not header.layer and header.tokens:
            tokens[header.step][index[sender]] = header.tokens
        way = "out" if header.kind is Kind.HIDDEN else "back"
        for receiver in receivers:
            link = "inter" if topology.remote(index[sender], index[receiver]) else "intra"
            count = counted[header.step, header.layer][way, link]
            count[0] += 1
            count[1] += HEADER_BYTES + header.payload_bytes
    whole: dict[str, tuple[int, int]] = {"out": (4 * hidden, 0), "back": (8 * hidden, 0)}
    sizes = whole if gating == "moe" else {**whole, "out": (4 * hidden + 8 * topk, 4 * topk)}
    seen = saved = 0
    for (step, layer), counts in counted.items():
        if not layer:
            continue
        by_rank = {index[member]: found for member, found in ids[step, layer].items()}
        kind = SCHEMES[scheme]

        def rows(
            edge: Edge, source: int, by_rank: Any = by_rank, layer: int = layer, kind: Scheme = kind
        ) -> int:
            return needed(topology, placement[layer], kind, edge, by_rank[source])

        expected = expected_counts(topology, tokens[step], kind, sizes, rows if by_rank else None)
        assert {key: tuple(value) for key, value in counts.items()} == expected
        seen += len(tokens[step]) == m
        most = expected_counts(topology, tokens[step], kind, sizes, None)
        saved += sum(most[key][1] - expected[key][1] for key in expected)
    assert seen, "no step had tokens on all workers"
    assert (saved > 0) == (gating == "attention")
