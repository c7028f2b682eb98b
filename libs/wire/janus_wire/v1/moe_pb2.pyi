from janus_wire.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LayerExperts(_message.Message):
    __slots__ = ("layer", "experts")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    layer: int
    experts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layer: _Optional[int] = ..., experts: _Optional[_Iterable[int]] = ...) -> None: ...

class LoadExpertsRequest(_message.Message):
    __slots__ = ("layers",)
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[LayerExperts]
    def __init__(self, layers: _Optional[_Iterable[_Union[LayerExperts, _Mapping]]] = ...) -> None: ...

class LoadExpertsResponse(_message.Message):
    __slots__ = ("loaded", "bytes")
    LOADED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    loaded: int
    bytes: int
    def __init__(self, loaded: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...

class UnloadExpertsRequest(_message.Message):
    __slots__ = ("layers",)
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[LayerExperts]
    def __init__(self, layers: _Optional[_Iterable[_Union[LayerExperts, _Mapping]]] = ...) -> None: ...

class UnloadExpertsResponse(_message.Message):
    __slots__ = ("unloaded",)
    UNLOADED_FIELD_NUMBER: _ClassVar[int]
    unloaded: int
    def __init__(self, unloaded: _Optional[int] = ...) -> None: ...

class ExpertServiceDrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExpertServiceDrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExpertServiceGetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExpertServiceGetStatsResponse(_message.Message):
    __slots__ = ("worker", "epoch", "layout_version", "steps", "layer_passes", "tokens", "expert_calls", "expert_tokens", "a_max_sum", "exchange_bytes_sent", "exchange_bytes_received", "moe_seconds", "schedule_seconds", "wait_seconds", "experts_hosted", "expert_bytes", "rejected_messages", "transport", "layer_groups", "schedule_latency", "exchange_messages_sent", "internode_messages_sent", "internode_bytes_sent")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LAYER_PASSES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_CALLS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    A_MAX_SUM_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    MOE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_HOSTED_FIELD_NUMBER: _ClassVar[int]
    EXPERT_BYTES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    LAYER_GROUPS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_LATENCY_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_MESSAGES_SENT_FIELD_NUMBER: _ClassVar[int]
    INTERNODE_MESSAGES_SENT_FIELD_NUMBER: _ClassVar[int]
    INTERNODE_BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    worker: _common_pb2.Worker
    epoch: int
    layout_version: int
    steps: int
    layer_passes: int
    tokens: int
    expert_calls: int
    expert_tokens: int
    a_max_sum: int
    exchange_bytes_sent: int
    exchange_bytes_received: int
    moe_seconds: float
    schedule_seconds: float
    wait_seconds: float
    experts_hosted: int
    expert_bytes: int
    rejected_messages: int
    transport: str
    layer_groups: _containers.RepeatedCompositeFieldContainer[LayerGroupStats]
    schedule_latency: _common_pb2.Histogram
    exchange_messages_sent: int
    internode_messages_sent: int
    internode_bytes_sent: int
    def __init__(self, worker: _Optional[_Union[_common_pb2.Worker, _Mapping]] = ..., epoch: _Optional[int] = ..., layout_version: _Optional[int] = ..., steps: _Optional[int] = ..., layer_passes: _Optional[int] = ..., tokens: _Optional[int] = ..., expert_calls: _Optional[int] = ..., expert_tokens: _Optional[int] = ..., a_max_sum: _Optional[int] = ..., exchange_bytes_sent: _Optional[int] = ..., exchange_bytes_received: _Optional[int] = ..., moe_seconds: _Optional[float] = ..., schedule_seconds: _Optional[float] = ..., wait_seconds: _Optional[float] = ..., experts_hosted: _Optional[int] = ..., expert_bytes: _Optional[int] = ..., rejected_messages: _Optional[int] = ..., transport: _Optional[str] = ..., layer_groups: _Optional[_Iterable[_Union[LayerGroupStats, _Mapping]]] = ..., schedule_latency: _Optional[_Union[_common_pb2.Histogram, _Mapping]] = ..., exchange_messages_sent: _Optional[int] = ..., internode_messages_sent: _Optional[int] = ..., internode_bytes_sent: _Optional[int] = ...) -> None: ...

class LayerGroupStats(_message.Message):
    __slots__ = ("first_layer", "last_layer", "passes", "a_max_sum", "a_max_bound_sum", "expert_tokens")
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    LAST_LAYER_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    A_MAX_SUM_FIELD_NUMBER: _ClassVar[int]
    A_MAX_BOUND_SUM_FIELD_NUMBER: _ClassVar[int]
    EXPERT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    first_layer: int
    last_layer: int
    passes: int
    a_max_sum: int
    a_max_bound_sum: int
    expert_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, first_layer: _Optional[int] = ..., last_layer: _Optional[int] = ..., passes: _Optional[int] = ..., a_max_sum: _Optional[int] = ..., a_max_bound_sum: _Optional[int] = ..., expert_tokens: _Optional[_Iterable[int]] = ...) -> None: ...
