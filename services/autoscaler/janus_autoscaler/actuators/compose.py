"""Docker compose: the engine's API through its SDK. A worker more is a copy of the latest container of its service,
as `docker compose up --scale` would make it; a worker less is drained, stopped and removed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any, TypeVar

from janus_runtime.errors import FailedPrecondition, JanusError, NotFound, Unavailable

from janus_autoscaler.actuators.base import Actuator, Drainer, Pool, Sizes, worker_on
from janus_autoscaler.config import AutoscalerSettings

T = TypeVar("T")

PROJECT, SERVICE, NUMBER = (
    f"com.docker.compose.{name}" for name in ("project", "service", "container-number")
)
API_S = 60
"""No call to the engine takes longer; stopping a container is asked with less."""
_STOP_S = 30


def engine(url: str) -> Any:
    """A client of the engine. Raises FailedPrecondition without the SDK, Unavailable without an engine."""
    try:
        import docker
    except ImportError as error:
        raise FailedPrecondition(
            "the docker SDK is not installed", next_step="pip install 'janus-mesh-autoscaler[docker]'"
        ) from error
    try:
        return docker.DockerClient(base_url=url, timeout=API_S) if url else docker.from_env(timeout=API_S)
    except docker.errors.DockerException as error:
        raise Unavailable(f"no container engine answers: {error}", next_step="See --docker-url.") from error


async def ask(call: Callable[[], T]) -> T:
    """Run a blocking call of the SDK in a thread, its errors as JanusErrors."""
    import docker
    import requests

    try:
        return await asyncio.to_thread(call)
    except docker.errors.NotFound as error:
        raise NotFound(f"the container engine: {error}") from error
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise Unavailable(f"the container engine: {error}") from error


class ComposeActuator(Actuator):
    """Containers of one compose project."""

    def __init__(self, settings: AutoscalerSettings, drainer: Drainer, client: Any = None) -> None:
        self._client = client or engine(settings.docker_url)
        self._project = settings.docker_project
        self._services = {Pool.ATTENTION: settings.attention_service, Pool.MOE: settings.moe_service}
        self._drainer = drainer

    async def sizes(self) -> Sizes:
        return len(await self._containers(Pool.ATTENTION)), len(await self._containers(Pool.MOE))

    async def grow(self, now: Sizes, target: Sizes) -> None:
        for pool in Pool:
            if target[pool.value] > now[pool.value]:
                await self._grow(pool, target[pool.value])

    async def _grow(self, pool: Pool, size: int) -> None:
        there = await self._containers(pool)
        if not there:
            raise FailedPrecondition(
                f"project {self._project} has no running container of service {self._services[pool]} to copy",
                next_step="Start one with compose; --docker-project and --*-service name them.",
            )
        pattern = there[-1]
        taken = {_number(c) for c in await self._containers(pool, stopped=True)}
        free = (n for n in range(1, 1 << 20) if n not in taken)
        for _ in range(size - len(there)):
            await self._copy(pattern, next(free))

    async def shrink(self, pool: Pool, size: int) -> None:
        # The latest go first: they are the least likely to be what an operator has looked at.
        for container in reversed((await self._containers(pool))[size:]):
            host = container.attrs["Config"]["Hostname"]
            lease = worker_on(await self._drainer.leases(pool), host)
            if lease is not None:  # else it is still starting, and serves nobody
                await self._drainer.drain(lease.worker_id)
            await ask(lambda c=container: c.stop(timeout=_STOP_S))  # type: ignore[misc]
            await ask(lambda c=container: c.remove())  # type: ignore[misc]

    async def close(self) -> None:
        await asyncio.to_thread(self._client.close)

    async def _containers(self, pool: Pool, *, stopped: bool = False) -> list[Any]:
        """Of the pool, by number."""
        labels = [f"{PROJECT}={self._project}", f"{SERVICE}={self._services[pool]}"]
        found = await ask(
            lambda: self._client.containers.list(all=stopped, filters={"label": labels}, ignore_removed=True)
        )
        return sorted(found, key=_number)

    async def _copy(self, pattern: Any, number: int) -> None:
        config, name = copy_of(pattern.attrs, number)
        made = await ask(lambda: self._client.api.create_container_from_config(config, name))
        try:
            await ask(lambda: self._client.api.start(made["Id"]))
        except JanusError:
            await ask(lambda: self._client.api.remove_container(made["Id"], force=True))
            raise


def _number(container: Any) -> int:
    text = container.labels.get(NUMBER, "")
    return int(text) if text.isdecimal() else 0


def copy_of(attrs: dict[str, Any], number: int) -> tuple[dict[str, Any], str]:
    """What to create, and its name, for another container like the inspected one. Pure.

    The copy has a host name, and addresses, of its own: what the engine gave to the first belongs to it alone.
    """
    old = attrs["Config"]
    config = {k: v for k, v in old.items() if k not in ("Hostname", "Domainname", "MacAddress")}
    if not attrs["Id"].startswith(old["Hostname"]):
        config["Hostname"] = f"{old['Hostname']}-{number}"  # one that was chosen, not the id's beginning
    config["Labels"] = {**old.get("Labels", {}), NUMBER: str(number)}
    config["HostConfig"] = dict(attrs["HostConfig"])
    short = attrs["Id"][:12]
    config["NetworkingConfig"] = {
        "EndpointsConfig": {
            name: {"Aliases": [a for a in network.get("Aliases") or () if a != short]}
            for name, network in attrs["NetworkSettings"]["Networks"].items()
        }
    }
    stem = re.sub(r"\d+$", "", attrs["Name"].lstrip("/"))
    return config, f"{stem}{number}"
