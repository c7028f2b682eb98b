"""Settings of every service: a frozen dataclass; flag > environment > default.

A service adds fields to :class:`ServiceSettings` and is done::

    @dataclass(frozen=True, slots=True, kw_only=True)
    class MoeSettings(ServiceSettings):
        model: str = setting("", required=True)
        \"\"\"Checkpoint directory.\"\"\"
        slots: int = setting(0, minimum=0)
        \"\"\"Expert slots per layer; 0 hosts as many as memory allows.\"\"\"

    @click.command()
    @click_options(MoeSettings, "moe")
    def main(**flags): run_service(lambda: serve(build(MoeSettings, "moe", flags)))

The docstring under a field is its ``--help``. The environment variables of field ``slots`` of role ``moe``
are ``JANUS_MOE_SLOTS``, then ``JANUS_SLOTS``. ``redis_url`` also reads ``REDIS_URL``.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import socket
import textwrap
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from janus_runtime.errors import InvalidArgument

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound="ServiceSettings")
_LOG_LEVELS = ("debug", "info", "warning", "error")


def setting(
    default: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] = (),
    required: bool = False,
    env: tuple[str, ...] = (),
    secret: bool = False,
) -> Any:
    """A dataclass field with its allowed range; ``env`` names variables read after the JANUS_ ones.

    ``required``: an empty text is refused at start-up. ``secret``: never shown in help or logs.
    """
    return dataclasses.field(
        default=default,
        metadata={"minimum": minimum, "maximum": maximum, "choices": choices, "required": required,
                  "env": env, "secret": secret},
    )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """What every service needs to know."""

    redis_url: str = setting("", required=True, env=("REDIS_URL",), secret=True)
    """Redis that coordinates the mesh: redis://, rediss:// or unix://."""
    namespace: str = "janus"
    """Prefix of all keys; meshes of different namespaces share one Redis unharmed."""
    worker_id: str = ""
    """Unique name of this worker; default <role>-<host name>-<pid>."""
    host: str = "127.0.0.1"
    """Address to bind."""
    advertise_host: str = ""
    """Address that peers connect to; default: the bind address, or the host name when that is 0.0.0.0."""
    grpc_port: int = setting(0, minimum=0, maximum=65535)
    """Port of the gRPC service; 0 picks a free one."""
    node: str = ""
    """Label of the machine; workers of one label share memory. Default: the host name."""
    lease_ttl_s: float = setting(5.0, minimum=0.5, maximum=300)
    """Seconds until a silent worker counts as gone."""
    redis_wait_s: float = setting(60.0, minimum=0, maximum=3600)
    """Seconds to wait for Redis at start-up before giving up."""
    log_level: str = setting("info", choices=_LOG_LEVELS)
    """Least severe log lines to print."""
    trace_dir: str = ""
    """Folder of the local span store, used when no OTLP endpoint is set; empty: spans are dropped."""
    trace_sample: float = setting(1.0, minimum=0, maximum=1)
    """Share of traces to record."""
    tls_cert: str = ""
    """PEM certificate of this worker; with --tls-key, gRPC speaks TLS."""
    tls_key: str = ""
    """PEM private key of this worker."""
    tls_ca: str = ""
    """PEM authorities that sign peers' certificates; a server then demands one of each client (mTLS)."""

    @property
    def advertised(self) -> str:
        """Host that peers connect to."""
        if self.advertise_host:
            return self.advertise_host
        return socket.gethostname() if self.host in ("0.0.0.0", "::", "") else self.host

    @property
    def tls(self) -> bool:
        """True when gRPC speaks TLS."""
        return bool(self.tls_cert or self.tls_ca)


def field_docs(cls: type) -> dict[str, str]:
    """Docstring under each field, of the class and its bases, as one line each."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                docs[node.target.id] = " ".join(after.value.value.split())
    return docs


def env_names(role: str, field: dataclasses.Field[Any]) -> list[str]:
    """Environment variables of a field, the one that wins first."""
    upper = field.name.upper()
    return [f"JANUS_{role.upper()}_{upper}", f"JANUS_{upper}", *field.metadata.get("env", ())]


def _click_type(field: dataclasses.Field[Any], kind: Any) -> Any:
    low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
    if field.metadata.get("choices"):
        return click.Choice(list(field.metadata["choices"]))
    if kind is int:
        return click.IntRange(low, high) if (low, high) != (None, None) else click.INT
    if kind is float:
        return click.FloatRange(low, high) if (low, high) != (None, None) else click.FLOAT
    if kind is bool:
        return click.BOOL
    if kind is str:
        return click.STRING
    raise TypeError(f"setting {field.name}: type {kind!r} has no flag; use int, float, str or bool")


def click_options(cls: type[ServiceSettings], role: str) -> Callable[[F], F]:
    """Decorator: one option per field of ``cls``, with help, environment and default."""
    docs = field_docs(cls)
    hints = typing.get_type_hints(cls)

    def decorate(command: F) -> F:
        for field in reversed(dataclasses.fields(cls)):
            flag = "--" + field.name.replace("_", "-")
            kind = hints[field.name]
            names = [f"{flag}/--no-{flag[2:]}" if kind is bool else flag, field.name]
            command = click.option(
                *names,
                type=None if kind is bool else _click_type(field, kind),
                default=field.default,
                envvar=env_names(role, field),
                show_envvar=True,
                show_default=field.default not in ("", None),
                help=docs.get(field.name, ""),
            )(command)
        return command

    return decorate


def build(cls: type[S], role: str, flags: Mapping[str, Any]) -> S:
    """Settings from click's values, checked, with derived defaults filled in.

    Raises click.UsageError (exit code 2) naming flag, environment variable and what is allowed.
    """
    values = dict(flags)
    values["worker_id"] = values.get("worker_id") or f"{role}-{socket.gethostname()}-{os.getpid()}"
    values["node"] = values.get("node") or socket.gethostname()
    settings = cls(**values)
    try:
        check(settings, role)
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from error
    return settings


def check(settings: ServiceSettings, role: str) -> None:
    """Raises InvalidArgument for the first field that is missing or out of range."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
        choices = field.metadata.get("choices") or ()
        flag = "--" + field.name.replace("_", "-")
        if field.metadata.get("required") and value == "":
            names = " or ".join(reversed(env_names(role, field)))
            raise InvalidArgument("is required", field=flag, next_step=f"Pass {flag} or set {names}.")
        # Written so that NaN, which compares false with everything, is refused.
        if (low is not None and not value >= low) or (high is not None and not value <= high):
            raise InvalidArgument("out of range", field=flag, value=value, allowed=f"{low}..{high}")
        if choices and value not in choices:
            raise InvalidArgument("unknown value", field=flag, value=value, allowed=", ".join(choices))
    if not settings.namespace or any(c in settings.namespace for c in "{}:*?[ \n"):
        raise InvalidArgument(
            "not a usable key prefix", field="--namespace", value=settings.namespace,
            allowed="any text without braces, colon, blanks or * ? [",
        )  # fmt: skip
    if any(c in settings.worker_id for c in ":*?[ \n/"):
        raise InvalidArgument(
            "not a usable name", field="--worker-id", value=settings.worker_id,
            allowed="letters, digits, dot, dash, underscore",
        )  # fmt: skip
    if bool(settings.tls_cert) != bool(settings.tls_key):
        raise InvalidArgument("a certificate and its key go together", field="--tls-cert / --tls-key")
