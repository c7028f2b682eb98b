from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from janus_models.fingerprint import fingerprint


def test_tells_models_apart(tiny: Callable[..., Path], tmp_path: Path) -> None:
    seen = {
        fingerprint(tiny(), "float32"),
        fingerprint(tiny(), "bfloat16"),
        fingerprint(tiny("mixtral", 1), "float32"),
        fingerprint(tiny("mixtral", 0, num_hidden_layers=2), "float32"),
        fingerprint(tiny("qwen3_moe"), "float32"),
    }
    assert len(seen) == 5, "another seed, size, family or dtype is another model"
    copy = Path(shutil.copytree(tiny(), tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))
    assert fingerprint(copy, "float32") == fingerprint(tiny(), "float32"), "where it lies does not matter"
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert fingerprint(copy, "float32") not in seen
