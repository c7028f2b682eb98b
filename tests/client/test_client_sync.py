from __future__ import annotations

import doctest
from typing import Any

import grpc
import janus_client
import pytest
from janus_client import JanusClient, Message, Usage
from janus_client import errors as client_errors
from janus_runtime import errors as server_errors

pytestmark = pytest.mark.timeout(30)


def test_the_documented_example_runs(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = grpc.insecure_channel
    monkeypatch.setattr(grpc, "insecure_channel", lambda target, **more: real(gateway.address, **more))
    results = doctest.testmod(janus_client, verbose=False)
    assert results.attempted >= 4
    assert results.failed == 0


def test_chunks_carry_what_the_wire_does(gateway: Any) -> None:
    with JanusClient(gateway.address) as client:
        chunks = list(client.generate("Hello", logprobs=1, request_id="mine"))
    assert "".join(c.text for c in chunks) == "Hello from a fake gateway."
    assert chunks[0].trace_id == "ab" * 16
    assert {c.request_id for c in chunks} == {"mine"}
    assert [c.token_ids for c in chunks] == [(i,) for i in range(6)]
    assert chunks[2].logprobs[0].token_id == 2
    assert chunks[2].logprobs[0].top[0].logprob == -0.5
    assert [c.finish_reason for c in chunks] == [None] * 5 + ["stop"]
    assert chunks[-1].usage == Usage(prompt_tokens=3, completion_tokens=6)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 9
    assert chunks[-1].stop_sequence == "!"


def test_result_puts_the_chunks_together(gateway: Any) -> None:
    with JanusClient(gateway.address) as client:
        whole = client.chat("Hi", logprobs=0).result()
    assert (whole.text, whole.token_ids, whole.finish_reason) == (
        "Hello from a fake gateway.",
        tuple(range(6)),
        "stop",
    )
    assert len(whole.logprobs) == 6
    assert whole.trace_id == "ab" * 16


def test_options_reach_the_wire_and_unset_ones_stay_unset(gateway: Any) -> None:
    with JanusClient(gateway.address) as client:
        client.generate(
            [1, 2],
            max_tokens=5,
            temperature=0.0,
            top_p=0.5,
            top_k=-1,
            min_p=0.25,
            seed=2**64 - 1,
            min_tokens=2,
            ignore_eos=True,
            stop=["a", "b"],
            stop_token_ids=[9],
            model="tiny",
        ).result()
        client.chat(
            [Message(role="system", content="s"), {"role": "user", "content": "u"}], stop="x"
        ).result()
    first, second = gateway.requests
    params = first.sampling
    assert list(first.prompt_tokens.ids) == [1, 2]
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k) == (5, 0.0, 0.5, -1)
    assert (params.min_p, params.seed, params.min_tokens, params.ignore_eos) == (0.25, 2**64 - 1, 2, True)
    assert (list(params.stop), list(params.stop_token_ids), first.model) == (["a", "b"], [9], "tiny")
    assert [(m.role, m.content) for m in second.chat.messages] == [("system", "s"), ("user", "u")]
    assert list(second.sampling.stop) == ["x"]
    for name in ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens", "logprobs"):
        assert not second.sampling.HasField(name)


def test_counts_and_model_info(gateway: Any) -> None:
    with JanusClient(gateway.address) as client:
        assert client.count_tokens("Hello") == 7
        assert client.count_chat_tokens("Hello") == 7
        info = client.model_info()
    assert gateway.requests[0].prompt == "Hello"
    assert gateway.requests[1].chat.messages[0].role == "user"
    assert (info.model, info.context_length, info.fingerprint) == ("tiny", 256, "abcd")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (server_errors.InvalidArgument, client_errors.InvalidRequestError),
        (server_errors.FailedPrecondition, client_errors.InvalidRequestError),
        (server_errors.Unauthenticated, client_errors.AuthenticationError),
        (server_errors.NotFound, client_errors.NotFoundError),
        (server_errors.ResourceExhausted, client_errors.RateLimitError),
        (server_errors.Unavailable, client_errors.UnavailableError),
        (server_errors.DeadlineExceeded, client_errors.DeadlineError),
        (server_errors.Cancelled, client_errors.RequestCancelledError),
        (server_errors.Unimplemented, client_errors.UnsupportedError),
        (server_errors.Internal, client_errors.ServerError),
    ],
)
def test_errors_have_their_class_and_details(gateway: Any, raised: Any, expected: Any) -> None:
    gateway.error = raised(
        "is wrong",
        field="sampling.top_p",
        value=7,
        allowed="(0, 1]",
        reason="TOO_MUCH",
        next_step="Less.",
        retry_after_s=1.5,
    )
    with JanusClient(gateway.address) as client:
        calls: list[Any] = [
            lambda: list(client.generate("x")),
            lambda: client.count_tokens("x"),
            client.model_info,
        ]
        for call in calls:
            with pytest.raises(expected) as caught:
                call()
            error = caught.value
            assert isinstance(error, client_errors.JanusError)
            assert (error.field, error.allowed, error.reason) == ("sampling.top_p", "(0, 1]", "TOO_MUCH")
            assert (error.next_step, error.retry_after_s) == ("Less.", 1.5)
            assert error.code == raised.code.name
            assert "sampling.top_p" in str(error)


