from __future__ import annotations

import json
import multiprocessing
import re
import struct
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from janus_models.checkpoint import INDEX, Checkpoint, CheckpointError

Header = dict[str, Any]
DTYPES = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}


def write(path: Path, header: Header | bytes, data: bytes = b"", *, length: int | None = None) -> Path:
    blob = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(blob) if length is None else length) + blob + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> Header:
    return {
        "dtype": dtype,
        "shape": [(end - begin) // 4] if shape is None else shape,
        "data_offsets": [begin, end],
    }


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spec=st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8),
        st.tuples(st.sampled_from(list(DTYPES)), st.lists(st.integers(0, 5), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_reads_what_the_library_writes(
    tmp_path: Path, spec: dict[str, tuple[torch.dtype, list[int]]]
) -> None:
    tensors = {name: torch.randn(shape).to(dtype) for name, (dtype, shape) in spec.items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert sorted(checkpoint.names()) == sorted(tensors)
    for name, expected in tensors.items():
        got = checkpoint.tensor(name, expected.shape)
        assert got.dtype == expected.dtype and torch.equal(got, expected)


def test_misaligned_data_is_copied_not_misread(tmp_path: Path) -> None:
    expected = torch.randn(7)
    blob = json.dumps({"a": entry(0, 28)}).encode()
    blob += b" " * ((1 - len(blob)) % 4)  # data then begins at an odd byte
    write(tmp_path / "model.safetensors", blob, expected.numpy().tobytes())
    assert Checkpoint(tmp_path).entry("a").begin % 4
    assert torch.equal(Checkpoint(tmp_path).tensor("a"), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_bytes(b"abc"), "truncated: 3 bytes"),
        (lambda p: write(p, b"{}", length=10**12), "bad header: its length reads 1000000000000"),
        (lambda p: write(p, b"{}", length=999), r"truncated: the header needs 1007 bytes, the file has 10"),
        (lambda p: write(p, b"{nonsense"), "bad header"),
        (lambda p: write(p, b"\xff\xfe"), "bad header"),
        (lambda p: write(p, b"[1]"), "not a JSON object"),
        (lambda p: write(p, {"a": 3}), "a is not an object"),
        (lambda p: write(p, {"a": entry(0, 4, dtype="F99")}), "dtype of a is 'F99'"),
        (lambda p: write(p, {"a": entry(0, 4, shape=[-1])}), r"shape of a is \[-1\]"),
        (
            lambda p: write(p, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}),
            "data_offsets of a",
        ),
        (
            lambda p: write(p, {"a": entry(0, 8, shape=[3])}, b"x" * 8),
            r"needs 12 bytes, its data_offsets \[0, 8\] give 8",
        ),
        (
            lambda p: write(p, {"a": entry(0, 8), "b": entry(4, 12)}, b"x" * 12),
            "overlapping data_offsets: b begins at byte 4",
        ),
        (
            lambda p: write(p, {"a": entry(0, 8), "b": entry(12, 16)}, b"x" * 16),
            "hole in the data: b begins at byte 12",
        ),
        (
            lambda p: write(p, {"a": entry(0, 8)}, b"x" * 5),
            r"truncated: a needs data up to byte \d+, the file has \d+",
        ),
        (lambda p: write(p, {"a": entry(0, 8)}, b"x" * 11), "3 bytes after the last tensor"),
        (
            lambda p: write(
                p,
                b'{"a":'
                + json.dumps(entry(0, 4)).encode()
                + b',"a":'
                + json.dumps(entry(4, 8)).encode()
                + b"}",
                b"x" * 8,
            ),
            "repeated key 'a'",
        ),
    ],
)
def test_broken_files(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint(tmp_path)
    assert "model.safetensors" in str(caught.value) and caught.value.code.name == "FAILED_PRECONDITION"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_an_error_or_reads_as_tensors(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever byte is hit, nothing but CheckpointError comes out, and no view leaves the file."""
    good = safetensors.torch.save({"a": torch.randn(3, 2), "b": torch.randn(4)})
    place = data.draw(st.integers(0, 120))
    damaged = bytearray(good)
    damaged[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    (tmp_path / "model.safetensors").write_bytes(damaged[:cut] if data.draw(st.booleans()) else damaged)
    try:
        checkpoint = Checkpoint(tmp_path)
        for name in checkpoint.names():
            checkpoint.tensor(name).sum()
    except CheckpointError:
        pass


def sharded(directory: Path) -> Path:
    for i in range(2):
        safetensors.torch.save_file({f"t{i}": torch.full((4,), float(i))}, directory / f"part{i}.safetensors")
    weight_map = {"t0": "part0.safetensors", "t1": "part1.safetensors"}
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def test_index(tmp_path: Path) -> None:
    checkpoint = Checkpoint(sharded(tmp_path))
    assert checkpoint.tensor("t1").tolist() == [1.0] * 4 and checkpoint.nbytes == 32
    (tmp_path / INDEX).unlink()
    assert sorted(Checkpoint(tmp_path).names()) == ["t0", "t1"]  # without an index: every file


def test_missing_shard(tmp_path: Path) -> None:
    (sharded(tmp_path) / "part1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards missing: part1\.safetensors"):
        Checkpoint(tmp_path)


def test_index_naming_an_absent_tensor(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(
        json.dumps({"weight_map": {"t0": "part0.safetensors", "x": "part1.safetensors"}})
    )
    with pytest.raises(CheckpointError, match=r"part1\.safetensors.*says that it holds x"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"t0": 3}, {"t0": "../part0.safetensors"}])
def test_bad_index(tmp_path: Path, weight_map: Any) -> None:
    sharded(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match="weight_map"):
        Checkpoint(tmp_path)


def test_no_weights_and_duplicates(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors"):
        Checkpoint(tmp_path)
    for name in ("a", "b"):
        safetensors.torch.save_file({"t": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"t is also in a\.safetensors"):
        Checkpoint(tmp_path)


def test_wrong_shape_dtype_and_name(tmp_path: Path) -> None:
    safetensors.torch.save_file(
        {"w": torch.ones(2, 3), "q": torch.ones(2, dtype=torch.int8)}, tmp_path / "model.safetensors"
    )
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"w has shape \[2, 3\], config\.json asks for \[3, 2\]"):
        checkpoint.tensor("w", (3, 2))
    with pytest.raises(CheckpointError, match="q has dtype I8"):
        checkpoint.tensor("q")
    with pytest.raises(CheckpointError, match="no tensor named z"):
        checkpoint.tensor("z")


def test_views_outlive_the_checkpoint_and_copy_nothing(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.arange(1000.0)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    first, second = checkpoint.tensor("w"), checkpoint.tensor("w")
    assert first.data_ptr() == second.data_ptr()
    del checkpoint, second
    assert first.sum() == 499500


MIB = 1 << 20


def _hold(directory: Path, pipe: Connection) -> None:
    view = Checkpoint(directory).tensor("w")
    pipe.send(view.sum().item())
    pipe.recv()  # keep the pages mapped until the parent has looked
    del view


def _private_and_resident(path: Path) -> tuple[int, int]:
    """Bytes of this process's mapping of ``path`` that only it has in memory, and that are in memory."""
    smaps = Path("/proc/self/smaps").read_text()
    part = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", smaps)
    (mine,) = [text for text in part if str(path) in text.splitlines()[0]]
    sizes = {key: int(value) * 1024 for key, value in re.findall(r"^(\w+): +(\d+) kB", mine, re.M)}
    return sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Rss"]


def test_lazy_and_shared_between_processes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"w": torch.ones(8 * MIB), "unused": torch.ones(8 * MIB)}, path)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=_hold, args=(tmp_path, theirs))
    child.start()
    try:
        assert ours.poll(60), "the other process did not answer in 60 s"
        assert ours.recv() == 8 * MIB
        view = Checkpoint(tmp_path).tensor("w")
        assert view.sum() == 8 * MIB
        private, resident = _private_and_resident(path)
        assert resident >= 32 * MIB, "the tensor that was read is mapped"
        assert resident <= 48 * MIB, "the one that was not read is not"
        assert private <= MIB, "pages are shared with the other process"
    finally:
        ours.send("done")
        child.join(30)
        assert child.exitcode == 0
