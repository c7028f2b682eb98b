from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Objective(_message.Message):
    __slots__ = ("tpot_ms", "min_attention", "max_attention", "min_moe", "max_moe", "ttft_ms")
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    MIN_MOE_FIELD_NUMBER: _ClassVar[int]
    MAX_MOE_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    tpot_ms: float
    min_attention: int
    max_attention: int
    min_moe: int
    max_moe: int
    ttft_ms: float
    def __init__(self, tpot_ms: _Optional[float] = ..., min_attention: _Optional[int] = ..., max_attention: _Optional[int] = ..., min_moe: _Optional[int] = ..., max_moe: _Optional[int] = ..., ttft_ms: _Optional[float] = ...) -> None: ...

class Observation(_message.Message):
    __slots__ = ("window_seconds", "requests_per_second", "prompt_tokens_per_second", "output_tokens_per_second", "running", "waiting", "step_ms_mean", "attention_ms_mean", "exchange_ms_mean", "moe_ms_mean", "a_max_mean", "tpot_ms_p95", "output_tokens_per_request", "recent_requests_per_second")
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
    TPOT_MS_P95_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_PER_REQUEST_FIELD_NUMBER: _ClassVar[int]
    RECENT_REQUESTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
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
    tpot_ms_p95: float
    output_tokens_per_request: float
    recent_requests_per_second: float
    def __init__(self, window_seconds: _Optional[float] = ..., requests_per_second: _Optional[float] = ..., prompt_tokens_per_second: _Optional[float] = ..., output_tokens_per_second: _Optional[float] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., step_ms_mean: _Optional[float] = ..., attention_ms_mean: _Optional[float] = ..., exchange_ms_mean: _Optional[float] = ..., moe_ms_mean: _Optional[float] = ..., a_max_mean: _Optional[float] = ..., tpot_ms_p95: _Optional[float] = ..., output_tokens_per_request: _Optional[float] = ..., recent_requests_per_second: _Optional[float] = ...) -> None: ...

class Demand(_message.Message):
    __slots__ = ("tokens_per_second", "prompt_tokens_per_second", "context", "prompt_length", "backlog_tokens")
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_TOKENS_FIELD_NUMBER: _ClassVar[int]
    tokens_per_second: float
    prompt_tokens_per_second: float
    context: float
    prompt_length: float
    backlog_tokens: float
    def __init__(self, tokens_per_second: _Optional[float] = ..., prompt_tokens_per_second: _Optional[float] = ..., context: _Optional[float] = ..., prompt_length: _Optional[float] = ..., backlog_tokens: _Optional[float] = ...) -> None: ...

class Coefficient(_message.Message):
    __slots__ = ("name", "value", "std", "source")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    std: float
    source: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., std: _Optional[float] = ..., source: _Optional[str] = ...) -> None: ...

class GetPlanRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPlanResponse(_message.Message):
    __slots__ = ("objective", "observation", "current_attention", "current_moe", "planned_attention", "planned_moe", "status", "mode", "target_attention", "target_moe", "demand", "coefficients", "model_error", "objective_met")
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    CURRENT_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    CURRENT_MOE_FIELD_NUMBER: _ClassVar[int]
    PLANNED_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    PLANNED_MOE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TARGET_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_MOE_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_ERROR_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_MET_FIELD_NUMBER: _ClassVar[int]
    objective: Objective
    observation: Observation
    current_attention: int
    current_moe: int
    planned_attention: int
    planned_moe: int
    status: str
    mode: str
    target_attention: int
    target_moe: int
    demand: Demand
    coefficients: _containers.RepeatedCompositeFieldContainer[Coefficient]
    model_error: float
    objective_met: bool
    def __init__(self, objective: _Optional[_Union[Objective, _Mapping]] = ..., observation: _Optional[_Union[Observation, _Mapping]] = ..., current_attention: _Optional[int] = ..., current_moe: _Optional[int] = ..., planned_attention: _Optional[int] = ..., planned_moe: _Optional[int] = ..., status: _Optional[str] = ..., mode: _Optional[str] = ..., target_attention: _Optional[int] = ..., target_moe: _Optional[int] = ..., demand: _Optional[_Union[Demand, _Mapping]] = ..., coefficients: _Optional[_Iterable[_Union[Coefficient, _Mapping]]] = ..., model_error: _Optional[float] = ..., objective_met: _Optional[bool] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("attention", "moe", "feasible", "predicted_tpot_ms", "reason", "predicted_ttft_ms", "cost", "batch", "a_max", "attention_ms", "moe_ms", "exchange_ms", "chosen")
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    MOE_FIELD_NUMBER: _ClassVar[int]
    FEASIBLE_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    A_MAX_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_MS_FIELD_NUMBER: _ClassVar[int]
    MOE_MS_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_MS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    attention: int
    moe: int
    feasible: bool
    predicted_tpot_ms: float
    reason: str
    predicted_ttft_ms: float
    cost: float
    batch: float
    a_max: float
    attention_ms: float
    moe_ms: float
    exchange_ms: float
    chosen: bool
    def __init__(self, attention: _Optional[int] = ..., moe: _Optional[int] = ..., feasible: _Optional[bool] = ..., predicted_tpot_ms: _Optional[float] = ..., reason: _Optional[str] = ..., predicted_ttft_ms: _Optional[float] = ..., cost: _Optional[float] = ..., batch: _Optional[float] = ..., a_max: _Optional[float] = ..., attention_ms: _Optional[float] = ..., moe_ms: _Optional[float] = ..., exchange_ms: _Optional[float] = ..., chosen: _Optional[bool] = ...) -> None: ...

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

class AutoscalerServiceGetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AutoscalerServiceGetStatsResponse(_message.Message):
    __slots__ = ("attention", "moe", "planned_attention", "planned_moe", "target_attention", "target_moe", "demand_tokens_per_second", "predicted_tpot_seconds", "measured_tpot_seconds", "model_error_ratio", "objective_tpot_seconds", "objective_met", "decisions", "actions", "failed_actions")
    ATTENTION_FIELD_NUMBER: _ClassVar[int]
    MOE_FIELD_NUMBER: _ClassVar[int]
    PLANNED_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    PLANNED_MOE_FIELD_NUMBER: _ClassVar[int]
    TARGET_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_MOE_FIELD_NUMBER: _ClassVar[int]
    DEMAND_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TPOT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_TPOT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_ERROR_RATIO_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_TPOT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_MET_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    FAILED_ACTIONS_FIELD_NUMBER: _ClassVar[int]
    attention: int
    moe: int
    planned_attention: int
    planned_moe: int
    target_attention: int
    target_moe: int
    demand_tokens_per_second: float
    predicted_tpot_seconds: float
    measured_tpot_seconds: float
    model_error_ratio: float
    objective_tpot_seconds: float
    objective_met: bool
    decisions: int
    actions: int
    failed_actions: int
    def __init__(self, attention: _Optional[int] = ..., moe: _Optional[int] = ..., planned_attention: _Optional[int] = ..., planned_moe: _Optional[int] = ..., target_attention: _Optional[int] = ..., target_moe: _Optional[int] = ..., demand_tokens_per_second: _Optional[float] = ..., predicted_tpot_seconds: _Optional[float] = ..., measured_tpot_seconds: _Optional[float] = ..., model_error_ratio: _Optional[float] = ..., objective_tpot_seconds: _Optional[float] = ..., objective_met: _Optional[bool] = ..., decisions: _Optional[int] = ..., actions: _Optional[int] = ..., failed_actions: _Optional[int] = ...) -> None: ...
