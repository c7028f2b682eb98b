"""Tool calls: how models write them, one file per format and one row here."""

from __future__ import annotations

from janus_gateway.tools.base import CallPart, Function, ToolFormat, ToolParser
from janus_gateway.tools.deepseek import DeepSeek
from janus_gateway.tools.hermes import Hermes
from janus_gateway.tools.llama import Llama
from janus_gateway.tools.mistral import Mistral

FORMATS: dict[str, ToolFormat] = {
    "hermes": Hermes(),
    "mistral": Mistral(),
    "mistral-named": Mistral(named=True),
    "deepseek": DeepSeek(),
    "deepseek-v3.1": DeepSeek(plain=True),
    "llama": Llama(),
}
"""In the order in which a chat template is asked."""


def detect(template: str) -> ToolFormat | None:
    """The format of a chat template; None when it has none that is known here."""
    if "tools" not in template:
        return None
    return next((form for form in FORMATS.values() if form.detect(template)), None)


__all__ = ["FORMATS", "CallPart", "Function", "ToolFormat", "ToolParser", "detect"]
