"""The service as a process of its own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_fakes import Mesh, until
from janus_runtime.records import Role

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


async def start(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JANUS_", "REDIS_URL", "OTEL_"))}
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "janus_gateway",
        *arguments,
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**clean, **environment},
    )


async def said(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Exit code and stderr of a process that ends by itself."""
    async with asyncio.timeout(20):
        _, stderr = await process.communicate()
    return process.returncode, stderr.decode()


async def test_life_of_a_process(bare: Mesh) -> None:
    worker = await bare.add_worker()
    began = time.monotonic()
    process = await start(
        "--model", str(bare.model_dir), REDIS_URL=bare.redis.url, JANUS_GATEWAY_WORKER_ID="gateway-7"
    )
    try:
        leases: list[Any] = []
        async with asyncio.timeout(20):
            while not leases or leases[0].state != "ready":
                leases = await bare.coordination.workers(Role.GATEWAY)
                await asyncio.sleep(0.02)
        assert (leases[0].worker_id, leases[0].pid) == ("gateway-7", process.pid)
        assert time.monotonic() - began < 10
        async with httpx.AsyncClient(base_url=f"http://{leases[0].http_address}") as client:
            async with asyncio.timeout(5):
                while (await client.get("/health/ready")).status_code != 200:
                    await asyncio.sleep(0.02)
            body = {"model": "tiny", "prompt": "x", "max_tokens": 3}
            assert (await client.post("/v1/completions", json=body)).status_code == 200

            # Idle: what it costs over two seconds.
            before = cpu_seconds(process.pid)
            await asyncio.sleep(2)
            assert cpu_seconds(process.pid) - before <= 0.04

            # A stream that runs when the signal comes may end.
            worker.delay_s = 0.02
            request = asyncio.create_task(
                client.post("/v1/completions", json={**body, "max_tokens": 40, "ignore_eos": True})
            )
            await until(lambda: worker.active)
            process.send_signal(signal.SIGTERM)
            answer = await request
            assert answer.json()["usage"]["completion_tokens"] == 40
        code, stderr = await said(process)
        assert code == 0, stderr
        assert "[ready] gateway-7" in stderr
        assert "Traceback" not in stderr
        assert not await bare.coordination.workers(Role.GATEWAY)
    finally:
        if process.returncode is None:
            process.kill()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("flag", ["--http-port", "--grpc-port"])
async def test_a_port_in_use_is_one_clear_line(bare: Mesh, flag: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = await start("--model", str(bare.model_dir), flag, port, REDIS_URL=bare.redis.url)
        code, stderr = await said(process)
    assert code == 1
    error = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert len(error) == 1
    assert port in error[0]
    assert flag in error[0]
    assert "Traceback" not in stderr


async def test_bad_settings(bare: Mesh, tmp_path: Path) -> None:
    redis = {"REDIS_URL": bare.redis.url}
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "config.json").write_bytes((bare.model_dir / "config.json").read_bytes())
    for arguments, environment, exit_code, part in (
        (["--model", "/nowhere"], redis, 1, "--model"),
        (["--model", str(tmp_path)], redis, 1, "model_type"),
        (["--model", str(tmp_path / "half")], redis, 1, "tokenizer"),
        (["--model", str(bare.model_dir), "--http-tls"], redis, 1, "--tls-cert"),
        (["--model", str(bare.model_dir), "--http-port", "70000"], redis, 2, "--http-port"),
        ([], redis, 2, "--model"),
        (["--model", str(bare.model_dir)], {}, 2, "--redis-url"),
        (
            ["--model", str(bare.model_dir), "--redis-wait-s", "0"],
            {"REDIS_URL": "redis://127.0.0.1:1"},
            1,
            "Redis",
        ),
    ):
        code, stderr = await said(await start(*arguments, **environment))
        assert code == exit_code, stderr
        assert part in stderr
        assert "Traceback" not in stderr


async def test_two_gateways_serve_one_mesh(bare: Mesh) -> None:
    await bare.add_worker()
    processes = [
        await start("--model", str(bare.model_dir), "--worker-id", f"gateway-{i}", REDIS_URL=bare.redis.url)
        for i in range(2)
    ]
    try:
        addresses: list[str] = []
        async with asyncio.timeout(20):
            while len(addresses) < 2:
                leases = await bare.coordination.workers(Role.GATEWAY)
                addresses = [lease.http_address for lease in leases if lease.state == "ready"]
                await asyncio.sleep(0.05)
        texts = set()
        for address in addresses:
            async with httpx.AsyncClient(base_url=f"http://{address}") as client:
                async with asyncio.timeout(5):
                    while (await client.get("/health/ready")).status_code != 200:
                        await asyncio.sleep(0.02)
                body = {"model": "tiny", "prompt": "x", "seed": 5}
                texts.add((await client.post("/v1/completions", json=body)).json()["choices"][0]["text"])
        assert len(texts) == 1
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            assert (await said(process))[0] == 0


async def test_no_torch_and_help() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "import janus_gateway.__main__, janus_client\n"
        "janus_gateway.__main__.main(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    for flag in ("--model", "--http-port", "--grpc-port", "--api-keys", "--redis-url"):
        assert re.search(rf"{flag}\b", done.stdout)


async def test_keys_never_show(bare: Mesh) -> None:
    process = await start("--help", JANUS_GATEWAY_API_KEYS="very-secret")
    async with asyncio.timeout(20):
        stdout, _ = await process.communicate()
    assert b"very-secret" not in stdout
