"""Kubernetes: the scale subresource of Deployments and StatefulSets, through the official client.

Pods that are to go are drained first. A StatefulSet ends its highest ordinals; a Deployment ends what costs least to
delete, which is why drained pods are marked so.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from janus_runtime.errors import (
    FailedPrecondition,
    InvalidArgument,
    JanusError,
    NotFound,
    Unavailable,
)

from janus_autoscaler.actuators.base import Actuator, Drainer, Pool, Sizes, worker_on
from janus_autoscaler.config import AutoscalerSettings

T = TypeVar("T")

API_S = 20
KINDS = {"deployment": "deployment", "statefulset": "stateful_set"}
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_OWN = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def client() -> Any:
    """A configured ApiClient: inside a cluster the pod's own account, else the kubeconfig."""
    try:
        from kubernetes import client as k
        from kubernetes import config
    except ImportError as error:
        raise FailedPrecondition(
            "the kubernetes client is not installed",
            next_step="pip install 'janus-mesh-autoscaler[kubernetes]'",
        ) from error
    try:
        config.load_config()
    except (config.ConfigException, OSError) as error:
        raise FailedPrecondition(
            f"no cluster is configured: {error}", next_step="Run in a cluster, or set KUBECONFIG."
        ) from error
    return k.ApiClient()


async def ask(call: Callable[[], T]) -> T:
    """Run a blocking call of the client in a thread, its errors as JanusErrors."""
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    try:
        return await asyncio.to_thread(call)
    except ApiException as error:
        raise _error(error) from error
    except HTTPError as error:
        raise Unavailable(f"the API server does not answer: {error}") from error


def _error(error: Any) -> JanusError:
    text = f"the API server: {error.status} {error.reason}"
    if error.status == 404:
        return NotFound(text, next_step="See --attention-service, --moe-service, --kubernetes-namespace.")
    if error.status in (401, 403):
        next_step = "The account needs get and patch on scale, list and patch on pods."
        return FailedPrecondition(text, reason="PERMISSION_DENIED", next_step=next_step)
    return Unavailable(text)


class _Workload:
    """KIND/NAME."""

    def __init__(self, text: str, field: str) -> None:
        kind, _, self.name = text.partition("/")
        if kind.lower() not in KINDS or not self.name:
            raise InvalidArgument(
                "is no workload", field=field, value=text, allowed="deployment/NAME, statefulset/NAME"
            )
        self.kind = KINDS[kind.lower()]


class KubernetesActuator(Actuator):
    """Two workloads of one namespace."""

    def __init__(self, settings: AutoscalerSettings, drainer: Drainer, api: Any = None) -> None:
        self._workloads = {
            Pool.ATTENTION: _Workload(settings.attention_service, "--attention-service"),
            Pool.MOE: _Workload(settings.moe_service, "--moe-service"),
        }
        api = api or client()
        from kubernetes import client as k

        self._client, self._apps, self._core = api, k.AppsV1Api(api), k.CoreV1Api(api)
        own = _OWN.read_text().strip() if _OWN.is_file() else "default"
        self._namespace = settings.kubernetes_namespace or own
        self._drainer = drainer

    async def sizes(self) -> Sizes:
        return await self._replicas(Pool.ATTENTION), await self._replicas(Pool.MOE)

    async def grow(self, now: Sizes, target: Sizes) -> None:
        for pool in Pool:
            if target[pool.value] > now[pool.value]:
                await self._set(pool, target[pool.value])

    async def shrink(self, pool: Pool, size: int) -> None:
        leases = await self._drainer.leases(pool)
        for pod in (await self._pods(pool))[size:]:
            if self._workloads[pool].kind == "deployment":
                mark = {"metadata": {"annotations": {DELETION_COST: "-1000"}}}
                name = pod.metadata.name
                await self._call(self._core.patch_namespaced_pod, name, body=mark)
            if lease := worker_on(leases, pod.metadata.name):
                await self._drainer.drain(lease.worker_id)
        await self._set(pool, size)

    async def close(self) -> None:
        await asyncio.to_thread(self._client.close)

    async def _replicas(self, pool: Pool) -> int:
        return int((await self._scale(pool, "read")).spec.replicas or 0)

    async def _set(self, pool: Pool, size: int) -> None:
        await self._scale(pool, "patch", body={"spec": {"replicas": size}})

    async def _scale(self, pool: Pool, verb: str, **more: Any) -> Any:
        workload = self._workloads[pool]
        call = getattr(self._apps, f"{verb}_namespaced_{workload.kind}_scale")
        return await self._call(call, workload.name, **more)

    async def _pods(self, pool: Pool) -> list[Any]:
        """Pods of the workload that are not ending, those that stay longest first."""
        workload = self._workloads[pool]
        read = getattr(self._apps, f"read_namespaced_{workload.kind}")
        labels = (await self._call(read, workload.name)).spec.selector.match_labels
        selector = ",".join(f"{k}={v}" for k, v in sorted(labels.items()))
        found = await ask(
            lambda: self._core.list_namespaced_pod(
                self._namespace, label_selector=selector, _request_timeout=API_S
            )
        )
        there = [p for p in found.items if p.metadata.deletion_timestamp is None]
        if workload.kind == "stateful_set":
            return sorted(there, key=lambda p: _ordinal(p.metadata.name))
        return sorted(there, key=lambda p: (p.metadata.creation_timestamp, p.metadata.name))

    async def _call(self, call: Callable[..., T], name: str, **more: Any) -> T:
        return await ask(lambda: call(name, self._namespace, _request_timeout=API_S, **more))


def _ordinal(name: str) -> int:
    match = re.search(r"-(\d+)$", name)
    return int(match[1]) if match else 0
