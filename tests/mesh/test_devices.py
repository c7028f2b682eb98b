"""Workers on a GPU, as far as that can be seen without one: every tensor is where it must be, at every hand-over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_attention.graphs import Replay
from janus_kernels.ops import use_backend
from janus_models.device import checked_device
from janus_models.errors import ConfigError
from janus_models.tiny import make_tiny
from janus_testing.inprocess import InProcessMesh
from janus_testing.pretended_gpu import DEVICE, PretendedGpu


class Again:
    """In the place of a CUDA graph: the work, done again."""

    def capture(self, work: Replay) -> Replay:
        return work


PROMPTS = [[5, 6, 7, 8, 9], [11, 3]]


def test_what_cuda_refuses_is_refused() -> None:
    with PretendedGpu():
        x = torch.ones(2, 3, device="cuda:0")
        assert x.device == DEVICE
        assert (x + 1).mean(dim=-1).device == DEVICE
        assert torch.ones(2).to("cuda").device == DEVICE
        assert x.to(torch.float64).device == DEVICE
        assert x.cpu().device == torch.device("cpu")
        assert torch.zeros(2, 3).copy_(x).device == torch.device("cpu")
        assert float(x.sum()) == 6.0
        with pytest.raises(RuntimeError, match="one device"):
            x + torch.ones(3)
        with pytest.raises(TypeError, match="copy it to the host"):
            x.numpy()


@pytest.mark.parametrize(
    ("family", "gating"), [("mixtral", "moe"), ("deepseek_v2", "attention"), ("gpt_oss", "moe")]
)
def test_a_mesh_on_the_device_gives_the_tokens_of_the_host(family: str, gating: str, tmp_path: Path) -> None:
    make_tiny(tmp_path, family=family, seed=3)
    sampled: dict[str, Any] = {"temperature": 0.8, "seed": 7, "top_p": 0.9, "frequency_penalty": 0.5}

    def tokens(device: str) -> list[list[int]]:
        with InProcessMesh(
            tmp_path,
            attention=1,
            experts=2,
            gating=gating,
            device=device,
            recorder=None if device == "cpu" else Again(),
        ) as mesh:
            return [
                answer.tokens
                for sampling in ({}, sampled)
                for answer in mesh.generate(PROMPTS, max_tokens=4, **sampling)
            ]

    with use_backend("torch"):
        assert tokens("cuda:0") == tokens("cpu")


SCRIPT = """
import json, sys
from janus_kernels.ops import use_backend
from janus_testing.inprocess import InProcessMesh
with use_backend(sys.argv[2]), InProcessMesh(sys.argv[1], attention=1, experts=2, timeout_s=500) as mesh:
    print(json.dumps([answer.tokens for answer in mesh.generate(%r, max_tokens=3)]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_kernels_for_gpus_carry_a_mesh(tmp_path: Path) -> None:
    """Interpreted, on CPU tensors: Triton wants to know before it is imported."""
    make_tiny(tmp_path, family="qwen3_moe", seed=3)

    def tokens(backend: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT % PROMPTS, tmp_path, backend], capture_output=True, text=True, timeout=550,
            env={**os.environ, "TRITON_INTERPRET": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    assert tokens("triton") == tokens("native")


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, part: str, **more: Any) -> None:
        with pytest.raises(ConfigError) as caught:
            checked_device(name, member=5, **more)
        assert part in str(caught.value), caught.value

    assert checked_device("cpu", member=5, quantize="int8") == "cpu"
    for name in ("tpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", "cpu:0", ""):
        refused(name, "unknown device")
    monkeypatch.setattr(torch.version, "cuda", None)
    refused("cuda", "without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("cuda:0", "finds no GPU")
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    refused("cuda:4", "cuda:0..cuda:3")
    refused("cuda:1", "no kernel for GPUs", quantize="int4")
    assert [checked_device(name, member=5) for name in ("cuda", "cuda:3")] == ["cuda:1", "cuda:3"]
    assert chosen == [1, 3]
