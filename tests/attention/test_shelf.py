"""The file of KV rows: what is found is what was computed, whatever became of the writer, and else nothing is found."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from janus_attention.blocks import BlockPool, prefix_names
from janus_attention.sequence import Sampling
from janus_attention.sequence import Sequence as Stream
from janus_attention.shelf import KvShelf
from janus_attention.shelf_file import ShelfFormat, ShelfReader, ShelfWriter
from janus_models.kvcache import KvCache
from janus_runtime import shared_folder
from janus_runtime.errors import FailedPrecondition

SIZE = 4
SEED = "model"
FMT = ShelfFormat(block_size=SIZE, row_bytes=64, meaning="a model")


class Engine:
    """A pool, a cache and a shelf, without an engine around them."""

    def __init__(
        self, folder: Path, name: str, *, blocks: int = 32, nbytes: int = 1 << 24, meaning: str = "m",
        latent: int | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.pool = BlockPool(blocks, SIZE, caching=True, seed=SEED)
        self.kv = KvCache(
            num_layers=3, num_blocks=blocks, block_size=SIZE, num_kv_heads=1 if latent else 2, head_dim=32,
            latent_dim=latent, dtype=dtype,
        )  # fmt: skip
        self.kv.keys.copy_(torch.randn(self.kv.keys.shape))
        self.kv.values.copy_(torch.randn(self.kv.values.shape))
        self.shelf = KvShelf(
            self.pool, self.kv, folder=folder, name=f"kv-00000000-{name}", meaning=meaning, nbytes=nbytes
        )
        self.streams: list[Stream] = []

    def run(self, tokens: list[int], *, until: int | None = None) -> Stream:
        """A stream that has computed its first tokens; random rows stand for what it computed."""
        seq = make(len(self.streams), tokens)
        assert self.pool.admit(seq, len(tokens))
        self.streams.append(seq)
        self.on(seq, until or len(tokens) - 1)
        return seq

    def on(self, seq: Stream, until: int) -> None:
        before, seq.computed = seq.computed, until
        self.pool.commit(seq, before)

    def slots(self, seq: Stream, count: int | None = None) -> np.ndarray:
        count = seq.computed if count is None else count
        return np.array([seq.blocks[i // SIZE] * SIZE + i % SIZE for i in range(count)], np.int64)

    def rows(self, seq: Stream, count: int | None = None) -> bytes:
        slots = self.slots(seq, count)
        return self.kv.read_rows(slots).tobytes() if len(slots) else b""

    def take(self, tokens: list[int]) -> Stream:
        """A stream that another had: what is found of it."""
        seq = make(len(self.streams), tokens)
        self.shelf.step()
        assert self.shelf.blocks(seq) and self.pool.admit(seq, len(tokens))
        self.shelf.rows(seq)
        self.streams.append(seq)
        return seq


def make(number: int, tokens: list[int]) -> Stream:
    return Stream(id=number, prompt=len(tokens), tokens=list(tokens), sampling=Sampling(temperature=0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shelf"


KINDS = [(None, torch.float32), (None, torch.bfloat16), (24, torch.float32)]


@pytest.mark.parametrize(("latent", "dtype"), KINDS, ids=str)
def test_all_but_the_last_token_is_found_bit_for_bit(
    folder: Path, latent: int | None, dtype: torch.dtype
) -> None:
    one = Engine(folder, "1", latent=latent, dtype=dtype)
    other = Engine(folder, "2", latent=latent, dtype=dtype)
    common = [5, 6, 7, 8, 9]
    for length in (2, 3, 4, 5, 8, 9, 13, 30):
        tokens = common[:length] + [10 + length + i for i in range(length - len(common[:length]))]
        seq = one.run(tokens)
        one.shelf.keep(one.streams)
        found = other.take(tokens)
        assert found.computed == length - 1 == seq.computed
        assert other.rows(found) == one.rows(seq)
    assert other.shelf.recovered_tokens == sum(n - 1 for n in (2, 3, 4, 5, 8, 9, 13, 30)) - 4 * 4, (
        "shared ones once"
    )


def test_token_by_token_as_streams_decode(folder: Path) -> None:
    one = Engine(folder, "1")
    tokens = list(range(40, 70))
    seq = one.run(tokens, until=3)
    for count in range(3, 29):
        one.on(seq, count)
        one.shelf.keep(one.streams)
        assert seq.kept == count
        found = Engine(folder, f"of {count}", nbytes=0).take(tokens)
        assert found.computed == count
    assert one.shelf.kept_tokens == 28


def test_another_continuation_gets_what_is_common(folder: Path) -> None:
    one = Engine(folder, "1")
    one.run([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    one.run([1, 2, 3, 4, 5, 9, 9, 9])
    one.shelf.keep(one.streams)
    other = Engine(folder, "2")
    assert other.take([1, 2, 3, 4, 5, 6, 7, 99, 98, 97]).computed == 7
    assert other.take([1, 2, 3, 4, 5, 9, 3, 3]).computed == 6
    assert other.take([2, 2, 3, 4, 5]).computed == 0
    assert other.take([9, 10, 11]).computed == 0, "the same tokens after others are others"


def test_a_stream_lost_again_is_found_at_either(folder: Path) -> None:
    """What was recovered is kept anew, also when the first file is gone."""
    one, other = Engine(folder, "1"), Engine(folder, "2")
    tokens = list(range(60))
    seq = one.run(tokens, until=30)
    one.shelf.keep(one.streams)
    found = other.take(tokens)
    assert found.computed == 30
    other.on(found, 45)
    other.shelf.keep(other.streams)
    one.shelf.close()
    third = Engine(folder, "3")
    again = third.take(tokens)
    assert again.computed == 45 and third.rows(again, 30) == one.rows(seq)


def test_what_is_new_is_kept_before_what_others_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that took streams over and is lost soon after: their blocks are in one file, the rest in the other."""
    one, other = Engine(folder, "1"), Engine(folder, "2")
    tokens = [list(range(k, k + 60)) for k in (0, 100)]
    seqs = [one.run(each, until=38) for each in tokens]
    one.shelf.keep(one.streams)
    found = [other.take(each) for each in tokens]
    monkeypatch.setattr("janus_attention.shelf._AT_ONCE", 8 * one.kv.row_bytes)
    for step in range(3):
        for each in found:
            other.on(each, 39 + step)
        other.shelf.keep(other.streams)
    assert [each.kept for each in found] == [41, 41]
    third = Engine(folder, "3")
    again = [third.take(each) for each in tokens]
    assert [each.computed for each in again] == [41, 41]
    assert third.rows(again[1], 38) == one.rows(seqs[1])
    for _ in range(12):  # blocks follow, a few a step
        other.shelf.keep(other.streams)
    one.shelf.close()
    third.shelf.close()
    alone = Engine(folder, "4")
    assert [alone.take(each).computed for each in tokens] == [41, 41]
    assert other.shelf.kept_tokens == 82, "each once"


