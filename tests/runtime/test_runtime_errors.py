from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from janus_runtime import errors
from janus_runtime.errors import (
    DETAILS_KEY,
    Internal,
    InvalidArgument,
    JanusError,
    Unavailable,
    from_rpc_error,
)


class FakeRpcError(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str | None, metadata: object) -> None:
        self._parts = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._parts[0]

    def details(self) -> str | None:
        return self._parts[1]

    def trailing_metadata(self) -> object:
        return self._parts[2]


def over_the_wire(error: JanusError) -> JanusError:
    return from_rpc_error(FakeRpcError(error.code, str(error), error.trailing_metadata()))


def test_text_names_field_value_range_and_next_step() -> None:
    error = InvalidArgument(
        "out of range", field="max_tokens", value=0, allowed="1..4096", next_step="Ask for one."
    )
    assert str(error) == "max_tokens: out of range (got 0); allowed: 1..4096. Ask for one."


def test_long_values_are_cut() -> None:
    assert len(str(InvalidArgument("bad", field="prompt", value="x" * 100_000))) < 300


def test_details_survive_the_wire() -> None:
    sent = InvalidArgument("bad", field="f", value=7, allowed="1..2", reason="TOO_BIG", next_step="Shrink.")
    got = over_the_wire(sent)
    assert type(got) is InvalidArgument
    assert (got.field, got.value, got.allowed, got.reason, got.next_step) == (
        "f",
        "7",
        "1..2",
        "TOO_BIG",
        "Shrink.",
    )
    assert str(sent) in str(got)
    assert over_the_wire(Unavailable("busy", retry_after_s=1.25)).retry_after_s == 1.25


def test_status_proto_has_google_rpc_details() -> None:
    status = InvalidArgument("bad", field="f").to_proto()
    kinds = [any_.type_url.rpartition(".")[2] for any_ in status.details]
    assert kinds == ["ErrorInfo", "BadRequest"]
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert info.domain == "janus"
    assert InvalidArgument("bad").to_status().code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_becomes_an_error(code: grpc.StatusCode) -> None:
    got = from_rpc_error(FakeRpcError(code, None, None))
    assert str(got)
    assert got.code is code or isinstance(got, Internal)


def test_malformed_details_lose_nothing() -> None:
    got = from_rpc_error(FakeRpcError(grpc.StatusCode.UNAVAILABLE, "gone", ((DETAILS_KEY, b"\xff\xff\xff"),)))
    assert isinstance(got, Unavailable) and str(got) == "gone"


def test_every_class_has_its_code() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, JanusError)]
    assert len(classes) > 10
    for cls in classes:
        if cls is not JanusError:
            assert (
                status_pb2.Status.FromString(cls("x").to_proto().SerializeToString()).code
                == cls.code.value[0]
            )
