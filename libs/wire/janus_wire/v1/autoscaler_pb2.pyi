from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Objective(_message.Message):
    __slots__ = ("tpot_ms", "min_attention", "max_attention", "min_moe", "max_moe")
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    MIN_MOE_FIELD_NUMBER: _ClassVar[int]
    MAX_MOE_FIELD_NUMBER: _ClassVar[int]
    tpot_ms: float
    min_attention: int
    max_attention: int
    min_moe: int
    max_moe: int
    def __init__(self, tpot_ms: _Optional[float] = ..., min_attention: _Optional[int] = ..., max_attention: _Optional[int] = ..., min_moe: _Optional[int] = ..., max_moe: _Optional[int] = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("window_seconds", "requests_per_second", "prompt_tokens_per_second", "output_tokens_per_second", "running", "waiting", "step_ms_mean", "attention_ms_mean", "exchange_ms_mean", "moe_ms_mean", "a_max_mean")
    WINDOW_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_MEAN_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_MS_MEAN_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_MS_MEAN_FIELD_NUMBER: _ClassVar[int]
    MOE_MS_MEAN_FIELD_NUMBER: _ClassVar[int]
    A_MAX_MEAN_FIELD_NUMBER: _ClassVar[int]
    window_seconds: float
    requests_per_second: float
    prompt_tokens_per_second: float
    output_tokens_per_second: float
    running: int
    waiting: int
    step_ms_mean: float
    attention_ms_mean: float
    exchange_ms_mean: float
    moe_ms_mean: float
    a_max_mean: float
    def __init__(self, window_seconds: _Optional[float] = ..., requests_per_second: _Optional[float] = ..., prompt_tokens_per_second: _Optional[float] = ..., output_tokens_per_second: _Optional[float] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., step_ms_mean: _Optional[float] = ..., attention_ms_mean: _Optional[float] = ..., exchange_ms_mean: _Optional[float] = ..., moe_ms_mean: _Optional[float] = ..., a_max_mean: _Optional[float] = ...) -> None: ...

class GetPlanRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPlanResponse(_message.Message):
    __slots__ = ("objective", "observation", "current_attention", "current_moe", "planned_attention", "planned_moe", "status")
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    CURRENT_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    CURRENT_MOE_FIELD_NUMBER: _ClassVar[int]
    PLANNED_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    PLANNED_MOE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    objective: Objective
    observation: Observation
    current_attention: int
    current_moe: int
    planned_attention: int
    planned_moe: int
    status: str
    def __init__(self, objective: _Optional[_Union[Objective, _Mapping]] = ..., observation: _Optional[_Union[Observation, _Mapping]] = ..., current_attention: _Optional[int] = ..., current_moe: _Optional[int] = ..., planned_attention: _Optional[int] = ..., planned_moe: _Optional[int] = ..., status: _Optional[str] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("attention", "moe", "feasible", "predicted_tpot_ms", "reason")
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    MOE_FIELD_NUMBER: _ClassVar[int]
    FEASIBLE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    attention: int
    moe: int
    feasible: bool
    predicted_tpot_ms: float
    reason: str
    def __init__(self, attention: _Optional[int] = ..., moe: _Optional[int] = ..., feasible: _Optional[bool] = ..., predicted_tpot_ms: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("candidates", "status")
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    status: str
    def __init__(self, candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., status: _Optional[str] = ...) -> None: ...

class SetObjectiveRequest(_message.Message):
    __slots__ = ("objective",)
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    objective: Objective
    def __init__(self, objective: _Optional[_Union[Objective, _Mapping]] = ...) -> None: ...

class SetObjectiveResponse(_message.Message):
    __slots__ = ("objective",)
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    objective: Objective
    def __init__(self, objective: _Optional[_Union[Objective, _Mapping]] = ...) -> None: ...