# What a writer may leave ---------------------------------------------------------------------------


def written(folder: Path, tokens: Sequence[int] = range(20)) -> tuple[Engine, Path]:
    one = Engine(folder, "1")
    one.run(list(tokens))
    one.shelf.keep(one.streams)
    return one, folder / "kv-00000000-1"


def index_at(path: Path) -> int:
    return 4096


def test_a_writer_killed_at_any_write_leaves_what_was_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every prefix of the writes that it makes: rows found are right, and at least those that were counted before."""
    one, path = written(folder, range(13))
    before = path.read_bytes()
    seq = one.streams[0]
    # A place given to another block, and rows added to it: bytes that differ, in any order of 8-byte words.
    one.pool.release(seq)
    one.streams.clear()
    one.run([7] * 10)
    one.shelf.keep(one.streams)
    after = path.read_bytes()
    words = [i for i in range(0, len(after), 8) if after[i : i + 8] != before[i : i + 8]]
    rng = random.Random(3)
    right = {tuple(range(13)): before, tuple([7] * 10): after}
    for _ in range(150):
        torn = bytearray(before)
        for i in rng.sample(words, rng.randrange(len(words) + 1)):
            torn[i : i + 8] = after[i : i + 8]
        path.write_bytes(torn)
        for tokens in right:
            other = Engine(folder, "2", nbytes=0)
            found = other.take(list(tokens))
            reference = Engine(folder, "3", nbytes=0)
            path.write_bytes(right[tokens])
            whole = reference.take(list(tokens))
            assert other.rows(found) == reference.rows(whole, found.computed)
            path.write_bytes(torn)


@pytest.mark.parametrize(
    "where", ["magic", "version", "row size", "places", "meaning", "short", "empty", "longer"]
)
def test_a_file_that_does_not_fit_is_left_alone_and_named_once(
    folder: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, path = written(folder)
    data = bytearray(path.read_bytes())
    at = {"magic": 0, "version": 8, "row size": 16, "places": 24, "meaning": 32}
    if where in at:
        data[at[where]] ^= 1
    data = {"short": data[:-1], "empty": data[:0], "longer": data + b"x"}.get(where, data)
    path.write_bytes(data)
    other = Engine(folder, "2")
    with caplog.at_level(logging.WARNING):
        assert other.take(list(range(20))).computed == 0
        assert other.take(list(range(21))).computed == 0
    assert [r.getMessage().count("are left alone") for r in caplog.records] == [1]


def test_another_model_dtype_or_shape_is_left_alone(folder: Path) -> None:
    written(folder)
    for other in (
        Engine(folder, "a", meaning="another"), Engine(folder, "b", dtype=torch.bfloat16),
        Engine(folder, "c", latent=24),
    ):  # fmt: skip
        assert other.take(list(range(20))).computed == 0


def test_garbage_is_never_taken(folder: Path) -> None:
    one, path = written(folder)
    data = path.read_bytes()
    rng = random.Random(5)
    right = one.rows(one.streams[0])
    row = one.kv.row_bytes
    for _ in range(200):
        spoilt = bytearray(data)
        for _ in range(rng.choice((1, 3, 50))):
            # Mostly where something is: the index's and the rows' first parts.
            base = rng.choice((4096, one.shelf._format.data_at(32)))
            spoilt[base + rng.randrange(0, 700)] = rng.randrange(256)
        path.write_bytes(spoilt)
        other = Engine(folder, "2", nbytes=0)
        found = other.take(list(range(20)))
        assert other.rows(found, found.computed) == right[: found.computed * row] if found.computed else True


def test_a_writer_that_goes_on_while_it_is_read_is_noticed(folder: Path) -> None:
    one, path = written(folder)
    tokens, parent = list(range(SIZE)), one.pool.seed
    with shared_folder.opened(folder, path.name) as descriptor:
        reader = ShelfReader(descriptor, one.shelf._format)
        place, count = reader.find(parent, tokens)
        assert count == SIZE and reader.read(place, count, parent, tokens) is not None
        assert one.shelf._writer is not None
        one.shelf._writer.begin(place, b"x" * 16)
        assert reader.read(place, count, parent, tokens) is None
        again = ShelfReader(descriptor, one.shelf._format)
        assert again.find(parent, tokens) == (-1, 0)


_WRITER = """
import os, sys
from pathlib import Path
import numpy as np
from janus_attention.shelf_file import ShelfFormat, ShelfWriter
from janus_runtime import shared_folder
fmt = ShelfFormat(block_size=4, row_bytes=64, meaning="a model")
writer = ShelfWriter(shared_folder.create(Path(sys.argv[1]), "kv", fmt.nbytes(3)), fmt, 3)
for place in range(3):
    writer.reserve(place)
