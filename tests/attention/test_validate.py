"""Bad requests to an attention worker: the error names field, value and range."""

from __future__ import annotations

from typing import Any

import pytest
from janus_attention.validate import Limits, submission
from janus_runtime.errors import InvalidArgument
from janus_wire.v1 import attention_pb2, common_pb2

LIMITS = Limits(vocab_size=100, context=32, eos_ids=(2, 3))


def request(
    prompt: list[int],
    resumed: list[int] | None = None,
    priority: int = 0,
    waited_ms: int = 0,
    **sampling: Any,
) -> Any:
    return attention_pb2.AttentionServiceGenerateRequest(
        prompt_token_ids=prompt,
        resumed_token_ids=resumed or [],
        priority=priority,
        waited_ms=waited_ms,
        sampling=common_pb2.SamplingParams(**sampling),
    )


def choices(*texts: str) -> Any:
    return common_pb2.Guide(choice=common_pb2.TextChoices(texts=texts))


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (request([], temperature=0), "prompt_token_ids"),
        (request([100], temperature=0), "prompt_token_ids"),
        (request([1], resumed=[400], temperature=0), "resumed_token_ids"),
        (request([1] * 32, temperature=0), "prompt_token_ids"),
        (request([1], resumed=[5] * 31, temperature=0), "prompt_token_ids"),
        (request([1], temperature=0, waited_ms=1 << 60), "waited_ms"),
        (request([1], temperature=-0.5), "sampling.temperature"),
        (request([1], temperature=float("nan")), "sampling.temperature"),
        (request([1], temperature=0, top_p=0), "sampling.top_p"),
        (request([1], temperature=0, top_p=1.5), "sampling.top_p"),
        (request([1], temperature=0, top_k=-2), "sampling.top_k"),
        (request([1], temperature=0, min_p=1.1), "sampling.min_p"),
        (request([1], temperature=0, max_tokens=0), "sampling.max_tokens"),
        (request([1], resumed=[5, 6], temperature=0, max_tokens=2), "sampling.max_tokens"),
        (request([1], temperature=0, logprobs=21), "sampling.logprobs"),
        (request([1], temperature=0, stop=["x"]), "sampling.stop"),
        (request([1], temperature=0, stop_token_ids=[100]), "sampling.stop_token_ids"),
        (request([1], temperature=1.0), "sampling.seed"),
        (request([1], temperature=0, repetition_penalty=0), "sampling.repetition_penalty"),
        (request([1], temperature=0, frequency_penalty=2.5), "sampling.frequency_penalty"),
        (request([1], temperature=0, presence_penalty=float("nan")), "sampling.presence_penalty"),
        (request([1], temperature=0, guide=common_pb2.Guide()), "sampling.guide"),
        (request([1], temperature=0, guide=common_pb2.Guide(json_object=False)), "sampling.guide"),
        (request([1], temperature=0, guide=common_pb2.Guide(regex="")), "sampling.guide.regex"),
        (
            request([1], temperature=0, guide=common_pb2.Guide(grammar="x" * 300_000)),
            "sampling.guide.grammar",
        ),
        (request([1], temperature=0, guide=choices()), "sampling.guide.choice"),
        (request([1], temperature=0, guide=choices("a", "")), "sampling.guide.choice"),
        (request([1], temperature=0, guide=choices(*["a"] * 1025)), "sampling.guide.choice"),
        (request([1], priority=1001, temperature=0), "priority"),
        (request([1], priority=-1001, temperature=0), "priority"),
        (request([1], temperature=0, logit_bias={100: 1}), "sampling.logit_bias"),
        (request([1], temperature=0, logit_bias={5: -100.5}), "sampling.logit_bias[5]"),
    ],
)
def test_refused(bad: Any, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        submission(bad, LIMITS)
    assert caught.value.field == field


def test_defaults_and_clamps() -> None:
    body = submission(request([1, 4], temperature=0, max_tokens=1000), LIMITS)
    assert body["sampling"]["max_tokens"] == 30
    assert body["sampling"]["stop_token_ids"] == [2, 3]
    assert (
        submission(request([1], temperature=0, ignore_eos=True), LIMITS)["sampling"]["stop_token_ids"] == []
    )
    assert submission(request([1], seed=7), LIMITS)["sampling"]["temperature"] == 1.0
