"""KV blocks that move with a stream: bit for bit as if computed anew, whatever happens to the transfer meanwhile."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_attention.blocks import BlockPool, prefix_names
from janus_attention.engine import EngineOptions
from janus_attention.handover import KvHandover
from janus_models.kvcache import KvCache
from janus_models.tiny import make_tiny
from janus_testing.inprocess import Answer, InProcessMesh, Worker
from janus_transport import Exchange, Header, Kind, create_transport
from janus_worker.lockstep import CohortInbox

BLOCK = 8
OPTIONS = EngineOptions(kv_tokens=1024, block_size=BLOCK, cache_seed="model")
_IDS = itertools.count(1)


def bits(answer: Answer) -> bytes:
    return b"".join(row.tobytes() for row in answer.logits)


def address(worker: Worker) -> str:
    return base64.b64encode(bytes.fromhex(worker.hello["address"])).decode()


def ask(mesh: InProcessMesh, worker: Worker, **body: Any) -> int:
    """A request to an engine and its count."""
    number = next(_IDS)
    worker.send({**body, "id": number})

    def replies() -> list[int]:
        return [e["count"] for e in worker.events if e["t"] == "reply" and e["id"] == number]

    mesh.pump(lambda: bool(replies()), f"the reply to {body['t']}")
    return replies()[0]


def expect(mesh: InProcessMesh, giver: Worker, taker: Worker, names: Sequence[bytes], number: int) -> None:
    told = {"names": [n.hex() for n in names], "number": number, "address": address(giver)}
    assert ask(mesh, taker, t="kv_expect", member=giver.member, **told)


def give(mesh: InProcessMesh, giver: Worker, taker: Worker, names: Sequence[bytes], number: int) -> int:
    told = {"names": [n.hex() for n in names], "number": number, "address": address(taker)}
    return ask(mesh, giver, t="kv_give", member=taker.member, **told)


def taken(mesh: InProcessMesh, taker: Worker, number: int) -> int:
    """Blocks that a transfer brought, once it is over."""

    def found() -> list[int]:
        return [e["blocks"] for e in taker.events if e["t"] == "kv_taken" and e["number"] == number]

    mesh.pump(lambda: bool(found()), "the end of the transfer")
    return found()[0]


@pytest.fixture(scope="module", params=["mixtral", "deepseek_v2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    make_tiny(directory, family=request.param, seed=3)
    return directory


@pytest.mark.parametrize("beside", [0, 3], ids=["asleep", "beside other streams"])
def test_a_stream_goes_on_from_blocks_of_another_worker(model: Path, beside: int) -> None:
    rng = random.Random(beside)
    prompt = [rng.randrange(3, 90) for _ in range(61)]
    others = [[rng.randrange(3, 90) for _ in range(20)] for _ in range(beside)]
    more: dict[str, Any] = {"max_tokens": 60, "logits": True, "temperature": 0.7, "seed": 5}
    with InProcessMesh(model, attention=2, experts=2, attention_options=OPTIONS) as mesh:
        giver, taker = mesh.attention
        whole = mesh.answer(mesh.submit(prompt, **more))
        tokens = prompt + whole.tokens[:20]
        names = prefix_names(tokens, BLOCK, "model")
        alone = [mesh.answer(mesh.submit(p, max_tokens=80)).tokens for p in others]
        running = [mesh.submit(p, max_tokens=80, worker=1) for p in others]
        expect(mesh, giver, taker, names, 1)
        assert give(mesh, giver, taker, names, 1) == len(names) == 10
        assert taken(mesh, taker, 1) == 10
        mesh.pump(lambda: any(e["t"] == "kv_given" for e in giver.events), "the giver's end")
        rest = mesh.answer(mesh.submit(prompt, worker=1, resumed=whole.tokens[:20], **more))
        assert rest.tokens == whole.tokens[20:]
        assert bits(rest) == b"".join(row.tobytes() for row in whole.logits[20:])
        assert [mesh.answer(number).tokens for number in running] == alone
        mesh.pump(lambda: taker.stats.get("prefix_hit_tokens") == 80, "what was found in the cache")
        assert taker.stats["kv_moved_tokens"] == 80
        assert taker.stats["prompt_tokens"] < 20 + 20 * beside, "next to nothing is computed again"
        # Between the same two again, and once the giver has gone from the cohort.
        mesh.attention.remove(giver)
        mesh.attention.append(giver)
        mesh.form()
        expect(mesh, giver, taker, names, 2)
        assert give(mesh, giver, taker, names, 2) == taken(mesh, taker, 2) == 10
        assert mesh.answer(mesh.submit(prompt, worker=0, **more)).tokens == whole.tokens


def test_blocks_come_across_an_epoch_and_from_outside_the_cohort(model: Path) -> None:
    prompt = [5 + i % 71 for i in range(200)]
    names = prefix_names(prompt, BLOCK, "model")
    with InProcessMesh(model, attention=2, experts=2, attention_options=OPTIONS) as mesh:
        giver, taker = mesh.attention
        expected = mesh.answer(mesh.submit(prompt, max_tokens=9)).tokens
        expect(mesh, giver, taker, names, 7)
        mesh.forget(giver)
        mesh.form()
        giver.send({"t": "kv_forget", "number": 99})  # of nothing
        try:
            giver_told = {"names": [n.hex() for n in names], "number": 7, "address": address(taker)}
            giver.send({"t": "kv_give", "id": next(_IDS), "member": taker.member, **giver_told})
            assert taken(mesh, taker, 7) == 24
            assert mesh.answer(mesh.submit(prompt, max_tokens=9)).tokens == expected
        finally:
            mesh.stop(giver)


def test_what_is_not_there_or_has_no_room_is_computed(model: Path) -> None:
    prompt = [5 + i % 71 for i in range(100)]
    names = prefix_names(prompt, BLOCK, "model")
    small = dataclasses.replace(OPTIONS, kv_tokens=120)
    with InProcessMesh(model, attention=2, experts=2, attention_options=small) as mesh:
        giver, taker = mesh.attention
        assert give(mesh, giver, taker, names, 1) == 0, "nothing was computed here"
        expected = mesh.answer(mesh.submit(prompt, max_tokens=4)).tokens
        other = [9 + i % 50 for i in range(60)]
        assert give(mesh, giver, taker, prefix_names(other, BLOCK, "model"), 1) == 0
        assert give(mesh, giver, taker, prefix_names(prompt, BLOCK, "another"), 1) == 0
        alone = mesh.answer(mesh.submit(other, max_tokens=50)).tokens
        running = mesh.submit(other, max_tokens=50, worker=1)
        mesh.pump(lambda: bool(mesh.peek(running).tokens), "a first token")
        mesh.answer(mesh.submit(prompt, max_tokens=4))
        expect(mesh, giver, taker, names, 2)
        assert give(mesh, giver, taker, names, 2) == 12
        assert taken(mesh, taker, 2) == 12  # of which some had no room
        assert mesh.answer(running).tokens == alone
        assert mesh.answer(mesh.submit(prompt, max_tokens=4, worker=1)).tokens == expected


def test_a_giver_that_ends_amid_it_costs_nothing_but_time(model: Path) -> None:
    prompt = [5 + i % 71 for i in range(100)]
    names = prefix_names(prompt, BLOCK, "model")
    with InProcessMesh(model, attention=2, experts=2, attention_options=OPTIONS) as mesh:
        giver, taker = mesh.attention
        expected = mesh.answer(mesh.submit(prompt, max_tokens=4)).tokens
        expect(mesh, giver, taker, names, 3)
        mesh.forget(giver)
        mesh.stop(giver)
        mesh.form()
        assert taken(mesh, taker, 3) == 0
        assert mesh.answer(mesh.submit(prompt, max_tokens=4)).tokens == expected


BAD: list[dict[str, int]] = [
    {"tokens": 1}, {"digest": 8}, {"layer": 6}, {"layer": 0}, {"digest": 1 << 63}, {"tokens": 5},
    {"payload_bytes": 9000},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_frames_that_do_not_fit_end_the_transfer(bad: dict[str, int]) -> None:
    """Of a peer that lies: nothing is stored under a name but what is whole and in order."""
    ours, theirs = (
        Exchange(create_transport("inproc", member=member), member=member, max_payload=10_000)
        for member in (1, 2)
    )
    inbox, pool = CohortInbox(ours), BlockPool(6, BLOCK, caching=True)
    kv = KvCache(num_layers=2, num_blocks=6, block_size=BLOCK, num_kv_heads=2, head_dim=32)
    over: list[tuple[int, int]] = []
    handover = KvHandover(ours, pool, kv, taken=lambda *told: over.append(told), given=lambda *told: None)
    inbox.on_kv = handover.take
    theirs.set_peers({1: ours._transport.address})
    names = [bytes([i]) * 16 for i in range(5)]
    assert handover.expect(4, 2, theirs._transport.address, names) and handover.busy
    assert kv.block_bytes == 8192

    def send(**header: int) -> None:
        fields: dict[str, Any] = {
            "step": 4,
            "layer": 5,
            "tokens": 0,
            "digest": 0,
            "payload_bytes": 8192,
            **header,
        }
        theirs.send([1], Header(kind=Kind.KV, epoch=0, source=2, **fields), theirs.allocate())
        handover.work(inbox.peek)

    send(step=5)  # an unknown number is dropped and ends nothing
    send(payload_bytes=8000)
    assert handover.busy and not over and ours.rejected == 0
    send(payload_bytes=192, digest=8000)
    assert pool.hold(names) and len(pool.hold(names)) == 1, "the first is whole"
    send(**{"tokens": 1, **bad} if "tokens" not in bad else {"tokens": 1 + bad["tokens"]})
    assert ours.rejected == 1 and over == [(4, 1)] and not handover.busy
    send(tokens=1)
    assert len(pool.hold(names)) == 1


def test_a_giver_that_says_nothing_is_given_up() -> None:
    ours, theirs = (
        Exchange(create_transport("inproc", member=member), member=member, max_payload=10_000)
        for member in (1, 2)
    )
    kv = KvCache(num_layers=2, num_blocks=6, block_size=BLOCK, num_kv_heads=2, head_dim=32)
    over: list[tuple[int, int]] = []
    handover = KvHandover(
        ours, BlockPool(6, BLOCK, caching=True), kv, taken=lambda *told: over.append(told),
        given=lambda *told: None,
    )  # fmt: skip
    assert handover.expect(4, 2, theirs._transport.address, [b"a" * 16])
    handover._taking[4].until = 0.0
    handover.work(CohortInbox(ours).peek)
    assert over == [(4, 0)] and not handover.busy
    assert not handover.expect(5, 3, b"nonsense", [b"a" * 16]) or ours.lost(3)


@pytest.mark.parametrize("latent", [None, 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(16, 8), (8, 16), (5, 3)])
def test_a_block_read_is_the_block_written(
    latent: int | None, dtype: torch.dtype, sizes: tuple[int, int]
) -> None:
    def cache(block_size: int) -> KvCache:
        made = KvCache(
            num_layers=3, num_blocks=6, block_size=block_size, num_kv_heads=1 if latent else 2, head_dim=32,
            latent_dim=latent, dtype=dtype,
        )  # fmt: skip
        for part in (made.keys, made.values):
            part.copy_(torch.randn(part.shape))
        return made

    one, other = cache(sizes[0]), cache(sizes[0])
    data = one.read_block(4)
    assert data.nbytes == one.block_bytes
    before = [(k.clone(), v.clone()) for k, v in other.layers]
    other.write_block(1, data)
    for layer in range(3):
        for part in range(2):
            assert torch.equal(other.layers[layer][part][1], one.layers[layer][part][4])
            for block in (0, 2, 3, 4, 5):
                assert torch.equal(other.layers[layer][part][block], before[layer][part][block])


def test_names_are_what_sequences_look_for() -> None:
    tokens = list(range(40))
    pool = BlockPool(10, BLOCK, caching=True, seed="model")
    names = prefix_names(tokens, BLOCK, "model")
    assert len(names) == 4, "the last token is always computed, so its block is not looked for"
    placed = [pool.place(name) for name in names]
    assert None not in placed and len(set(placed)) == 4
    assert pool.place(names[0]) is None, "it is there"
    held = pool.hold([*names, b"x" * 16, names[0]])
    assert held == placed
    filler = [pool.place(bytes([i]) * 16) for i in range(20)]
    assert set(filler).isdisjoint(held) and pool.hold(names) == held, "nobody takes what is held"
    pool.let_go(held)
    pool.let_go(held)
    assert pool.free == 10