print("there", flush=True)
rng = np.random.default_rng()
turn = 0
while True:
    turn += 1
    place, first = turn % 3, turn % 5
    parent = first.to_bytes(16, "little")
    writer.begin(place, parent)
    tokens = [first, turn % 2, 7, 8]
    # A row says what it is of.
    rows = np.zeros((4, 64), np.uint8)
    rows[:, 0], rows[:, 1], rows[:, 2] = first, tokens[1], range(4)
    rows[:, 3:] = turn % 251
    for i in range(4):
        writer.add([(place, i, parent, tokens[: i + 1])], rows[i : i + 1])
"""


def test_reading_beside_a_writer_that_never_rests_is_frozen_and_killed(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        found = 0

        def look() -> None:
            nonlocal found
            with shared_folder.opened(folder, "kv") as descriptor:
                reader = ShelfReader(descriptor, FMT)
                for first in range(5):
                    parent, tokens = first.to_bytes(16, "little"), [first, 1, 7, 8]
                    place, count = reader.find(parent, tokens)
                    rows = reader.read(place, count, parent, tokens) if count else None
                    if rows is not None:
                        found += 1
                        assert (rows[:, 0] == first).all() and (rows[1:, 1] == 1).all()
                        assert (rows[:, 2] == range(count)).all() and (rows[:, 3:] == rows[0, 3]).all()

        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            look()
        for _ in range(20):
            process.send_signal(signal.SIGSTOP)
            look()
            process.send_signal(signal.SIGCONT)
            look()
        process.kill()
        process.wait()
        look()
        assert found > 20
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


# Room -----------------------------------------------------------------------------------------------


def test_a_full_file_gives_places_of_blocks_that_no_stream_has(folder: Path) -> None:
    one = Engine(folder, "1")
    place = one.shelf._format.place_bytes
    small = Engine(folder, "2", nbytes=6 * place)
    first = small.run(list(range(17)))
    second = small.run(list(range(100, 109)))
    small.shelf.keep(small.streams)
    third = small.run(list(range(200, 213)))
    small.shelf.keep(small.streams)
    other = Engine(folder, "3")
    assert other.take(first.tokens).computed == 16 and other.take(second.tokens).computed == 8
    assert other.take(third.tokens).computed == 0, "there is no place left"
    small.pool.release(first)
    small.streams.remove(first)
    fourth = small.run(list(range(300, 316)))
    small.shelf.keep(small.streams)
    found = Engine(folder, "4").take(fourth.tokens)
    assert found.computed == 15
    assert Engine(folder, "5").take(second.tokens).computed == 8, "a running one's are not given away"


@pytest.mark.parametrize("when", ["at first", "later"])
def test_a_file_system_without_room_is_no_error(
    folder: Path, when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real: Callable[[int, int, int], None] = os.posix_fallocate
    calls = 0

    def fallocate(descriptor: int, at: int, size: int) -> None:
        nonlocal calls
        calls += 1
        if when == "at first" or calls > 3:
            raise OSError(28, "No space left on device")
        real(descriptor, at, size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with caplog.at_level(logging.WARNING):
        one = Engine(folder, "1")
        one.run(list(range(25)))
        for _ in range(3):
            one.shelf.keep(one.streams)
    assert len(caplog.records) == 1
    expected = 0 if when == "at first" else 2 * SIZE
    assert Engine(folder, "2", nbytes=1 << 20).take(list(range(25))).computed == expected


def test_a_folder_that_cannot_be_used_is_no_error(folder: Path) -> None:
    folder.parent.joinpath("shelf").write_text("")
    one = Engine(folder, "1")
    one.run(list(range(25)))
    one.shelf.keep(one.streams)
    assert one.take(list(range(25))).computed > 0, "its own cache"
    one.shelf.close()
    with pytest.raises(FailedPrecondition):
        shared_folder.create(folder, "x", 1)


def test_long_prefixes_take_several_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Engine(folder, "1", blocks=64)
    tokens = list(range(200))
    monkeypatch.setattr("janus_attention.shelf._AT_ONCE", 40 * one.kv.row_bytes)
    long, short = one.run(tokens), one.run([9, 9, 9])
    one.shelf.keep(one.streams)
    assert short.kept == 2 and 30 <= long.kept <= 44, "single tokens go first"
    for _ in range(5):
        one.shelf.keep(one.streams)
    assert long.kept == 199
    monkeypatch.setattr("janus_attention.shelf.BRING_S", 0.0)
    other = Engine(folder, "2", blocks=64)
    seq = make(0, tokens)
    steps = 0
    while not seq.sought:
        other.shelf.step()
        other.shelf._until += 10
        steps += 1
        other.shelf.blocks(seq)
    assert 40 <= steps <= 50, "a block each"
    names = prefix_names(tokens, SIZE, SEED)
    assert all(other.pool.has(name) for name in names)


def test_the_writer_and_the_reader_agree_on_a_format(tmp_path: Path) -> None:
    descriptor = shared_folder.create(tmp_path / "f", "kv", FMT.nbytes(2))
    writer = ShelfWriter(descriptor, FMT, 2)
    assert writer.reserve(1)
    writer.begin(1, b"p" * 16)
    rows = np.arange(128, dtype=np.uint8).reshape(2, 64)
    writer.add([(1, 0, b"p" * 16, [3, 4])], rows)
    reader = ShelfReader(descriptor, FMT)
    assert reader.find(b"p" * 16, [3, 5]) == (1, 1) and reader.find(b"q" * 16, [3]) == (-1, 0)
    found = reader.read(1, 2, b"p" * 16, [3, 4])
    assert found is not None and (found == rows).all()
    assert reader.read(1, 2, b"p" * 16, [3, 5]) is None
