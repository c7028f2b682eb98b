"""Requests over HTTP that the gateway's tests make, and how they read the answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
from gateway_fakes import Mesh

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
COMPLETION: dict[str, Any] = {"model": "tiny", "prompt": "Hi", "temperature": 0}


async def post(mesh: Mesh, path: str, body: Any, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=mesh.http, timeout=20) as client:
        if isinstance(body, bytes):
            return await client.post("/v1/" + path, content=body, **more)
        return await client.post("/v1/" + path, json=body, **more)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """Payloads of a whole event stream that ended well."""
    lines = [line for line in answer.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]
