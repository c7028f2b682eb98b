"""The real services as real processes, over UCX, under the supervisor that users run."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from janus_client import JanusClient
from janus_models.reference import generate
from janus_models.tokenizer import Tokenizer
from janus_runtime.spanstore import read_trace
from janus_testing import LocalMesh, MeshError
from openai import BadRequestError, OpenAI

pytestmark = pytest.mark.timeout(300)
PROMPT = [5, 9, 17, 33, 4, 8]


@pytest.fixture(scope="module")
def mesh(tiny: Path) -> Iterator[LocalMesh]:
    with LocalMesh(tiny, attention=2, experts=3, start_deadline_s=150) as mesh:
        yield mesh


@pytest.fixture
def openai(mesh: LocalMesh) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"http://{mesh.http}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def model_name(client: OpenAI) -> str:
    return client.models.list().data[0].id


def test_it_is_whole(mesh: LocalMesh) -> None:
    found = sorted((s.role, s.index) for s in mesh.services)
    assert found == [
        ("attention", 0), ("attention", 1), ("autoscaler", 0), ("gateway", 0), ("moe", 0), ("moe", 1), ("moe", 2),
        ("scheduler", 0),
    ]  # fmt: skip
    assert all(psutil.pid_exists(s.pid) for s in mesh.services)
    assert httpx.get(f"http://{mesh.http}/health/ready").status_code == 200


def test_every_service_reflects_its_api(mesh: LocalMesh) -> None:
    expected = {
        "gateway": "janus.v1.GenerationService", "attention": "janus.v1.AttentionService",
        "moe": "janus.v1.ExpertService", "scheduler": "janus.v1.SchedulerService",
        "autoscaler": "janus.v1.AutoscalerService",
    }  # fmt: skip
    for service in mesh.services:
        with grpc.insecure_channel(service.address) as channel:
            names = list(ProtoReflectionDescriptorDatabase(channel).get_services())
        assert expected[service.role] in names and "grpc.health.v1.Health" in names


def test_greedy_equals_transformers_over_both_doors(mesh: LocalMesh, openai: OpenAI, tiny: Path) -> None:
    expected = list(generate(tiny, PROMPT, 16).ids)
    # Bytes at the very end that form no whole character are not sent.
    text = Tokenizer(tiny).decode(expected).rstrip("\ufffd")
    answer = openai.completions.create(
        model=model_name(openai), prompt=PROMPT, max_tokens=16, temperature=0, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].text == text
    assert answer.usage is not None and answer.usage.completion_tokens == 16
    with JanusClient(mesh.grpc) as client:
        chunks = list(client.generate(PROMPT, max_tokens=16, temperature=0.0, ignore_eos=True))
    assert [i for chunk in chunks for i in chunk.token_ids] == expected
    assert "".join(chunk.text for chunk in chunks) == text


def test_streams_end_with_usage(openai: OpenAI) -> None:
    chunks = list(
        openai.chat.completions.create(
            model=model_name(openai), messages=[{"role": "user", "content": "hello"}], max_tokens=8,
            stream=True, stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert chunks[-1].usage is not None and 0 < chunks[-1].usage.completion_tokens <= 8


def test_bad_input_is_refused_and_others_are_unharmed(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="max_tokens"):
        openai.completions.create(model=model_name(openai), prompt=PROMPT, max_tokens=0)
    openai.completions.create(model=model_name(openai), prompt=PROMPT, max_tokens=2)


def test_one_request_is_one_trace(mesh: LocalMesh, openai: OpenAI) -> None:
    response = openai.completions.with_raw_response.create(
        model=model_name(openai), prompt=PROMPT, max_tokens=4, temperature=0
    )
    trace_id = response.headers["x-trace-id"]
    deadline = time.monotonic() + 20
    services: set[str] = set()
    while not {"janus-gateway", "janus-attention", "janus-moe"} <= services:
        assert time.monotonic() < deadline, services
        time.sleep(0.2)
        services = {span["service"] for span in read_trace(mesh.traces, trace_id)}


@pytest.mark.parametrize("worker", ["moe-1", "attention-1"])
def test_a_killed_worker_comes_back_and_the_mesh_serves(
    mesh: LocalMesh, openai: OpenAI, tiny: Path, worker: str
) -> None:
    old = mesh.kill(worker)
    mesh.wait_restarted(worker, old, timeout_s=90)
    with JanusClient(mesh.grpc) as client:
        answer = client.generate(PROMPT, max_tokens=8, temperature=0.0, ignore_eos=True).result()
    assert list(answer.token_ids) == list(generate(tiny, PROMPT, 8).ids)


def test_idle_costs_next_to_nothing(mesh: LocalMesh) -> None:
    """Under 2% of one core over all processes."""
    time.sleep(2.0)
    supervisor = psutil.Process(mesh.supervisor_pid)
    family = [supervisor, *supervisor.children(recursive=True)]

    def spent() -> dict[int, float]:
        return {p.pid: sum(p.cpu_times()[:2]) for p in family}

    before, began = spent(), time.monotonic()
    time.sleep(10.0)
    took = time.monotonic() - began
    shares = {pid: (now - before[pid]) / took for pid, now in spent().items()}
    assert sum(shares.values()) < 0.02, "\n".join(
        f"{share:.2%} of a core: {' '.join(psutil.Process(pid).cmdline())}"
        for pid, share in sorted(shares.items(), key=lambda row: -row[1])
        if share
    )


def test_nothing_is_left(tiny: Path, tmp_path: Path) -> None:
    with LocalMesh(tiny, run_dir=tmp_path / "run", start_deadline_s=150) as mesh:
        family = psutil.Process(mesh.supervisor_pid).children(recursive=True)
        assert len(family) >= 8
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert not list(tmp_path.rglob("*.sock"))


def test_a_killed_supervisor_takes_engines_with_it(tiny: Path, tmp_path: Path) -> None:
    mesh = LocalMesh(tiny, run_dir=tmp_path / "run", start_deadline_s=150).start()
    family = psutil.Process(mesh.supervisor_pid).children(recursive=True)
    os.kill(mesh.supervisor_pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    mesh.stop()


def test_a_port_in_use_is_named(tiny: Path, mesh: LocalMesh) -> None:
    port = int(mesh.http.rpartition(":")[2])
    with pytest.raises(MeshError, match=rf"gateway-0 exited with status 1[\s\S]*{port}"):
        LocalMesh(tiny, http_port=port, start_deadline_s=100).start()


def test_a_damaged_checkpoint_is_named(tiny: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for file in tiny.iterdir():
        data = file.read_bytes()
        (damaged / file.name).write_bytes(data[: len(data) // 2] if file.suffix == ".safetensors" else data)
    with pytest.raises(MeshError) as caught:
        LocalMesh(damaged, start_deadline_s=100).start()
    assert re.search(r"(moe|attention)-0 exited with status 1", str(caught.value))
    assert "safetensors" in str(caught.value)
