"""The model families Janus serves: one torch-free file per family and one row here.

A family says how its checkpoint spells things: names of tensors, names of config fields, and a few
flags. Everything that computes is shared (``layers/``, ``decoder.py``, ``experts.py``).
"""

from __future__ import annotations

from janus_models.families.base import Family
from janus_models.families.deepseek_v2 import DEEPSEEK_V2
from janus_models.families.deepseek_v3 import DEEPSEEK_V3
from janus_models.families.gpt_oss import GPT_OSS
from janus_models.families.mixtral import MIXTRAL
from janus_models.families.olmoe import OLMOE
from janus_models.families.qwen2_moe import QWEN2_MOE
from janus_models.families.qwen3_moe import QWEN3_MOE

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (DEEPSEEK_V2, DEEPSEEK_V3, GPT_OSS, MIXTRAL, OLMOE, QWEN2_MOE, QWEN3_MOE)
}
"""Implemented families by ``model_type``."""
