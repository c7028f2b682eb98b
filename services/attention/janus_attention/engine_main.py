"""The attention engine's process."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from janus_kernels import set_num_threads
from janus_models.checkpoint import Checkpoint
from janus_models.config import load_config
from janus_models.decoder import AttentionModel
from janus_models.device import checked_device
from janus_models.experts import ExpertModel
from janus_transport import create_transport
from janus_worker.link import ControlLink
from janus_worker.process import progress, run_engine

from janus_attention.engine import AttentionEngine, EngineOptions

_ENGINE_FIELDS = tuple(field.name for field in dataclasses.fields(EngineOptions))


def build(options: dict[str, Any], link: ControlLink) -> AttentionEngine:
    """Map the checkpoint, open the transport, reserve the KV cache."""
    say = progress(link)
    torch.set_num_threads(options["threads"])
    set_num_threads(options["threads"])
    torch.set_grad_enabled(False)
    attention = options["attention_dtype"]
    quantize = None if attention == "same" else attention
    device = checked_device(options["device"], member=options["member"], quantize=quantize)
    say(f"checkpoint {options['model']}, on {device}")
    config = load_config(options["model"])
    checkpoint = Checkpoint(options["model"])
    model = AttentionModel(config, checkpoint, options["dtype"], device, quantize)
    routers = ExpertModel(config, checkpoint, options["dtype"], device)
    say(f"transport {options['transport']}")
    transport = create_transport(options["transport"], member=options["member"])
    fields = {name: options[name] for name in _ENGINE_FIELDS}
    engine_options = EngineOptions(**fields)
    engine = AttentionEngine(
        model, routers, transport, link, member=options["member"], options=engine_options
    )
    say("tokenizer for guided output")
    engine.guides.prepare()
    return engine


if __name__ == "__main__":
    sys.exit(run_engine(build))
