from janus_wire.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetCohortRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetCohortResponse(_message.Message):
    __slots__ = ("cohort",)
    COHORT_FIELD_NUMBER: _ClassVar[int]
    cohort: _common_pb2.Cohort
    def __init__(self, cohort: _Optional[_Union[_common_pb2.Cohort, _Mapping]] = ...) -> None: ...

class WatchCohortRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchCohortResponse(_message.Message):
    __slots__ = ("cohort",)
    COHORT_FIELD_NUMBER: _ClassVar[int]
    cohort: _common_pb2.Cohort
    def __init__(self, cohort: _Optional[_Union[_common_pb2.Cohort, _Mapping]] = ...) -> None: ...

class GetLayoutRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...

class GetLayoutResponse(_message.Message):
    __slots__ = ("layout",)
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    layout: _common_pb2.Layout
    def __init__(self, layout: _Optional[_Union[_common_pb2.Layout, _Mapping]] = ...) -> None: ...

class ScheduleRequest(_message.Message):
    __slots__ = ("topk_ids", "experts_per_token", "placement", "num_experts", "policy", "slots")
    TOPK_IDS_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    NUM_EXPERTS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    topk_ids: _containers.RepeatedScalarFieldContainer[int]
    experts_per_token: int
    placement: _common_pb2.LayerPlacement
    num_experts: int
    policy: _common_pb2.SchedulingPolicy
    slots: int
    def __init__(self, topk_ids: _Optional[_Iterable[int]] = ..., experts_per_token: _Optional[int] = ..., placement: _Optional[_Union[_common_pb2.LayerPlacement, _Mapping]] = ..., num_experts: _Optional[int] = ..., policy: _Optional[_Union[_common_pb2.SchedulingPolicy, str]] = ..., slots: _Optional[int] = ...) -> None: ...

class ScheduleResponse(_message.Message):
    __slots__ = ("replica_ids", "instance_load", "a_max", "slots", "digest")
    REPLICA_IDS_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_LOAD_FIELD_NUMBER: _ClassVar[int]
    A_MAX_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    replica_ids: _containers.RepeatedScalarFieldContainer[int]
    instance_load: _containers.RepeatedScalarFieldContainer[int]
    a_max: int
    slots: int
    digest: int
    def __init__(self, replica_ids: _Optional[_Iterable[int]] = ..., instance_load: _Optional[_Iterable[int]] = ..., a_max: _Optional[int] = ..., slots: _Optional[int] = ..., digest: _Optional[int] = ...) -> None: ...

class RebalanceRequest(_message.Message):
    __slots__ = ("dry_run", "placement")
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    dry_run: bool
    placement: _containers.RepeatedCompositeFieldContainer[_common_pb2.LayerPlacement]
    def __init__(self, dry_run: _Optional[bool] = ..., placement: _Optional[_Iterable[_Union[_common_pb2.LayerPlacement, _Mapping]]] = ...) -> None: ...

class RebalanceResponse(_message.Message):
    __slots__ = ("changed", "layout_version", "reason", "layers", "replicas_loaded")
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_LOADED_FIELD_NUMBER: _ClassVar[int]
    changed: bool
    layout_version: int
    reason: str
    layers: _containers.RepeatedCompositeFieldContainer[LayerVerdict]
    replicas_loaded: int
    def __init__(self, changed: _Optional[bool] = ..., layout_version: _Optional[int] = ..., reason: _Optional[str] = ..., layers: _Optional[_Iterable[_Union[LayerVerdict, _Mapping]]] = ..., replicas_loaded: _Optional[int] = ...) -> None: ...

class LayerVerdict(_message.Message):
    __slots__ = ("layer", "a_max_before", "a_max_after", "lower_bound", "moves", "reason", "replicas", "proposed")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    A_MAX_BEFORE_FIELD_NUMBER: _ClassVar[int]
    A_MAX_AFTER_FIELD_NUMBER: _ClassVar[int]
    LOWER_BOUND_FIELD_NUMBER: _ClassVar[int]
    MOVES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    PROPOSED_FIELD_NUMBER: _ClassVar[int]
    layer: int
    a_max_before: float
    a_max_after: float
    lower_bound: float
    moves: bool
    reason: str
    replicas: int
    proposed: _common_pb2.LayerPlacement
    def __init__(self, layer: _Optional[int] = ..., a_max_before: _Optional[float] = ..., a_max_after: _Optional[float] = ..., lower_bound: _Optional[float] = ..., moves: _Optional[bool] = ..., reason: _Optional[str] = ..., replicas: _Optional[int] = ..., proposed: _Optional[_Union[_common_pb2.LayerPlacement, _Mapping]] = ...) -> None: ...
