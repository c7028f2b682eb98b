"""The ``janus`` command. Each command's module is imported when the command is run: ``--help`` is quick."""

from __future__ import annotations

import importlib
import importlib.metadata

import click

from janus_cli.errors import JanusGroup

_COMMANDS = {
    "up": ("janus_cli.commands.up", "Start a mesh on this machine."),
    "down": ("janus_cli.commands.down", "Stop the mesh that `janus up` started."),
    "status": ("janus_cli.commands.status", "Show the cohort, the layout and every worker."),
    "scale": ("janus_cli.commands.scale", "Change how many workers serve, without dropping a stream."),
    "drain": ("janus_cli.commands.drain", "Take one worker out, without dropping a stream."),
    "autoscale": (
        "janus_cli.commands.autoscale",
        "Show what the autoscaler plans, and why; set its objective.",
    ),
    "top": ("janus_cli.commands.top", "Watch the mesh work."),
    "layout": (
        "janus_cli.commands.layout",
        "Show which expert is where, how busy it is, and what would be better.",
    ),
    "generate": ("janus_cli.commands.generate", "Continue a prompt."),
    "chat": ("janus_cli.commands.chat", "Talk with the model."),
    "model": ("janus_cli.commands.model", "Look at checkpoints; build the demo's."),
    "bench": ("janus_cli.commands.bench", "Measure serving, the exchange, kernels."),
    "plan": ("janus_cli.commands.plan", "Choose pool sizes for a load, on any hardware."),
    "simulate": ("janus_cli.commands.simulate", "Run a trace of requests on simulated hardware."),
    "trace": ("janus_cli.commands.trace", "Show one request's spans as a waterfall."),
}


class _LazyGroup(JanusGroup):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(_COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


def _version() -> str:
    try:
        return importlib.metadata.version("janus-mesh-cli")
    except importlib.metadata.PackageNotFoundError:
        return "of a source tree"


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="janus")
def main() -> None:
    """Serve Mixture-of-Experts models as a mesh of small services."""


if __name__ == "__main__":
    main()
