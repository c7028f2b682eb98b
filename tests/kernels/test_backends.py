"""Which backend computes: the tensors' device says, JANUS_KERNELS and use_backend overrule it."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from janus_kernels import triton
from janus_kernels.native import NATIVE
from janus_kernels.ops import backend, backends, linear, rms_norm, use_backend


def test_the_device_decides() -> None:
    best = "torch" if NATIVE is None else "native"
    assert backend().name == backend("cpu").name == backend(torch.device("cpu")).name == best == backends()[0]
    assert backend("cuda").name == ("triton" if "triton" in backends() else "torch")
    assert backend(torch.device("cuda", 1)).name == backend("cuda").name


def test_use_backend_overrules_and_gives_back() -> None:
    for name in backends():
        with use_backend(name) as table:
            assert table.name == name == backend("cpu").name == backend("cuda").name
            with use_backend("torch"):
                assert backend().name == "torch"
            assert backend().name == name
    assert backend().name == backends()[0]
    with pytest.raises(ValueError, match="backend 'tpu'; available here: "), use_backend("tpu"):
        pass


def test_tensors_on_two_devices_are_refused() -> None:
    x, w = torch.ones(2, 4), torch.ones(3, 4)
    with pytest.raises(ValueError, match="linear: tensors on cpu and meta"):
        linear(x, w.to("meta"))
    with pytest.raises(ValueError, match="rms_norm: tensors on meta and cpu"):
        rms_norm(x.to("meta"), torch.ones(4), 1e-6)


_CHILD = """
import sys, torch
from janus_kernels.ops import backend, linear
print(backend("cpu").name, backend("cuda").name, "triton" in sys.modules)
print(float(linear(torch.ones(1, 4), torch.ones(1, 4))))
"""


@pytest.mark.parametrize(("chosen", "expected"),
                         [("torch", "torch torch False 4.0"), ("triton", "triton triton True 4.0")])  # fmt: skip
def test_janus_kernels_overrules_the_device(chosen: str, expected: str) -> None:
    if chosen not in backends():
        pytest.skip(triton.unavailable() or "")
    environment = {**os.environ, "JANUS_KERNELS": chosen, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == expected.split()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton._State, "loaded", False)
    monkeypatch.setitem(sys.modules, "triton.language.standard", SimpleNamespace(sum=object()))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "set TRITON_INTERPRET" in (triton.unavailable() or "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "not installed" in (triton.unavailable() or "")
    with pytest.raises(RuntimeError, match="not installed"):
        triton.load()


@pytest.mark.skipif(sys.platform != "linux", reason="there are no wheels of triton elsewhere")
def test_triton_is_among_what_is_tested() -> None:
    assert "triton" in backends(), "install it: pip install -e 'libs/kernels[triton]'"
