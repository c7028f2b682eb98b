from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

REPOSITORY = Path(__file__).resolve().parents[2]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes minutes; run with -m slow")


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    import torch

    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_tiny, each set of parameters made once per session. Do not write into the result."""
    from janus_models.tiny import make_tiny

    made: dict[str, Path] = {}

    def make(family: str = "mixtral", seed: int = 0, **sizes: Any) -> Path:
        key = repr((family, seed, sorted(sizes.items())))
        if key not in made:
            made[key] = make_tiny(tmp_path_factory.mktemp(family), family, seed, **sizes)
        return made[key]

    return make


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    """The demo checkpoint, where `make demo` keeps it; built there when absent (about 20 s)."""
    from janus_models.demo import build_demo

    return build_demo(REPOSITORY / ".janus" / "demo")
