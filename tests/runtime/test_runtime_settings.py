from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import click
import pytest
from click.testing import CliRunner
from janus_runtime.settings import ServiceSettings, build, click_options, field_docs, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings(ServiceSettings):
    """A service's settings."""

    slots: int = setting(3, minimum=0, maximum=9)
    """Slots per layer
    and worker."""
    fast: bool = False
    """Whether to hurry."""


@click.command()
@click_options(DemoSettings, "demo")
def command(**flags: object) -> None:
    settings = build(DemoSettings, "demo", flags)
    click.echo(repr(settings))


def run(*args: str, **env: str) -> click.testing.Result:
    return CliRunner().invoke(command, list(args), env={"REDIS_URL": "redis://x:1", **env})


def test_flag_beats_role_variable_beats_common_variable_beats_default() -> None:
    assert "slots=3" in run().output
    assert "slots=4" in run(JANUS_SLOTS="4").output
    assert "slots=5" in run(JANUS_SLOTS="4", JANUS_DEMO_SLOTS="5").output
    assert "slots=6" in run("--slots", "6", JANUS_SLOTS="4", JANUS_DEMO_SLOTS="5").output
    assert "fast=True" in run("--fast").output
    assert "fast=False" in run("--no-fast", JANUS_FAST="1").output


def test_redis_url_comes_from_three_variables() -> None:
    assert "redis_url='redis://x:1'" in run().output
    assert "redis_url='redis://y:1'" in run(JANUS_REDIS_URL="redis://y:1").output
    assert (
        "redis_url='redis://z:1'"
        in run(JANUS_REDIS_URL="redis://y:1", JANUS_DEMO_REDIS_URL="redis://z:1").output
    )


def test_missing_redis_url_names_flag_and_variables() -> None:
    result = CliRunner().invoke(command, [], env={"REDIS_URL": "", "JANUS_REDIS_URL": ""})
    assert result.exit_code == 2
    assert "--redis-url" in result.output and "REDIS_URL" in result.output


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--slots", "10"], "--slots"),
        (["--slots", "x"], "--slots"),
        (["--grpc-port", "65536"], "--grpc-port"),
        (["--log-level", "loud"], "--log-level"),
        (["--namespace", "a:b"], "--namespace"),
        (["--worker-id", "a b"], "--worker-id"),
        (["--tls-cert", "x.pem"], "--tls-key"),
        (["--trace-sample", "nan"], "--trace-sample"),
        (["--unknown"], "--unknown"),
    ],
)
def test_bad_values_exit_with_2_and_name_the_flag(args: list[str], named: str) -> None:
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert named in result.output


def test_help_is_the_docstring_under_the_field() -> None:
    docs = field_docs(DemoSettings)
    assert docs["slots"] == "Slots per layer and worker."
    for field in dataclasses.fields(ServiceSettings):
        assert docs[field.name], f"{field.name} has no docstring"
    assert "Slots per layer" in run("--help").output


def test_derived_defaults() -> None:
    settings = build(DemoSettings, "demo", {"redis_url": "redis://x:1"})
    assert settings.worker_id.startswith("demo-")
    assert settings.node
    assert settings.advertised == "127.0.0.1"
    assert dataclasses.replace(settings, host="0.0.0.0").advertised not in ("", "0.0.0.0")
    assert dataclasses.replace(settings, advertise_host="me").advertised == "me"
