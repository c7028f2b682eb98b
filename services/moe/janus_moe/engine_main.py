"""The MoE engine's process."""

from __future__ import annotations

import sys
from typing import Any

import torch
from janus_kernels import set_num_threads
from janus_models.checkpoint import Checkpoint
from janus_models.config import load_config
from janus_models.device import checked_device
from janus_models.experts import ExpertModel
from janus_transport import create_transport
from janus_worker.link import ControlLink
from janus_worker.process import progress, run_engine

from janus_moe.engine import EngineOptions, MoeEngine


def build(options: dict[str, Any], link: ControlLink) -> MoeEngine:
    """Map the checkpoint, open the transport."""
    say = progress(link)
    torch.set_num_threads(options["threads"])
    set_num_threads(options["threads"])
    torch.set_grad_enabled(False)
    config = load_config(options["model"])
    wanted = options.get("expert_dtype", options["dtype"])
    quantize = wanted if wanted in ("int8", "int4") else None
    dtype = options["dtype"] if quantize else wanted
    device = checked_device(options["device"], member=options["member"], quantize=quantize)
    say(f"checkpoint {options['model']}, on {device}")
    model = ExpertModel(config, Checkpoint(options["model"]), dtype, device, quantize=quantize)
    say(f"transport {options['transport']}")
    transport = create_transport(options["transport"], member=options["member"])
    engine_options = EngineOptions(
        max_batch_tokens=options["max_batch_tokens"],
        stall_s=options["stall_s"],
        emulated_expert_us=options["emulated_expert_us"],
        beside=options["beside"],
    )
    return MoeEngine(model, transport, link, member=options["member"], options=engine_options)


if __name__ == "__main__":
    sys.exit(run_engine(build))
