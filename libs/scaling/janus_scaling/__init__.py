"""How many attention and MoE workers: performance model, a_max estimator, solver, controller.

Pure functions (paper, section 3.5, and ours) that the autoscaler, `janus plan` and the simulator share. a_max comes
from the placement and scheduling code that the mesh runs.
"""

from __future__ import annotations

from janus_scaling.amax import AMaxEstimator, bound
from janus_scaling.checks import ScalingError
from janus_scaling.comm import Exchange
from janus_scaling.controller import Controller, ControllerState, Decision
from janus_scaling.demand import Demand, SeasonalForecast
from janus_scaling.performance import Coefficients, PerformanceModel, StepTime, roofline
from janus_scaling.profiles import PROFILES, HardwareProfile, load_profile, profile
from janus_scaling.shapes import MODELS, ModelShape, shape
from janus_scaling.skew import synthetic_layers
from janus_scaling.solver import Bounds, Candidate, Plan, Problem, Target, evaluate, little, solve

__all__ = [
    "MODELS", "PROFILES", "AMaxEstimator", "Bounds", "Candidate", "Coefficients", "Controller", "ControllerState",
    "Decision", "Demand", "Exchange", "HardwareProfile", "ModelShape", "PerformanceModel", "Plan", "Problem",
    "ScalingError", "SeasonalForecast", "StepTime", "Target", "bound", "evaluate", "little", "load_profile", "profile",
    "roofline", "shape", "solve", "synthetic_layers",
]  # fmt: skip
