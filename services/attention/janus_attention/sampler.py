"""From logits to tokens, one sequence at a time so that neighbours cannot matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from janus_kernels.ops import add_bias, allow, forbid, penalize, sample

from janus_attention.sequence import Sequence


class BadLogits(ArithmeticError):
    """The logits are not finite, or none is left to choose from: this request fails, the others go on."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token, and log probabilities when they were asked for."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choose(seq: Sequence, logits_V: torch.Tensor) -> Chosen:
    """Next token of ``seq`` from fp32 logits [V].

    The draw depends on (seed, index in the stream) alone: the same request gives the same tokens whatever is
    in its batch, and goes on the same on another worker. In this order: penalties, bias, what is forbidden,
    temperature, top_k, min_p and top_p. Log probabilities are those of the raw logits.

    Raises BadLogits when the logits have NaN or no finite value, GuideError when the guide grew too complex.
    """
    sampling = seq.sampling
    top = float(logits_V.max())
    if top != top or top in (float("inf"), float("-inf")):
        raise BadLogits("the model gave logits that are not finite")
    allowed_V = _allowed(seq, logits_V)
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


def _allowed(seq: Sequence, logits_V: torch.Tensor) -> torch.Tensor:
    """What is drawn from: new logits where anything changes them."""
    sampling, device = seq.sampling, logits_V.device
    if sampling.penalized:
        ids_N, counts_N = seq.history.update(seq.tokens, seq.prompt)
        logits_V = penalize(
            logits_V, ids_N.to(device), counts_N.to(device), repetition=sampling.repetition_penalty,
            frequency=sampling.frequency_penalty, presence=sampling.presence_penalty,
        )  # fmt: skip
    if sampling.logit_bias:
        ids, values = zip(*sampling.logit_bias, strict=True)
        logits_V = add_bias(logits_V, torch.tensor(ids, device=device), torch.tensor(values, device=device))
    if seq.guide is not None:
        logits_V = allow(logits_V, seq.guide.allowed())
        if not _any_left(logits_V):
            raise BadLogits("the guide allows only tokens that the model gives no probability")
    if seq.generated < sampling.min_tokens and sampling.stop_token_ids:
        later_V = forbid(logits_V, torch.tensor(sorted(sampling.stop_token_ids), device=device))
        if seq.guide is None or _any_left(later_V):  # a guide that can only end, ends
            logits_V = later_V
    return logits_V


def _any_left(logits_V: torch.Tensor) -> bool:
    return bool(logits_V.max() > float("-inf"))