@pytest.mark.parametrize(
    ("prompt", "options", "field"),
    [
        ("x", {"max_tokens": -1}, "max_tokens"),
        ("x", {"seed": 2**64}, "seed"),
        ("x", {"temperature": "warm"}, "temperature"),
        ("x", {"stop": [1]}, "stop"),
        ("x", {"stop_token_ids": [-1]}, "stop_token_ids"),
        ([1, -2], {}, "prompt_tokens"),
    ],
)
def test_what_does_not_fit_the_wire_names_the_field(
    gateway: Any, prompt: Any, options: Any, field: str
) -> None:
    with JanusClient(gateway.address) as client, pytest.raises(client_errors.InvalidRequestError) as caught:
        client.generate(prompt, **options)
    assert caught.value.field == field
    assert not gateway.requests


def test_a_message_without_content_is_named(gateway: Any) -> None:
    with JanusClient(gateway.address) as client, pytest.raises(client_errors.InvalidRequestError) as caught:
        client.chat([{"role": "user"}])
    assert caught.value.field == "messages[0].content"


def test_the_key_and_extra_metadata_go_with_every_call(gateway: Any) -> None:
    with JanusClient(gateway.address, api_key="sesame", metadata={"traceparent": "00-aa-bb-01"}) as client:
        client.generate("x").result()
        client.count_tokens("x")
        client.model_info()
    assert len(gateway.metadata) == 3
    for seen in gateway.metadata:
        assert (seen["authorization"], seen["traceparent"]) == ("Bearer sesame", "00-aa-bb-01")


def test_a_deadline_is_kept(gateway: Any) -> None:
    gateway.pause_s = 0.5
    with JanusClient(gateway.address, timeout_s=0.2) as client, pytest.raises(client_errors.DeadlineError):
        client.generate("x").result()
    with JanusClient(gateway.address) as client, pytest.raises(client_errors.DeadlineError):
        client.generate("x", timeout_s=0.2).result()


def test_leaving_a_stream_cancels_it(gateway: Any) -> None:
    gateway.pause_s = 0.1
    with JanusClient(gateway.address) as client:
        with client.generate("x") as stream:
            assert next(stream).text == "Hello"
        assert gateway.cancelled.wait(5)
        with pytest.raises(client_errors.RequestCancelledError):
            next(stream)


def test_nobody_there() -> None:
    with JanusClient("127.0.0.1:1") as client, pytest.raises(client_errors.UnavailableError):
        client.model_info()


def test_penalties_bias_and_n_reach_the_wire(gateway: Any) -> None:
    with JanusClient(gateway.address) as client:
        options: dict[str, Any] = {
            "repetition_penalty": 1.25, "frequency_penalty": -0.5, "presence_penalty": 2, "n": 3, "priority": -2,
            "logit_bias": {7: -100, 2: 1.5},
        }  # fmt: skip
        client.generate("x", **options).result()
        for name, bad in (
            ("logit_bias", {"a": 1}),
            ("logit_bias", 5),
            ("logit_bias", {-1: 0}),
            ("n", "two"),
            ("priority", 2**31),
        ):
            with pytest.raises(janus_client.InvalidRequestError) as caught:
                client.generate("x", **{name: bad})
            assert caught.value.field == name
    (request,) = gateway.requests
    params = request.sampling
    assert (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) == (1.25, -0.5, 2.0)
    assert dict(params.logit_bias) == {7: -100.0, 2: 1.5}
    assert (request.n, request.priority) == (3, -2)


def test_answers_are_told_apart_by_their_index() -> None:
    from janus_client import Chunk
    from janus_client._convert import completions

    usage = Usage(prompt_tokens=2, completion_tokens=4)
    chunks = [
        Chunk(text="a", index=0, token_ids=(1,)),
        Chunk(text="x", index=1, token_ids=(5,)),
        Chunk(text="y", index=1, token_ids=(6,), finish_reason="length"),
        Chunk(text="b", index=0, token_ids=(2,), finish_reason="stop", usage=usage),
    ]
    first, second = completions(chunks)
    assert (first.text, first.token_ids, first.finish_reason) == ("ab", (1, 2), "stop")
    assert (second.text, second.token_ids, second.finish_reason) == ("xy", (5, 6), "length")
    assert first.usage == second.usage == usage


def test_guides_reach_the_wire(gateway: Any) -> None:
    schema = {"type": "object"}
    with JanusClient(gateway.address) as client:
        for options in (
            {"json_object": True}, {"json_schema": schema}, {"json_schema": '{"type": "object"}'},
            {"regex": "a+"}, {"grammar": 'start: "a"'}, {"choice": ["a", "b"]}, {"json_object": False},
        ):  # fmt: skip
            client.generate("x", **options).result()  # type: ignore[arg-type]
        for field, options in (
            ("choice", {"regex": "a", "choice": ["b"]}), ("regex", {"regex": 5}),
            ("json_schema", {"json_schema": {"a": object()}}), ("choice", {"choice": [5]}),
        ):  # fmt: skip
            with pytest.raises(janus_client.InvalidRequestError) as caught:
                client.generate("x", **options)  # type: ignore[arg-type]
            assert caught.value.field == field
    guides = [request.sampling.guide for request in gateway.requests]
    assert [g.WhichOneof("kind") for g in guides] == [
        "json_object", "json_schema", "json_schema", "regex", "grammar", "choice", None,
    ]  # fmt: skip
    assert guides[1].json_schema == guides[2].json_schema == '{"type": "object"}'
    assert list(guides[5].choice.texts) == ["a", "b"]
