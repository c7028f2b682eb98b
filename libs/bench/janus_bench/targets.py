"""Whom to ask: an OpenAI-compatible server over HTTP, or a Janus gateway over gRPC.

Both note when pieces of an answer come and read them only when the answer is over: what the client does between
two pieces is part of what it would measure.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Protocol

import httpx
from janus_client import AsyncJanusClient
from janus_client.errors import JanusError

from janus_bench.errors import BenchError
from janus_bench.sse import BadStream, read_into
from janus_bench.summary import Record
from janus_bench.workload import Ask

_CONNECT_S = 10.0


class Target(Protocol):
    """Something that answers."""

    name: str

    async def prepare(self) -> None:
        """Before anything is measured. Raises BenchError when nobody answers."""

    async def ask(self, ask: Ask, record: Record) -> None:
        """One request; failures go into the record."""

    async def close(self) -> None:
        """Let go of the connections."""


class HttpTarget:
    """``POST /v1/completions`` or ``/v1/chat/completions``, streamed."""

    def __init__(
        self,
        url: str,
        *,
        chat: bool = False,
        model: str = "",
        api_key: str = "",
        timeout_s: float = 600.0,
        ignore_eos: bool = False,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """``extra``: fields added to every request's body."""
        base = url.rstrip("/").removesuffix("/v1")
        self.name = f"{base}/v1/{'chat/completions' if chat else 'completions'}"
        self._base, self._chat, self._model, self._timeout_s = base, chat, model, timeout_s
        self._extra = {**({"ignore_eos": True} if ignore_eos else {}), **(extra or {})}
        headers = {"content-type": "application/json"}
        if api_key:
            headers["authorization"] = f"Bearer {api_key}"
        self._http = httpx.AsyncClient(
            headers=headers,
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )

    async def prepare(self) -> None:
        if self._model:
            return
        try:
            answer = await self._http.get(f"{self._base}/v1/models", timeout=_CONNECT_S)
            self._model = str(answer.raise_for_status().json()["data"][0]["id"])
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, IndexError, TypeError) as error:
            raise BenchError(
                f"{self._base}/v1/models does not say which model is served "
                f"({type(error).__name__}: {error}); check --url, or name it with --model"
            ) from error

    async def ask(self, ask: Ask, record: Record) -> None:
        prompt: dict[str, Any] = (
            {"messages": [{"role": "user", "content": ask.prompt}]} if self._chat else {"prompt": ask.prompt}
        )
        body = {
            "model": self._model, **prompt, "max_tokens": ask.max_tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, **self._extra,
        }  # fmt: skip
        arrivals: list[tuple[float, bytes]] = []
        clock = time.perf_counter
        content = json.dumps(body).encode()
        record.sent = clock()
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream("POST", self.name, content=content) as response,
            ):
                if response.status_code != 200:
                    text = (await response.aread()).decode("utf-8", "replace")
                    record.error, record.detail = f"HTTP {response.status_code}", text[:300]
                    return
                async for raw in response.aiter_raw():
                    arrivals.append((clock(), raw))  # noqa: PERF401 - what came before a failure is kept
        except TimeoutError:
            record.error, record.detail = "timeout", f"not over after {self._timeout_s:g} s"
        except httpx.HTTPError as error:
            unreached = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
            record.error = "cannot connect" if unreached else "connection lost"
            record.detail = f"{type(error).__name__}: {error}"[:300]
        finally:
            record.end = clock()
        try:
            read_into(record, arrivals)
        except BadStream as bad:
            if not record.error:
                record.error, record.detail = bad.kind, str(bad)

    async def close(self) -> None:
        await self._http.aclose()


class GrpcTarget:
    """``janus.v1.GenerationService/Generate``."""

    def __init__(
        self,
        address: str,
        *,
        chat: bool = False,
        api_key: str = "",
        timeout_s: float = 600.0,
        ignore_eos: bool,
    ) -> None:
        self.name = f"{address} janus.v1.GenerationService/Generate"
        self._address, self._chat, self._ignore_eos = address, chat, ignore_eos
        self._client = AsyncJanusClient(address, api_key=api_key or None, timeout_s=timeout_s)

    async def prepare(self) -> None:
        try:
            await self._client.model_info(timeout_s=_CONNECT_S)
        except JanusError as error:
            raise BenchError(f"no gateway answers at {self._address}: {error}") from error

    async def ask(self, ask: Ask, record: Record) -> None:
        clock = time.perf_counter
        options: dict[str, Any] = {
            "max_tokens": ask.max_tokens, "temperature": 0.0, "ignore_eos": self._ignore_eos,
        }  # fmt: skip
        record.sent = clock()
        try:
            if self._chat:
                stream = self._client.chat([{"role": "user", "content": ask.prompt}], **options)
            else:
                stream = self._client.generate(ask.prompt, **options)
            usage = None
            async with stream:
                async for chunk in stream:
                    if chunk.token_ids:
                        record.marks.append(clock())
                    usage = chunk.usage or usage
            if usage is None or not record.marks:
                record.error, record.detail = "stream cut", "the stream ended without its usage"
            else:
                record.output_tokens, record.prompt_tokens = usage.completion_tokens, usage.prompt_tokens
        except JanusError as error:
            record.error, record.detail = error.code, str(error)[:300]
        finally:
            record.end = clock()

    async def close(self) -> None:
        await self._client.close()
