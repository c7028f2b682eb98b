"""``python -m janus_runtime.healthcheck`` against real servers: what a container engine sees."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from janus_runtime.server import GrpcServer
from janus_runtime.settings import ServiceSettings

SETTINGS = ServiceSettings(redis_url="redis://unused:1", worker_id="x")


async def probe(**env: str) -> tuple[int, str]:
    """Exit code and all output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "janus_runtime.healthcheck",
        env={k: v for k, v in os.environ.items() if not k.startswith("JANUS_")} | env,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_follows_the_service() -> None:
    async with GrpcServer(SETTINGS, "moe") as server:
        port = (await server.start()).rpartition(":")[2]
        code, said = await probe(JANUS_GRPC_PORT=port)
        assert code == 1 and "NOT_SERVING" in said
        await server.set_serving(True)
        code, said = await probe(JANUS_GRPC_PORT=port)
        assert code == 0 and said.endswith(": SERVING\n")
        assert (await probe(JANUS_HEALTH_ADDRESS=f"localhost:{port}", JANUS_GRPC_PORT="junk"))[0] == 0
    code, said = await probe(JANUS_GRPC_PORT=port)
    assert code == 1 and "UNAVAILABLE" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "closed before an answer"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "closed before an answer"),
        (b"\0\0\0\x01\x01\0\0\0\x01", "not an answer of the health service"),  # trailers alone: a refusal
        (b"\0\0\x02\0\x01\0\0\0\x01ab", "not an answer of the health service"),
        (None, "timed out"),
    ],
)
async def test_what_is_no_health_service(answer: bytes | None, said: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(ConnectionError):  # who has not read all that came resets it
                await reader.read(24)
                if answer is not None:
                    writer.write(answer)
                    writer.write_eof()
                await reader.read()  # until the other side has closed
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = str(server.sockets[0].getsockname()[1])
    code, output = await probe(JANUS_GRPC_PORT=port)
    assert code == 1 and said in output and "Traceback" not in output
    server.close()
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("port", ["", "0", "65536", "-1", "http", "٥٠"])
async def test_a_port_that_is_none(port: str) -> None:
    code, said = await probe(JANUS_GRPC_PORT=port)
    assert code == 1 and "JANUS_GRPC_PORT" in said and "1..65535" in said and "Traceback" not in said


async def test_over_tls(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-keyout", key, "-out", cert, "-subj", "/CN=worker", "-addext", "subjectAltName=DNS:worker"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    files = {"JANUS_TLS_CERT": str(cert), "JANUS_TLS_KEY": str(key)}
    for authority in ("", str(cert)):  # one's own certificate; mutual TLS
        settings = dataclasses.replace(SETTINGS, tls_cert=str(cert), tls_key=str(key), tls_ca=authority)
        async with GrpcServer(settings, "moe") as server:
            port = (await server.start()).rpartition(":")[2]
            await server.set_serving(True)
            asked = {"JANUS_GRPC_PORT": port, **files, "JANUS_TLS_CA": authority}
            assert (await probe(**asked, JANUS_ADVERTISE_HOST="worker"))[0] == 0
            code, said = await probe(**asked, JANUS_ADVERTISE_HOST="another")
            assert code == 1 and "UNAVAILABLE" in said
    code, said = await probe(JANUS_GRPC_PORT="50051", JANUS_TLS_CERT=str(tmp_path / "none.pem"))
    assert code == 1 and "none.pem" in said and "Traceback" not in said
