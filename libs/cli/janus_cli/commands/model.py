"""``janus model``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click
from rich.table import Table

from janus_cli.models import build_demo
from janus_cli.options import json_option
from janus_cli.progress import out_console


@click.group()
def command() -> None:
    """Look at checkpoints; build the demo's."""


@command.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_option
def inspect(directory: Path, as_json: bool) -> None:
    """Show what the checkpoint in DIRECTORY is and what serving it needs."""
    facts = inspect_checkpoint(directory)
    if as_json:
        click.echo(json.dumps(facts))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _human(name, value))
    out_console().print(table)


@command.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def demo(directory: Path) -> None:
    """Build the demo checkpoint in DIRECTORY: SmolLM2-135M-Instruct with eight experts a layer, about 2.8 GB."""
    click.echo(build_demo(directory))


def inspect_checkpoint(directory: Path) -> dict[str, Any]:
    """Shape of the model and bytes per part, in the checkpoint's dtype. Raises JanusError for a bad one."""
    from janus_models.checkpoint import Checkpoint
    from janus_models.config import load_config
    from janus_models.fingerprint import fingerprint

    config = load_config(directory)
    sizes = {entry.name: entry.nbytes for entry in Checkpoint(directory)}
    moe, latent, shared = config.moe, config.latent, config.moe.shared
    # Layers after the last, multi-token prediction, are not served.
    extra = re.compile(r"model\.layers\.(\d+)\.")
    unused = {n for n in sizes if (found := extra.match(n)) and int(found[1]) >= config.num_layers}
    experts = sum(size for name, size in sizes.items() if ".experts." in name and name not in unused)
    per_expert = experts // (moe.num_experts * len(config.moe_layers))
    spare = sum(sizes[name] for name in unused)
    method = config.quantisation.method if config.quantisation else ""
    loaded = {"": per_expert, "fp8": 4 * config.expert_parameters, "mxfp4": 2 * config.expert_parameters}
    return {
        "directory": str(directory),
        "model_type": config.model_type,
        "layers": config.num_layers,
        "moe_layers": len(config.moe_layers),
        "hidden": config.hidden,
        "attention": f"latent, {latent.rank} + {latent.rope_dim} per token" if latent else "grouped-query",
        "heads": config.num_heads,
        "kv_heads": config.num_kv_heads,
        "windows": " ".join(sorted({str(w or "full") for w in config.windows})),
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "context_length": config.max_positions,
        "experts": moe.num_experts,
        "experts_per_token": moe.top_k,
        "expert_hidden": moe.expert_hidden,
        "shared_expert_hidden": shared.hidden if shared else 0,
        "dtype": config.checkpoint_dtype,
        "quantisation": method or "none",
        "tensors": len(sizes),
        "bytes": sum(sizes.values()),
        "unused_bytes": spare,
        "attention_worker_bytes": sum(sizes.values()) - experts - spare,
        "expert_bytes": experts,
        "bytes_per_expert": per_expert,
        "bytes_per_expert_loaded_float32": loaded[method],
        "kv_bytes_per_token_float32": 4 * config.kv_values_per_token,
        "fingerprint": fingerprint(directory, "float32"),
    }


def _human(name: str, value: Any) -> str:
    if "bytes" not in name:
        return str(value)
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.2f} GiB"
