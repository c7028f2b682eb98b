from __future__ import annotations

import asyncio
from typing import Any

import pytest
from janus_client import AsyncJanusClient
from janus_client import errors as client_errors
from janus_runtime import errors as server_errors

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


async def test_the_same_calls_awaited(gateway: Any) -> None:
    async with AsyncJanusClient(gateway.address, api_key="sesame") as client:
        text = "".join([chunk.text async for chunk in client.generate("Hello", max_tokens=9)])
        whole = await client.chat("Hello").result()
        assert await client.count_tokens([1, 2]) == 7
        assert await client.count_chat_tokens("Hello") == 7
        assert (await client.model_info()).model == "tiny"
    assert text == whole.text == "Hello from a fake gateway."
    assert gateway.requests[0].sampling.max_tokens == 9
    assert all(seen["authorization"] == "Bearer sesame" for seen in gateway.metadata)


async def test_errors_are_the_same(gateway: Any) -> None:
    gateway.error = server_errors.ResourceExhausted("full", retry_after_s=2.0)
    async with AsyncJanusClient(gateway.address) as client:
        with pytest.raises(client_errors.RateLimitError) as caught:
            await client.generate("x").result()
        assert caught.value.retry_after_s == 2.0
        with pytest.raises(client_errors.RateLimitError):
            await client.count_tokens("x")


async def test_leaving_a_stream_cancels_it(gateway: Any) -> None:
    gateway.pause_s = 0.1
    async with AsyncJanusClient(gateway.address) as client:
        async with client.generate("x") as stream:
            assert (await anext(stream)).text == "Hello"
        assert await asyncio.to_thread(gateway.cancelled.wait, 5)
        with pytest.raises(client_errors.RequestCancelledError):
            await anext(stream)


async def test_the_servers_cancellation_is_no_cancellation_of_our_task(gateway: Any) -> None:
    gateway.error = server_errors.Cancelled("the gateway shuts down")
    async with AsyncJanusClient(gateway.address) as client:
        with pytest.raises(client_errors.RequestCancelledError):
            await client.generate("x").result()
        with pytest.raises(client_errors.RequestCancelledError):
            await client.count_tokens("x")


async def test_a_cancelled_task_stays_cancelled(gateway: Any) -> None:
    gateway.pause_s = 0.5
    async with AsyncJanusClient(gateway.address) as client:
        task = asyncio.create_task(client.generate("x").result())
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_deadline_is_kept(gateway: Any) -> None:
    gateway.pause_s = 0.5
    async with AsyncJanusClient(gateway.address) as client:
        with pytest.raises(client_errors.DeadlineError):
            await client.generate("x", timeout_s=0.2).result()
