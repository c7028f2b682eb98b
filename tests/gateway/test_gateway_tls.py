from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from gateway_fakes import Mesh
from janus_client import AsyncJanusClient, Tls, UnavailableError

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(30)]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=IP:127.0.0.1,DNS:localhost -keyout {key} -out {cert}"
    )
    subprocess.run(command.split(), check=True, capture_output=True, timeout=30)
    return cert, key


async def test_both_doors_speak_tls(bare: Mesh, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    await bare.start_gateway(tls_cert=str(cert), tls_key=str(key), http_tls=True)
    context = ssl.create_default_context(cafile=str(cert))
    async with httpx.AsyncClient(verify=context) as client:
        answer = await client.get(bare.http.replace("http:", "https:") + "/v1/models")
        assert answer.json()["data"][0]["id"] == "tiny"
        with pytest.raises(httpx.HTTPError):
            await client.get(bare.http + "/v1/models")
    async with AsyncJanusClient(bare.grpc, tls=Tls(ca=cert)) as client_tls:
        assert (await client_tls.model_info()).model == "tiny"
    async with AsyncJanusClient(bare.grpc) as plain:
        with pytest.raises(UnavailableError):
            await plain.model_info()
