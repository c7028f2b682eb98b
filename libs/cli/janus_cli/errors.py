"""Errors of commands: one clear line on stderr, exit code 1 (bad usage is click's, exit code 2)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import click
from janus_client.errors import JanusError as ClientError
from janus_runtime.errors import JanusError


class JanusGroup(click.Group):
    """A group whose commands may raise JanusError."""

    def invoke(self, ctx: click.Context) -> Any:
        with fail_cleanly():
            return super().invoke(ctx)


class Failure(click.ClickException):
    """Printed as ``error: ...``; exit code 1."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True)


@contextlib.contextmanager
def fail_cleanly() -> Iterator[None]:
    """JanusError, the services' and the SDK's, becomes a Failure."""
    try:
        yield
    except (JanusError, ClientError) as error:
        raise Failure(str(error)) from error
