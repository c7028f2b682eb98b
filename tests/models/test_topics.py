"""The checkpoint whose routing depends on the topic: it does, and text stays in its topic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from janus_models.local import LocalModel
from janus_testing.topics import Topical, make_topical

SHAPE = Topical(experts=32, top_k=4, layers=2, topics=4)


class Recording(LocalModel):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.counts = np.zeros((SHAPE.layers, SHAPE.experts))

    def route(self, moe_layer: int, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids_TK, weights_TK = super().route(moe_layer, x_TD)
        np.add.at(self.counts[moe_layer], ids_TK.numpy().ravel(), 1)
        return ids_TK, weights_TK


def test_routing_goes_by_topic_and_text_stays_in_it(tmp_path: Path) -> None:
    model = Recording(make_topical(tmp_path / "model", SHAPE))
    shares = []
    for topic in range(SHAPE.topics):
        model.counts[:] = 0
        prompts = [SHAPE.tokens_of(topic)[i::5] for i in range(5)]
        answers = model.generate(prompts, 1)
        assert {SHAPE.topic_of(t) for answer in answers for t in answer} == {topic}
        shares.append(model.counts / model.counts.sum(axis=1, keepdims=True))
    for layer in range(SHAPE.layers):
        for a in range(SHAPE.topics):
            busiest = np.sort(shares[a][layer])[::-1]
            assert 0.6 < busiest[:8].sum() < 0.99, "a few experts have most of the tokens, not all"
            for b in range(a):
                assert 0.5 * np.abs(shares[a][layer] - shares[b][layer]).sum() > 0.4, (
                    "topics share few experts"
                )
