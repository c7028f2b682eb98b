"""From logits to tokens, one sequence at a time so that neighbours cannot matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from janus_kernels.ops import sample

from janus_attention.sequence import Sampling, Sequence


class BadLogits(ArithmeticError):
    """The logits are not finite: this request fails, the others go on."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token, and log probabilities when they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choose(seq: Sequence, logits_V: torch.Tensor) -> Chosen:
    """Next token of ``seq`` from fp32 logits [V].

    The draw depends on (seed, index in the stream) alone: the same request gives the same tokens whatever is
    in its batch, and goes on the same on another worker. Log probabilities are those of the raw logits.

    Raises BadLogits when the logits have NaN or no finite value.
    """
    sampling = seq.sampling
    top = float(logits_V.max())
    if top != top or top in (float("inf"), float("-inf")):
        raise BadLogits("the model gave logits that are not finite")
    allowed_V = _allowed(logits_V, sampling, seq.generated)
    if sampling.greedy:
        token = int(torch.argmax(allowed_V))
    else:
        token = sample(
            allowed_V, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p,
            min_p=sampling.min_p, seed=sampling.seed, index=seq.generated,
        )  # fmt: skip
    if sampling.logprobs is None:
        return Chosen(token)
    logprobs_V = torch.log_softmax(logits_V, dim=-1)
    best = torch.topk(logprobs_V, sampling.logprobs) if sampling.logprobs else None
    pairs = () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return Chosen(token, float(logprobs_V[token]), pairs)


def _allowed(logits_V: torch.Tensor, sampling: Sampling, generated: int) -> torch.Tensor:
    if generated >= sampling.min_tokens or not sampling.stop_token_ids:
        return logits_V
    masked_V = logits_V.clone()
    masked_V[sorted(sampling.stop_token_ids)] = float("-inf")
    return masked_V
