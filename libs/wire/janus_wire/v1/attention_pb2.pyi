from janus_wire.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttentionServiceGenerateRequest(_message.Message):
    __slots__ = ("request_id", "prompt_token_ids", "resumed_token_ids", "sampling", "return_logits", "priority", "waited_ms", "kv_member")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RESUMED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    RETURN_LOGITS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    WAITED_MS_FIELD_NUMBER: _ClassVar[int]
    KV_MEMBER_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    resumed_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: _common_pb2.SamplingParams
    return_logits: bool
    priority: int
    waited_ms: int
    kv_member: int
    def __init__(self, request_id: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., resumed_token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., return_logits: _Optional[bool] = ..., priority: _Optional[int] = ..., waited_ms: _Optional[int] = ..., kv_member: _Optional[int] = ...) -> None: ...

class AttentionServiceGenerateResponse(_message.Message):
    __slots__ = ("token_ids", "first_index", "finish_reason", "logprobs", "logits", "queue_us")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    first_index: int
    finish_reason: _common_pb2.FinishReason
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    logits: bytes
    queue_us: int
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., first_index: _Optional[int] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ..., logits: _Optional[bytes] = ..., queue_us: _Optional[int] = ...) -> None: ...

class AttentionServiceHandKvRequest(_message.Message):
    __slots__ = ("number", "member", "transport_address", "block_names")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_NAMES_FIELD_NUMBER: _ClassVar[int]
    number: int
    member: int
    transport_address: str
    block_names: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, number: _Optional[int] = ..., member: _Optional[int] = ..., transport_address: _Optional[str] = ..., block_names: _Optional[_Iterable[bytes]] = ...) -> None: ...

class AttentionServiceHandKvResponse(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    def __init__(self, blocks: _Optional[int] = ...) -> None: ...

class AttentionServiceDrainRequest(_message.Message):
    __slots__ = ("hand_over",)
    HAND_OVER_FIELD_NUMBER: _ClassVar[int]
    hand_over: bool
    def __init__(self, hand_over: _Optional[bool] = ...) -> None: ...

class AttentionServiceDrainResponse(_message.Message):
    __slots__ = ("sequences_left",)
    SEQUENCES_LEFT_FIELD_NUMBER: _ClassVar[int]
    sequences_left: int
    def __init__(self, sequences_left: _Optional[int] = ...) -> None: ...

class AttentionServiceGetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AttentionServiceGetStatsResponse(_message.Message):
    __slots__ = ("worker", "epoch", "steps", "prompt_tokens", "generated_tokens", "running", "waiting", "kv_tokens_used", "kv_tokens_capacity", "exchange_bytes_sent", "exchange_bytes_received", "attention_seconds", "exchange_seconds", "step_seconds", "rejected_messages", "digest_mismatches", "transport", "prefix_hit_tokens", "prefix_lookup_tokens", "preemptions", "queue_seconds", "requests_started", "exchange_latency", "moe_seconds", "exchange_messages_sent", "internode_messages_sent", "internode_bytes_sent", "kv_moved_tokens", "kv_kept_tokens", "kv_recovered_tokens", "kv_shelf_seconds")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_USED_FIELD_NUMBER: _ClassVar[int]
    KV_TOKENS_CAPACITY_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REJECTED_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_MISMATCHES_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_LOOKUP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_STARTED_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_LATENCY_FIELD_NUMBER: _ClassVar[int]
    MOE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_MESSAGES_SENT_FIELD_NUMBER: _ClassVar[int]
    INTERNODE_MESSAGES_SENT_FIELD_NUMBER: _ClassVar[int]
    INTERNODE_BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    KV_MOVED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_KEPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_RECOVERED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_SHELF_SECONDS_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Worker
    epoch: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    running: int
    waiting: int
    kv_tokens_used: int
    kv_tokens_capacity: int
    exchange_bytes_sent: int
    exchange_bytes_received: int
    attention_seconds: float
    exchange_seconds: float
    step_seconds: float
    rejected_messages: int
    digest_mismatches: int
    transport: str
    prefix_hit_tokens: int
    prefix_lookup_tokens: int
    preemptions: int
    queue_seconds: float
    requests_started: int
    exchange_latency: _common_pb2.Histogram
    moe_seconds: float
    exchange_messages_sent: int
    internode_messages_sent: int
    internode_bytes_sent: int
    kv_moved_tokens: int
    kv_kept_tokens: int
    kv_recovered_tokens: int
    kv_shelf_seconds: float
    def __init__(self, worker: _Optional[_Union[_common_pb2.Worker, _Mapping]] = ..., epoch: _Optional[int] = ..., steps: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., kv_tokens_used: _Optional[int] = ..., kv_tokens_capacity: _Optional[int] = ..., exchange_bytes_sent: _Optional[int] = ..., exchange_bytes_received: _Optional[int] = ..., attention_seconds: _Optional[float] = ..., exchange_seconds: _Optional[float] = ..., step_seconds: _Optional[float] = ..., rejected_messages: _Optional[int] = ..., digest_mismatches: _Optional[int] = ..., transport: _Optional[str] = ..., prefix_hit_tokens: _Optional[int] = ..., prefix_lookup_tokens: _Optional[int] = ..., preemptions: _Optional[int] = ..., queue_seconds: _Optional[float] = ..., requests_started: _Optional[int] = ..., exchange_latency: _Optional[_Union[_common_pb2.Histogram, _Mapping]] = ..., moe_seconds: _Optional[float] = ..., exchange_messages_sent: _Optional[int] = ..., internode_messages_sent: _Optional[int] = ..., internode_bytes_sent: _Optional[int] = ..., kv_moved_tokens: _Optional[int] = ..., kv_kept_tokens: _Optional[int] = ..., kv_recovered_tokens: _Optional[int] = ..., kv_shelf_seconds: _Optional[float] = ...) -> None: ...
